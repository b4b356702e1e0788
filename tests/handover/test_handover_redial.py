"""A network that is lost after COMMIT: threads that need a page wait, and when it is back everything goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Machine, Move, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import parse_ticket
from tests.chaos.relay import Relay, start_relay
from tests.support import laws, started

WARM, COLD = 1024, 1024
# Bulk is so slow that pages are missing when the network is lost: with rounds, those that are written all the time.
SLOW = {"post-copy": "512K", "hybrid": "2M"}
SECONDS = 6.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@dataclass
class Far:
    """A move between two machines, of which the process runs at the second already; pages are missing."""

    subject: laws.Subject
    machines: tuple[Machine, Machine]
    move: Move
    pid: int

    def lose_network(self, how: str) -> None:
        """The source's link goes down, or everything that it sends is dropped."""
        source, destination = self.machines
        if how == "down":
            source.ip("link", "set", source.link, "down")
        else:
            source.ip("route", "add", "blackhole", destination.address)

    def mend_network(self, how: str) -> None:
        """It is back."""
        source, destination = self.machines
        if how == "down":
            source.ip("link", "set", source.link, "up")
        else:
            source.ip("route", "delete", "blackhole", destination.address)

    def touch(self) -> None:
        """Let the process go over its cold pages."""
        os.kill(self.pid, signal.SIGUSR2)

    def ends_well(self) -> None:
        """Every page is as it was, and both commands and the source's copy have left."""
        subject = self.subject
        wait_for("every page", lambda: subject.rows()[laws.Row.ALL_COLD] or None, 60)
        assert subject.rows()[laws.Row.COLD] == COLD
        subject.await_progress()
        self.move.complete(60)
        assert self.subject.process.wait(60) == 0


def start(subject: laws.Subject, machine: Machine, side: str, *words: object) -> Command:
    line = machine.command(sys.executable, "-m", f"live_migration.cli.{side}", *map(str, words), "--json")
    return laws.start_command(subject, line, side, laws.environment(), started.start)


@contextmanager
def far(
    program: Path, folder: Path, machines: tuple[Machine, Machine], *, strategy: str, source_listens: bool
) -> Iterator[Far]:
    subject = laws.start_subject(program, folder / "subject", warm=WARM, cold=COLD)
    file = subject.folder / "ticket"
    source, destination = machines
    serve: list[object] = [subject.pid, "--bandwidth-limit", SLOW[strategy], "--report", subject.folder / "serve.json"]
    restore: list[object] = ["--pid", "namespace", "--detach", "--stdio", "null", f"--{strategy}"]
    restore += ["--max-rounds", 1] if strategy == "hybrid" else []
    restore += ["--report", subject.folder / "restore.json"]
    if source_listens:
        serving = start(subject, source, "serve", *serve, "--listen", f"{source.address}:0", "--ticket-file", file)
        wait_for("the ticket", lambda: file.exists() or None, 60)
        restoring = start(subject, destination, "restore", f"@{file}", *restore)
    else:
        listening = ["--listen", f"{destination.address}:0", "--ticket-file", file]
        restoring = start(subject, destination, "restore", *restore, *listening)
        wait_for("the ticket", lambda: file.exists() or None, 60)
        serving = start(subject, source, "serve", *serve, "--to", f"@{file}")
    move = Move(serving, restoring)
    try:
        yield Far(subject, machines, move, move.resumed())
        subject.rows()
    except BaseException:
        print(move.said())
        raise


@pytest.mark.parametrize(
    ("strategy", "source_listens", "how"),
    [("post-copy", True, "drop"), ("hybrid", False, "down")],
    ids=["post-copy", "hybrid"],
)
def test_the_network_is_lost_and_comes_back(
    program: Path,
    tmp_path: Path,
    machines: tuple[Machine, Machine],
    orphans: None,
    strategy: str,
    source_listens: bool,
    how: str,
) -> None:
    with far(program, tmp_path, machines, strategy=strategy, source_listens=source_listens) as found:
        subject, commands = found.subject, (found.move.serve, found.move.restore)
        found.lose_network(how)
        lost = time.monotonic()
        try:
            found.touch()
            for command in commands:
                command.event("stalled")
            subject.await_progress([laws.Row.SLEEPER])
            subject.await_standstill()
            # What reaches the source's copy meanwhile is for the process.
            os.kill(subject.pid, signal.SIGUSR1)
            time.sleep(max(0.0, lost + SECONDS - time.monotonic()))
            before = subject.rows()
        finally:
            found.mend_network(how)
        for command in commands:
            assert command.event("reconnected")["attempt"] > 1
        found.ends_well()
        # It was sent to the process before lm-serve left, and the handler may run a little later.
        signals = before[laws.Row.SIGNALS]
        wait_for("the signal", lambda: subject.rows()[laws.Row.SIGNALS] > signals or None, 60)
        assert subject.rows()[laws.Row.SIGNALS] == signals + 1


@contextmanager
def through_relay(subject: laws.Subject, *more: str) -> Iterator[tuple[Move, Relay]]:
    """A move through a relay, of which the process runs at the destination and pages are missing."""
    file = subject.folder / "ticket"
    words = [str(subject.pid), "--ticket-file", str(file), "--bandwidth-limit", SLOW["post-copy"], *more]
    line = [sys.executable, "-m", "live_migration.cli.serve", *words, "--json"]
    serving = laws.start_command(subject, line, "serve", laws.environment())
    wait_for("the ticket", lambda: file.exists() or None, 60)
    ticket = parse_ticket(file.read_text())
    relay = start_relay((ticket.host, ticket.port))
    words = [str(replace(ticket, port=relay.port)), "--pid", "namespace", "--detach", "--stdio", "null", *more]
    line = [sys.executable, "-m", "live_migration.cli.restore", *words, "--json"]
    move = Move(serving, laws.start_command(subject, line, "restore", laws.environment()))
    try:
        move.resumed()
        yield move, relay
        subject.rows()
    except BaseException:
        print(move.said())
        raise
    finally:
        relay.close()


def test_a_relay_is_killed_and_started_again(program: Path, tmp_path: Path, orphans: None) -> None:
    subject = laws.start_subject(program, tmp_path / "subject", warm=WARM, cold=COLD)
    with through_relay(subject) as (move, relay):
        port = relay.port
        relay.close()
        for command in (move.serve, move.restore):
            command.event("stalled")
        again = start_relay(relay.target, port)
        try:
            for command in (move.serve, move.restore):
                command.event("reconnected")
            pid = laws.moved_pid(move)
            subject.signal(pid, signal.SIGUSR2, laws.Row.ALL_COLD)
            assert subject.rows()[laws.Row.COLD] == COLD
            move.complete(60)
        finally:
            again.close()


def test_a_time_limit_for_the_network(program: Path, tmp_path: Path, orphans: None) -> None:
    """Both give up, and the process waits for its pages, which are still in the source's copy."""
    subject = laws.start_subject(program, tmp_path / "subject", warm=WARM, cold=COLD)
    with through_relay(subject, "--reconnect-timeout", "1") as (move, relay):
        relay.close()
        for command in (move.serve, move.restore):
            assert command.process.wait(60) == ExitCode.LOST_AFTER, move.said()
        os.kill(laws.moved_pid(move), signal.SIGUSR2)
        subject.await_standstill()
        assert subject.rows()[laws.Row.ALL_COLD] == 0
        laws.assert_inert(subject, laws.ANY)
        assert subject.process.poll() is None
