"""The source's decision is lost on its way: nobody at the destination can know, so the husk is kept, stopped, until the
two sides reach each other again and the source is asked. Nobody and nothing has to be done by hand."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.experiments.machines import Command, Move, descendants, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import Ticket, parse_ticket
from tests.support import laws
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
        wait_for("the doubt", lambda: IN_DOUBT in self.said() or None, 30)
        assert self.is_kept()

    def goes_on(self) -> None:
        """The process runs at the destination, and only there."""
        moved = wait_for("the process", lambda: laws.let_go(self.subject) or None, 20)
        laws.assert_inert(self.subject)
        self.subject.await_progress()
        self.subject.signal(moved, signal.SIGUSR1, laws.Row.SIGNALS)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


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
    wait_for("the ticket", lambda: file.exists() or None, 20)
    ticket = parse_ticket(file.read_text())
    with dug((ticket.host, ticket.port)) as tunnel:
        tunnel.entirely, tunnel.in_order = how.get("entirely", False), how.get("in_order", True)
        entry = str(Ticket("127.0.0.1", tunnel.port, ticket.secret))
        if source_listens:
            move = Move(first, start(subject, "restore", [entry, *restore], fault))
        else:
            move = Move(start(subject, "serve", [*serve, "--to", entry], fault), first)
        try:
            assert tunnel.broken.wait(30)
            yield Doubt(subject, move, tunnel)
            subject.rows()
        except BaseException:
            print(move.said())
            raise


@pytest.mark.parametrize("in_order", [True, False], ids=["finished", "reset"])
@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_commit_is_lost(source_listens: bool, in_order: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, source_listens=source_listens, in_order=in_order) as found:
        found.await_doubt()
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(30) == ExitCode.OK
        assert found.move.serve.process.wait(30) == ExitCode.OK
        found.goes_on()


@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_the_no_is_lost(source_listens: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """The process runs on at the source at once. lm-serve has left long ago, and its custodian tells it."""
    with doubt(program, tmp_path, source_listens=source_listens, fault="source-parked:fail") as found:
        assert found.move.serve.process.wait(30) == ExitCode.SYSTEM
        found.await_doubt()
        found.subject.await_progress()
        assert found.is_kept()
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(30) in (ExitCode.SYSTEM, ExitCode.LOST_BEFORE)
        laws.assert_untouched(found.subject)


@pytest.mark.parametrize("source_listens", [True, False], ids=["source-listens", "destination-listens"])
def test_the_tunnel_ends_with_commit_in_it(source_listens: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """With every connection, in order: FIN is no no."""
    with doubt(program, tmp_path, source_listens=source_listens, entirely=True, strategy="stop-and-copy") as found:
        found.await_doubt()
        found.tunnel.is_open.set()
        found.goes_on()


@pytest.mark.parametrize("kill", ["worker", "serve", "both"])
def test_the_custodians_find_each_other(kill: str, program: Path, tmp_path: Path, orphans: None) -> None:
    """Whoever has died meanwhile."""
    with doubt(program, tmp_path, strategy="stop-and-copy") as found:
        found.await_doubt()
        if kill != "serve":
            os.kill(found.worker, signal.SIGKILL)
            assert found.move.restore.process.wait(30) == ExitCode.IN_DOUBT
            assert found.is_kept()
            os.kill(found.husk, signal.SIGCONT)
            assert found.is_kept()
        if kill != "worker":
            os.kill(found.move.serve.process.pid, signal.SIGKILL)
        found.tunnel.is_open.set()
        found.goes_on()
        wait_for("the end of the custodians", lambda: not custodians(found) or None, 20)


def custodians(found: Doubt) -> list[int]:
    """Those of both sides, but not that of an lm-serve that lives, for which it stays."""
    spared = descendants(found.move.serve.process.pid) if found.move.serve.process.poll() is None else []
    names = laws.left_over(found.subject)
    return [pid for pid, name in names.items() if name == "lm-custodian" and pid not in spared]


def test_the_custodians_find_each_other_after_a_no(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, fault="source-parked:kill") as found:
        found.await_doubt()
        os.kill(found.worker, signal.SIGKILL)
        assert found.move.restore.process.wait(30) == ExitCode.IN_DOUBT
        assert found.is_kept()
        found.tunnel.is_open.set()
        laws.assert_untouched(found.subject)


def test_what_became_of_it_is_lost(program: Path, tmp_path: Path, orphans: None) -> None:
    """RESUMED, in the tunnel: everything goes on, and the custodians leave when it has been heard."""
    with doubt(program, tmp_path) as found:
        found.await_doubt()
        found.tunnel.broken.clear()
        found.tunnel.breaks = (lib.LM_WORD_ACKNOWLEDGED,)
        found.tunnel.is_open.set()
        assert found.move.restore.process.wait(30) == ExitCode.OK
        assert found.move.serve.process.wait(30) == ExitCode.OK
        found.tunnel.is_open.set()
        found.goes_on()
        wait_for("the end of the custodians", lambda: not custodians(found) or None, 20)


def test_a_husk_that_is_ended_by_hand(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path) as found:
        found.await_doubt()
        husk = found.husk
        os.kill(husk, signal.SIGKILL)
        assert found.move.restore.process.wait(30) == ExitCode.IN_DOUBT
        assert f"process {husk}: was ended here while nobody knew" in found.said()
        found.tunnel.is_open.set()
        wait_for("the end of the custodian", lambda: not custodians(found) or None, 20)
        laws.assert_inert(found.subject)
