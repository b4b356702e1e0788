"""Moves through a tunnel that breaks with the source's decision in it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from live_migration.experiments.machines import Command, Move, descendants, wait_for
from live_migration.wire.ticket import Ticket, parse_ticket
from tests.support import laws, started
from tests.support.tunnel import Tunnel, dug

IN_DOUBT = "nobody here can know"


@dataclass
class Doubt:
    """A move through a tunnel that breaks."""

    subject: laws.Subject
    move: Move
    tunnel: Tunnel

    def is_kept(self) -> bool:
        """Whether the husk is there, parked, and has not run."""
        masks = laws.signal_masks(self.husk)
        return len(masks) == len(laws.THREADS) and set(masks) == {laws.PARKED}

    @property
    def husk(self) -> int:
        """Its process id."""
        (found,) = (pid for pid, name in laws.left_over(self.subject).items() if name == "laws_program")
        return found

    @property
    def worker(self) -> int:
        """lm-restore's."""
        (found,) = (pid for pid in descendants(self.move.restore.process.pid) if laws.process_name(pid) == "lm-pager")
        return found

    def said(self) -> str:
        """What lm-restore has told its user."""
        return (self.subject.folder / "restore.err").read_text()

    def await_doubt(self) -> None:
        """Until lm-restore says so."""
        wait_for("the doubt", lambda: IN_DOUBT in self.said() or None, 60)
        assert self.is_kept()

    def list_source(self) -> subprocess.CompletedProcess[str]:
        """lm-serve --decide list."""
        line = [sys.executable, "-m", "live_migration.cli.serve", "--decide", "list"]
        return started.run(line, env=laws.environment(), cwd=laws.ROOT, timeout=60)

    def goes_on(self) -> None:
        """The process runs at the destination, and only there."""
        moved = wait_for("the process", lambda: laws.let_go(self.subject) or None, 60)
        # What else the copy gets lm-serve passes on, however late, and it would be counted below.
        laws.assert_inert(self.subject, [signal.SIGCONT])
        self.subject.await_progress()
        self.subject.signal(moved, signal.SIGUSR1, laws.Row.SIGNALS)


def start(subject: laws.Subject, side: str, words: list[str], fault: str) -> Command:
    """Start lm-serve or lm-restore."""
    more = laws.environment(fault if fault.startswith("source" if side == "serve" else "destination") else "")
    words = [sys.executable, "-m", f"live_migration.cli.{side}", *words, "--json"]
    return laws.start_command(subject, words, side, more)


@contextmanager
def doubt(
    program: Path,
    folder: Path,
    *,
    source_listens: bool = True,
    fault: str = "",
    strategy: str = "post-copy",
    **how: bool,
) -> Iterator[Doubt]:
    """Move the program through a tunnel."""
    subject = laws.start_subject(program, folder / "subject")
    file = subject.folder / "ticket"
    listening = ["--ticket-file", str(file)]
    serve, restore = [str(subject.pid)], ["--pid", "namespace", "--detach", "--stdio", "null", f"--{strategy}"]
    if source_listens:
        first = start(subject, "serve", serve + listening, fault)
    else:
        first = start(subject, "restore", [*restore, "--listen", "127.0.0.1:0", *listening], fault)
    wait_for("the ticket", lambda: file.exists() or None, 60)
    ticket = parse_ticket(file.read_text())
    with dug((ticket.host, ticket.port)) as tunnel:
        tunnel.entirely, tunnel.in_order = how.get("entirely", False), how.get("in_order", True)
        entry = str(Ticket("127.0.0.1", tunnel.port, ticket.secret))
        if source_listens:
            move = Move(first, start(subject, "restore", [entry, *restore], fault))
        else:
            move = Move(start(subject, "serve", [*serve, "--to", entry], fault), first)
        try:
            assert tunnel.broken.wait(60)
            yield Doubt(subject, move, tunnel)
            subject.rows()
        except BaseException:
            print(move.said())
            raise


def custodians(found: Doubt) -> list[int]:
    """Those of both sides, but not that of an lm-serve that lives, for which it stays."""
    spared = descendants(found.move.serve.process.pid) if found.move.serve.process.poll() is None else []
    names = laws.left_over(found.subject)
    return [pid for pid, name in names.items() if name == "lm-custodian" and pid not in spared]
