"""The connection ends between READY and COMMIT, in order or not: nobody at the destination can know, and the husk is
kept, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.restorer.custody
import live_migration.source_server.serve
from live_migration.experiments.machines import descendants, wait_for
from live_migration.wire.control import ControlChannel
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.messages import Commit, Message
from tests.support import laws


@dataclass
class Doubt:
    """A move that stands in doubt: the frontend, its worker, and the husk."""

    subject: laws.Subject
    frontend: int
    worker: int
    husk: int

    def said(self) -> str:
        """What lm-restore printed."""
        return (self.subject.folder / "restore.txt").read_text()

    def status(self) -> int:
        """With what the frontend ends; waited for."""
        return os.waitstatus_to_exitcode(os.waitpid(self.frontend, 0)[1])


def finish(source: socket.socket) -> None:
    """The orderly end, which whoever passes the connection on can bring about with COMMIT in hand."""
    source.shutdown(socket.SHUT_WR)


def reset(source: socket.socket) -> None:
    """The other one (socket(7), SO_LINGER)."""
    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    source.close()


@pytest.fixture(params=[finish, reset], ids=["finished", "reset"])
def doubt(
    request: pytest.FixtureRequest, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Doubt]:
    """COMMIT is sent, and lost on the way, and the connection ends in one of two ways."""
    look_ahead = ControlChannel.look_ahead

    def lost(channel: ControlChannel) -> Message | None:
        assert isinstance(look_ahead(channel), Commit)
        with socket.create_server(("127.0.0.1", 0)) as server:
            source = socket.create_connection(server.getsockname())
            destination, _ = server.accept()
        with source, destination:
            request.param(source)
            os.dup2(destination.fileno(), channel.fileno(), inheritable=False)
            return look_ahead(channel)

    monkeypatch.setattr(ControlChannel, "look_ahead", lost)
    # What is done before the freeze with a socket of its own is not what is broken here.
    monkeypatch.setattr(live_migration.restorer.custody.Custody, "rehearse", lambda custody, threads: None)
    subject = laws.start_subject(laws.build(tmp_path), tmp_path / "subject")
    ticket = subject.folder / "ticket"
    arguments = [str(subject.pid), "--ticket-file", str(ticket)]
    serve = laws.fork_command(live_migration.cli.serve.main, arguments, subject.folder / "serve.txt")
    wait_for("the ticket", lambda: ticket.exists() or None, 20)
    arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null"]
    frontend = laws.fork_command(live_migration.cli.restore.main, arguments, subject.folder / "restore.txt")
    subject.children |= {serve, frontend}
    output = subject.folder / "restore.txt"
    output.touch()
    wait_for("the doubt", lambda: "nobody here can know" in output.read_text() or None, 30)
    names = laws.left_over(subject)
    (worker,) = (pid for pid in descendants(frontend) if names.get(pid) == "lm-pager")
    (husk,) = (pid for pid, name in names.items() if name == "laws_program")
    found = Doubt(subject, frontend, worker, husk)
    yield found
    print(found.said())
    subject.rows()


def is_kept(doubt: Doubt) -> bool:
    """Whether the husk is there, parked, and has not run."""
    masks = laws.signal_masks(doubt.husk)
    return len(masks) == len(laws.THREADS) and set(masks) == {laws.PARKED}


def test_the_husk_is_kept_until_it_is_ended_by_hand(doubt: Doubt) -> None:
    laws.assert_inert(doubt.subject)
    assert is_kept(doubt)
    assert f"end this one (kill -9 {doubt.husk})" in doubt.said()
    os.kill(doubt.husk, signal.SIGKILL)
    assert doubt.status() == ExitCode.IN_DOUBT
    assert f"process {doubt.husk}: was ended here while nobody knew" in doubt.said()
    wait_for("the end of the custodian", lambda: not custodians(doubt) or None, 10)


def test_the_husk_is_kept_when_the_worker_dies_in_doubt(doubt: Doubt) -> None:
    """COMMIT, which the custodian could read in the socket, is not for it to find: the worker's word counts."""
    os.kill(doubt.worker, signal.SIGKILL)
    assert doubt.status() == ExitCode.IN_DOUBT
    assert f"process {doubt.husk} is kept, stopped" in doubt.said()
    assert is_kept(doubt)
    os.kill(doubt.husk, signal.SIGTERM)
    assert is_kept(doubt)
    assert custodians(doubt)
    os.kill(doubt.husk, signal.SIGKILL)
    wait_for("the end of the custodian", lambda: not custodians(doubt) or None, 10)


def custodians(doubt: Doubt) -> list[int]:
    """The custodians that hold the husk's control connection: all but lm-serve's."""
    found = []
    for pid, name in laws.left_over(doubt.subject).items():
        with contextlib.suppress(OSError):
            targets = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
            if name == "lm-custodian" and "anon_inode:[pidfd]" in targets:
                found.append(pid)
    return found
