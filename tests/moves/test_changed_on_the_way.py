"""Somebody on the path who does not know the secret changes one byte, before COMMIT and after it: the move fails, or
other connections take the place of these, and nothing that was changed reaches it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Move, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import Ticket, parse_ticket
from tests.support import laws
from tests.support.commands import RESTORE, SERVE

CONTROL, FAULT, BULK = range(3)
COLD = 4096


class OnPath:
    """The path between the two sides. `spoil` is the connection, counted from 0, on which the source's bytes, or
    `upwards` the destination's, are changed from the place `after` on."""

    def __init__(self, ticket: Ticket) -> None:
        self.far = (ticket.host, ticket.port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.ticket = Ticket("127.0.0.1", self.server.getsockname()[1], ticket.secret)
        self.spoil = -1
        self.upwards = False
        self.after = 0
        self.closing = contextlib.ExitStack()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            for number in range(1000):
                near = self.closing.enter_context(self.server.accept()[0])
                far = self.closing.enter_context(socket.create_connection(self.far))
                for upwards in (False, True):
                    ends = (near, far) if upwards else (far, near)
                    threading.Thread(target=self.carry, args=[number, upwards, *ends], daemon=True).start()

    def carry(self, number: int, upwards: bool, here: socket.socket, there: socket.socket) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := bytearray(here.recv(1 << 16)):
                if number == self.spoil and upwards == self.upwards and carried + len(data) > self.after:
                    data[-1] ^= 1
                carried += len(data)
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def path_to(ticket: Ticket) -> Iterator[OnPath]:
    path = OnPath(ticket)
    thread = threading.Thread(target=path.run)
    thread.start()
    with path.closing:
        try:
            yield path
        finally:
            path.server.shutdown(socket.SHUT_RDWR)
            path.server.close()
            thread.join(60)


def start(subject: laws.Subject, name: str, module: str, *words: str) -> Command:
    line = [sys.executable, "-m", module, *words, "--json"]
    return laws.start_command(subject, line, name, laws.environment())


@contextlib.contextmanager
def moving(
    subject: laws.Subject, *, spoil: int = -1, upwards: bool = False, after: int = 0
) -> Iterator[tuple[Move, OnPath]]:
    """Move the program, slowly."""
    file = subject.folder / "ticket"
    serving = start(subject, "serve", SERVE, str(subject.pid), "--ticket-file", str(file), "--bandwidth-limit", "2M")
    wait_for("the ticket", lambda: file.exists() or None, 60)
    with path_to(parse_ticket(file.read_text())) as path:
        path.spoil, path.upwards, path.after = spoil, upwards, after
        words = ["--pid", "namespace", "--detach", "--stdio", "null", "--post-copy"]
        yield Move(serving, start(subject, "restore", RESTORE, str(path.ticket), *words)), path


@pytest.fixture
def subject(tmp_path: Path, orphans: None) -> laws.Subject:
    return laws.start_subject(laws.build(tmp_path), tmp_path / "subject", cold=COLD)


@pytest.mark.parametrize(
    ("spoil", "upwards", "after"),
    [(CONTROL, False, 2000), (CONTROL, True, 600), (BULK, False, 2000)],
    ids=["description", "answers", "pages"],
)
def test_before_commit(spoil: int, upwards: bool, after: int, subject: laws.Subject) -> None:
    with moving(subject, spoil=spoil, upwards=upwards, after=after) as (move, _):
        for command in (move.restore, move.serve):
            assert command.process.wait(60) in (ExitCode.LOST_BEFORE, ExitCode.PEER_FAILED), move.said()
        assert "what came was changed on its way" in move.said()
        laws.assert_untouched(subject)


@pytest.mark.parametrize("spoil", [FAULT, BULK])
def test_after_commit(spoil: int, subject: laws.Subject) -> None:
    with moving(subject) as (move, path):
        move.restore.event("resumed")
        path.spoil = spoil
        move.restore.event("stalled")
        assert "what came was changed on its way" in move.said()
        laws.assert_inert(subject)
        moved = laws.moved_pid(move)
        assert laws.process_name(moved) == "laws_program"
        # Other connections, on which nobody changes anything, bring what is missing.
        move.restore.event("reconnected")
        os.kill(moved, signal.SIGUSR2)
        wait_for("every page", lambda: subject.rows()[laws.Row.ALL_COLD] or None, 60)
        assert subject.rows()[laws.Row.COLD] == COLD
        assert [command.process.wait(60) for command in (move.restore, move.serve)] == [ExitCode.OK, ExitCode.OK]
