"""A peer that does what it may not: messages after COMMIT that cannot be, each a note, and requests that come too
early."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.restorer.finish
import live_migration.restorer.migrate
import live_migration.restorer.phases
import live_migration.restorer.waiting
import live_migration.source_server.phases
import live_migration.source_server.release
import live_migration.source_server.serve
from live_migration.experiments.machines import wait_for
from live_migration.pager.pager import Pager, PagerState
from live_migration.process.member import Runs
from live_migration.process.memory.mappings import AddressSpace
from live_migration.source_server.snapshot import changed_file_pages
from live_migration.wire.control import ControlChannel
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.messages import (
    HEADER,
    PLAIN,
    Abort,
    Blockers,
    Finished,
    Freezing,
    Goodbye,
    Hot,
    Numbered,
    Progress,
    Ready,
    Resumed,
    Signal,
    encode,
    pack,
)
from tests.support import laws


def unknown(kind: str) -> bytes:
    """The frame of a message of a kind that does not exist."""
    body = msgspec.msgpack.encode({"kind": kind, "number": 1})
    return HEADER.pack(len(body), len(body), PLAIN, bytes(3)) + body


EITHER = [
    unknown("riddle"),
    HEADER.pack(1, 1, PLAIN, bytes(3)) + b"\xc1",
    encode(Abort(step="a", object="b", cause="c", remedy="d")),
    encode(Blockers(found=[])),
    encode(Freezing()),
]
OF_THE_SOURCE = [
    *EITHER,
    *(
        encode(message)
        for message in (
            Signal(thread=0, number=1 << 40),
            Signal(thread=0, number=0),
            Signal(thread=0, number=-9),
            Signal(thread=1 << 40, number=10),
            Ready(),
            Goodbye(),
            Hot(payload=pack("hot")),
            Hot(payload=pack({0: [Runs(-1, 1)]})),
            Hot(payload=pack({0: [Runs(1 << 62, 1 << 62)]})),
            Hot(payload=pack({0: [Runs(1, 1)]})),
            Hot(payload=pack({-1: [Runs(1, 1)]})),
            Hot(payload=pack({1: [Runs(4096, 1)]})),
        )
    ),
]
OF_THE_DESTINATION = [
    *EITHER,
    *(
        encode(message)
        for message in (
            Progress(pages=-1, pages_total=-(1 << 63), faults=0),
            Resumed(pid=-1, resume_ns=-1),
            Resumed(pid=1 << 40, resume_ns=1),
            Ready(),
        )
    ),
]


class Moved:
    """A move that went on under odd messages of one side, to be asserted about by the tests."""

    def __init__(self, folder: Path) -> None:
        self.subject = laws.start_subject(laws.build(folder), folder / "subject")
        self.said = ""

    def run(self, *options: str) -> list[int]:
        """Run both commands to their ends: what they end with, lm-restore first."""
        folder = self.subject.folder
        ticket = folder / "ticket"
        arguments = [str(self.subject.pid), "--ticket-file", str(ticket)]
        serve = laws.fork_command(live_migration.cli.serve.main, arguments, folder / "serve.txt")
        wait_for("the ticket", lambda: ticket.exists() or None, 60)
        arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null", *options]
        restore = laws.fork_command(live_migration.cli.restore.main, arguments, folder / "restore.txt")
        self.subject.children |= {serve, restore}
        try:
            return [os.waitstatus_to_exitcode(wait(pid)) for pid in (restore, serve)]
        finally:
            self.said = "".join((folder / f"{name}.txt").read_text() for name in ("serve", "restore"))
            print(self.said)

    def move(self) -> None:
        """Move it, to the end of both commands."""
        assert self.run() == [ExitCode.OK, ExitCode.OK]
        moved = wait_for("the process", lambda: laws.let_go(self.subject) or None, 60)
        self.subject.await_progress()
        self.subject.signal(moved, signal.SIGUSR1, laws.Row.SIGNALS)


def wait(pid: int) -> int:
    """The status of a command, which ends soon."""

    def poll() -> int | None:
        found, status = os.waitpid(pid, os.WNOHANG)
        return status + 1 if found else None

    return wait_for("its end", poll, 60) - 1


@pytest.fixture
def moved(tmp_path: Path, orphans: None) -> Iterator[Moved]:
    found = Moved(tmp_path)
    yield found
    found.subject.rows()


def test_odd_messages_of_the_source(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    original, note = live_migration.restorer.finish.take_state, live_migration.restorer.finish._note_odd
    noted: list[str] = []

    def note_odd(connected: live_migration.restorer.phases.Connected, cause: str) -> None:
        noted.append(cause)
        note(connected, cause)

    def take_state(pager: Pager) -> PagerState:
        """The last page comes after all that is said."""
        state = original(pager)
        early = len(noted) < len(OF_THE_SOURCE)
        return PagerState.RUNNING if state is PagerState.COMPLETE and early else state

    def tell(copied: live_migration.source_server.phases.Copied) -> None:
        for frame in OF_THE_SOURCE:
            copied.connected.control.send_bytes(frame)
        live_migration.source_server.release.tell_hot(copied)

    monkeypatch.setattr(live_migration.source_server.serve, "tell_hot", tell)
    monkeypatch.setattr(live_migration.restorer.finish, "_note_odd", note_odd)
    monkeypatch.setattr(live_migration.restorer.finish, "take_state", take_state)
    moved.move()
    assert moved.said.count("a message of lm-serve cannot be used") == len(OF_THE_SOURCE)


def test_odd_messages_of_the_destination(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(running: live_migration.restorer.phases.Running) -> int:
        for frame in OF_THE_DESTINATION:
            running.connected.control.send_bytes(frame)
        return live_migration.restorer.finish.follow(running)

    monkeypatch.setattr(live_migration.restorer.migrate, "follow", say)
    moved.move()
    assert moved.said.count("a message of lm-restore cannot be used") == len(OF_THE_DESTINATION)


def test_counts_that_cannot_be_read(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the report's, and nobody is lost for their sake."""
    post = ControlChannel.post

    def spoil(channel: ControlChannel, message: Numbered) -> None:
        post(channel, Finished(payload=pack([1, 2])) if isinstance(message, Finished) else message)

    monkeypatch.setattr(ControlChannel, "post", spoil)
    moved.move()
    assert moved.said.count("a message of lm-restore cannot be used") == 1


def test_a_destination_that_hangs_up_when_it_has_finished(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's copy has left then, and lm-serve does not say that it is kept."""
    acknowledge = ControlChannel.acknowledge

    def lose(channel: ControlChannel) -> None:
        channel.lost("it was closed")
        acknowledge(channel)

    monkeypatch.setattr(ControlChannel, "acknowledge", lose)
    moved.move()
    assert "is kept here" not in moved.said


def test_a_signal_that_comes_when_every_page_is_there(moved: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has reached the source's copy before that left, and is delivered."""
    post = ControlChannel.post

    def post_more(channel: ControlChannel, message: Numbered) -> None:
        if isinstance(message, Goodbye):
            post(channel, Signal(thread=0, number=signal.SIGUSR1))
        post(channel, message)

    before = moved.subject.rows()[laws.Row.SIGNALS]
    monkeypatch.setattr(ControlChannel, "post", post_more)
    moved.move()
    assert moved.subject.rows()[laws.Row.SIGNALS] == before + 2


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("strategy", ["post-copy", "hybrid"])
def test_pages_of_the_process_that_runs_are_not_to_be_had(
    strategy: str, pushed: bool, moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that asks for pages before the freeze gets what is pushed, and no more."""

    def look_slowly(pid: int, memory: AddressSpace) -> list[Runs]:
        time.sleep(0.5)
        return changed_file_pages(pid, memory)

    receive_push = live_migration.restorer.waiting.receive_push

    def ask_early(staged: live_migration.restorer.phases.Staged, identifier: int) -> None:
        if pushed:
            receive_push(staged, identifier)
        staged.pager.prefetch_start()
        staged.pager.wait(PagerState.RUNNING, 60)
        counted = staged.pager.counters
        print(f"asked in vain: {counted['prefetched_pages'] + counted['faulted_pages']} pages came", flush=True)
        raise ConnectionError

    monkeypatch.setattr(live_migration.restorer.migrate, "receive_push", ask_early)
    if not pushed:
        monkeypatch.setattr(live_migration.source_server.serve, "changed_file_pages", look_slowly)
    codes = moved.run(f"--{strategy}")
    assert "asked in vain: 0 pages came" in moved.said
    assert set(codes) <= {ExitCode.LOST_BEFORE, ExitCode.SYSTEM}
    assert "runs on" in moved.said
    laws.assert_untouched(moved.subject)
