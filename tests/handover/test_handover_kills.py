"""Death at any instant: SIGKILL of lm-serve, lm-restore and its worker, at random and where pages are missing.

The random runs are short, so the commands are forked from a process which has imported them, not started anew.
LM_KILLS=N makes N runs (default: 30), LM_KILLS_SEED=N others.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from live_migration.experiments.machines import Move, descendants, wait_for, wait_for_change
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws, started
from tests.support.started import end_everything

RUNS = int(os.environ.get("LM_KILLS", "30"))
SEED = int(os.environ.get("LM_KILLS_SEED", "1"))
LONGEST = 0.25
STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
TARGETS = ("serve", "restore", "worker", "custodian")
# All the runs together may take longer than other tests do.
MANY = pytest.mark.timeout(60 + 30 * RUNS)
PAGER, CUSTODIAN = "lm-pager", "lm-custodian"
COLD = 64
# Failpoints at which the worker's death is set for later, and how many seconds at most.
AIMED = {
    "destination-final": 0.006,
    "destination-restored": 0.002,
    "destination-ready": 0.0006,
    "destination-waiting": 0.0006,
    "destination-committed": 0.0002,
}
# Those after which the source, which nothing happens to, hands over.
AFTER_READY = ("destination-waiting", "destination-committed")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@dataclass
class Shot:
    """One run: the two commands, who is to be killed and when."""

    subject: laws.Subject
    target: str
    serve: int
    restore: int
    masks: list[str]
    ended: dict[int, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take note of the commands that have ended."""
        for pid in (self.serve, self.restore):
            with contextlib.suppress(ChildProcessError):
                if pid not in self.ended:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        self.ended[pid] = os.waitstatus_to_exitcode(status)

    def victim(self) -> int:
        """The process to kill; 0 if it has ended already, or does not exist yet."""
        self.read()
        if self.target == "serve":
            return 0 if self.serve in self.ended else self.serve
        if self.target == "restore":
            return 0 if self.restore in self.ended else self.restore
        workers = [pid for pid in descendants(os.getpid()) if laws.process_name(pid) == PAGER]
        if self.target == "custodian":
            return (
                next((pid for pid in descendants(workers[0]) if laws.process_name(pid) == CUSTODIAN), 0)
                if workers
                else 0
            )
        return workers[0] if workers else 0

    def said(self) -> str:
        """What the commands printed."""
        parts = [f"{self.target} was killed; statuses {self.ended}; serve {self.serve}, restore {self.restore}"]
        parts += [f"{pid} {name}" for pid, name in laws.left_over(self.subject).items()]
        for name in ("serve", "restore"):
            with contextlib.suppress(OSError):
                parts.append((self.subject.folder / f"{name}.txt").read_text())
        return "\n".join(parts)


def fork(subject: laws.Subject, name: str, module: str, *words: object) -> int:
    """Fork a command; its process id. What it prints goes to one file."""
    with open(os.devnull, "rb") as null, (subject.folder / f"{name}.txt").open("ab") as output:
        line = [sys.executable, "-m", module, *map(str, words)]
        descriptors = [null.fileno(), output.fileno(), output.fileno()]
        pid = started.fork(line, descriptors, env=laws.environment(), cwd=laws.ROOT).pid
    subject.children.add(pid)
    return pid


def shoot(
    subject: laws.Subject, target: str, strategy: str, restore: Sequence[object] = ("live_migration.cli.restore",)
) -> Shot:
    """Start the two commands; `restore` is the module of lm-restore, and what comes before its arguments."""
    ticket = subject.folder / "ticket"
    words: list[object] = [subject.pid, "--ticket-file", ticket, "--json", "--max-freeze", "2"]
    serve = fork(subject, "serve", "live_migration.cli.serve", *words)
    wait_for_change("the ticket", lambda: ticket.exists() or None, subject.folder, seconds=60)
    words = [f"@{ticket}", f"--{strategy}", "--pid", "namespace", "--detach", "--stdio", "null", "--json"]
    module, *first = restore
    destination = fork(subject, "restore", str(module), *first, *words)
    return Shot(subject, target, serve, destination, laws.signal_masks(subject.pid))


def await_staged(shot: Shot) -> None:
    """Wait until the interesting part begins."""
    path = shot.subject.folder / "serve.txt"
    wait_for("staged", lambda: '"staged"' in path.read_text() or None, 60, 0.0005)


def outcome(shot: Shot) -> int:
    """Wait for the end of the run: the process at the destination, or 0 when nothing came of it.

    An lm-serve whose destination has died before they met still waits for another one, and is told to stop."""
    begin = time.monotonic()
    output = shot.subject.folder / "serve.txt"

    def poll() -> int | None:
        shot.read()
        left = laws.left_over(shot.subject)
        moved = laws.let_go(shot.subject)
        if moved:
            # A husk whose tracer has just died is not traced either, and about to die.
            time.sleep(0.05)
            return moved if laws.let_go(shot.subject) == moved else None
        if not left and len(shot.ended) == 2:
            assert shot.subject.process.poll() is None, "no copy is left"
            return 0
        alone = shot.restore in shot.ended and shot.serve not in shot.ended
        if alone and time.monotonic() > begin + 0.5 and '"stalled"' not in output.read_text():
            os.kill(shot.serve, signal.SIGTERM)
        return None

    return wait_for("an outcome", poll, 60)


def check(shot: Shot) -> str:
    """Check the laws; what became of the process."""
    subject = shot.subject
    moved = outcome(shot)
    if not moved:
        laws.assert_untouched(subject)
        return "untouched"
    laws.assert_inert(subject, laws.ANY if shot.serve in shot.ended else laws.HARMLESS)
    assert laws.process_name(moved) == "laws_program"
    assert laws.signal_masks(moved) == shot.masks
    os.kill(moved, signal.SIGUSR2)
    time.sleep(0.05)
    assert laws.process_name(moved) == "laws_program"
    return "moved"


@MANY
def test_death_at_any_instant(program: Path, tmp_path: Path, orphans: None) -> None:
    chance = random.Random(SEED)
    seen: dict[tuple[str, str], int] = {}
    for number in range(RUNS):
        target, strategy = chance.choice(TARGETS), chance.choice(STRATEGIES)
        early, delay = chance.random() < 0.3, chance.random()
        subject = laws.start_subject(program, tmp_path / f"run{number}", warm=128, cold=COLD)
        shot = shoot(subject, target, strategy)
        try:
            if not early:
                await_staged(shot)
            time.sleep(delay * (LONGEST if early else LONGEST / 5))
            victim = shot.victim()
            if victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            became = check(shot)
            seen[target, became] = seen.get((target, became), 0) + 1
        except BaseException:
            print(f"run {number}, seed {SEED}, {strategy}, early {early}, delay {delay}")
            print(shot.said())
            raise
        finally:
            end_everything()
        subject.rows()
    print(seen)
    assert {became for _, became in seen} == {"untouched", "moved"} or RUNS < 25, seen


@MANY
def test_death_of_the_worker_in_the_handover(program: Path, tmp_path: Path, orphans: None) -> None:
    """The worker is ended by a timer that it sets at a failpoint: at instants that no other process could hit."""
    chance = random.Random(SEED)
    seen: dict[tuple[str, str], int] = {}
    for number in range(RUNS):
        failpoint, strategy = chance.choice(list(AIMED)), chance.choice(STRATEGIES)
        seconds = 1e-6 + chance.random() * AIMED[failpoint]
        subject = laws.start_subject(program, tmp_path / f"aimed{number}", warm=128, cold=COLD)
        reached = subject.folder / "reached"
        shot = shoot(subject, "worker", strategy, ["tests.handover.aimed", failpoint, seconds, reached])
        try:
            became = check(shot)
            assert reached.exists()
            assert became == "moved" or failpoint not in AFTER_READY
            seen[failpoint, became] = seen.get((failpoint, became), 0) + 1
        except BaseException:
            print(f"run {number}, seed {SEED}, {strategy}, {failpoint}, {seconds}")
            print(shot.said())
            raise
        finally:
            end_everything()
        subject.rows()
    print(seen)


@pytest.fixture
def slow(
    request: pytest.FixtureRequest, program: Path, tmp_path: Path, orphans: None
) -> Iterator[tuple[laws.Subject, Move, int]]:
    """A process that has been moved while most of its memory has not: bulk brings a few pages a second, or as many as
    the test asks for."""
    subject = laws.start_subject(program, tmp_path / "subject", warm=16, cold=1024)
    move = laws.begin(subject, serve=["--bandwidth-limit", getattr(request, "param", "16K")])
    try:
        pid = move.resumed()
        subject.await_progress()
        yield subject, move, pid
        subject.rows()
    except BaseException:
        print(move.said())
        raise


def start_on_cold(subject: laws.Subject, pid: int) -> None:
    """Let the process go over its cold pages, and wait until it is in the middle."""
    os.kill(pid, signal.SIGUSR2)
    wait_for("the first cold pages", lambda: subject.rows()[laws.Row.COLD] > 10 or None, 60)


def waits(subject: laws.Subject, pid: int) -> None:
    """The process waits for a page and reads no zeros; the source's copy is inert and stays."""
    subject.await_standstill()
    assert laws.process_name(pid) == "laws_program"
    rows = subject.rows()
    assert rows[laws.Row.ALL_COLD] == 0
    laws.assert_inert(subject, laws.ANY)
    assert subject.process.poll() is None
    assert subject.rows()[laws.Row.COLD] == rows[laws.Row.COLD]


def test_lm_serve_killed_while_pages_are_missing(slow: tuple[laws.Subject, Move, int]) -> None:
    subject, move, pid = slow
    os.kill(move.serve.process.pid, signal.SIGKILL)
    stalled = move.restore.event("stalled")
    assert stalled["pid"] == pid
    assert "connection" in stalled["cause"]
    os.kill(pid, signal.SIGUSR2)
    waits(subject, pid)
    assert move.restore.process.poll() is None
    said = (subject.folder / "restore.err").read_text()
    assert f"process {pid} goes on until it needs a page that is missing, and waits there" in said


def test_the_source_s_copy_killed_while_pages_are_missing(slow: tuple[laws.Subject, Move, int]) -> None:
    """What is lost is not zero: the process waits for it."""
    subject, move, pid = slow
    os.kill(subject.pid, signal.SIGKILL)
    move.restore.event("stalled")
    os.kill(pid, signal.SIGUSR2)
    subject.await_standstill()
    assert laws.process_name(pid) == "laws_program"
    assert subject.rows()[laws.Row.ALL_COLD] == 0


@pytest.mark.parametrize("slow", ["512K"], indirect=True)
def test_lm_restore_s_worker_killed_while_pages_are_missing(slow: tuple[laws.Subject, Move, int]) -> None:
    """What has been requested in bulk is on its way at its own pace, also when a fault has brought it since: at the few
    pages a second of the others, that would take minutes."""
    subject, move, pid = slow
    workers = [one for one in descendants(move.restore.process.pid) if laws.process_name(one) == "lm-pager"]
    os.kill(workers[0], signal.SIGKILL)
    subject.signal(pid, signal.SIGUSR2, laws.Row.ALL_COLD)
    assert move.restore.process.wait(60) == ExitCode.OK
    assert move.serve.event("stalled")["pid"] == subject.pid
    assert move.serve.process.wait(60) == ExitCode.OK
    said = (subject.folder / "serve.err").read_text()
    assert f"process {subject.pid} is kept here, stopped for good" in said


def test_both_killed_while_pages_are_missing(slow: tuple[laws.Subject, Move, int]) -> None:
    subject, move, pid = slow
    workers = [one for one in descendants(move.restore.process.pid) if laws.process_name(one) == "lm-pager"]
    for one in (move.serve.process.pid, move.restore.process.pid, *workers):
        os.kill(one, signal.SIGKILL)
    os.kill(pid, signal.SIGUSR2)
    waits(subject, pid)


def test_the_frontend_killed_while_pages_are_missing(slow: tuple[laws.Subject, Move, int]) -> None:
    """The worker carries on alone, and the process gets every page by a fault."""
    subject, move, pid = slow
    os.kill(move.restore.process.pid, signal.SIGKILL)
    subject.signal(pid, signal.SIGUSR2, laws.Row.ALL_COLD)
    assert subject.rows()[laws.Row.COLD] == 1024


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_after_commit_do_not_end_lm_serve(slow: tuple[laws.Subject, Move, int], number: signal.Signals) -> None:
    subject, move, pid = slow
    os.kill(move.serve.process.pid, number)
    err = subject.folder / "serve.err"
    wait_for("the note", lambda: "it never runs here again" in err.read_text() or None, 60)
    subject.signal(pid, signal.SIGUSR2, laws.Row.ALL_COLD)
    assert move.serve.process.poll() is None or move.serve.process.returncode == 0


STATUS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("fault", ["destination-described", "destination-pushed", "destination-restored"])
def test_lm_serve_is_told_to_stop_before_commit(
    fault: str, number: signal.Signals, program: Path, tmp_path: Path, orphans: None
) -> None:
    """While the destination takes its time: before the freeze, and in it."""
    subject = laws.start_subject(program, tmp_path / "subject")
    move = laws.begin(subject, fault=f"{fault}:hang")
    if fault == "destination-restored":
        move.serve.event("frozen")
    else:
        move.serve.event("staged" if fault == "destination-pushed" else "listening")
        time.sleep(0.2)
    os.kill(move.serve.process.pid, number)
    assert move.serve.process.wait(60) == STATUS[number], move.said()
    end_workers(move)
    laws.assert_untouched(subject)
    sentence = f"lm-serve: waiting: lm-serve: {number.name} came; the process runs on here, untouched\n"
    assert (subject.folder / "serve.err").read_text().endswith(sentence)


def end_workers(move: Move) -> None:
    """End a worker that hangs as it was told to."""
    for pid in descendants(move.restore.process.pid):
        if laws.process_name(pid) == "lm-pager":
            os.kill(pid, signal.SIGKILL)
    move.restore.process.wait(60)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("fault", ["source-connected", "source-described", "source-staged", "source-frozen"])
def test_lm_restore_is_told_to_stop_before_commit(
    fault: str, number: signal.Signals, program: Path, tmp_path: Path, orphans: None
) -> None:
    """While the source takes its time: in every wait of the destination's before READY."""
    subject = laws.start_subject(program, tmp_path / "subject")
    move = laws.begin(subject, fault=f"{fault}:hang", serve=["--max-freeze", "60"])
    if fault in ("source-staged", "source-frozen"):
        move.restore.event("staged")
    wait_for("the worker", lambda: "lm-pager" in laws.left_over(subject).values() or None)
    time.sleep(0.3)
    os.kill(move.restore.process.pid, number)
    assert move.restore.process.wait(60) == STATUS[number], move.said()
    os.kill(move.serve.process.pid, signal.SIGKILL)
    move.serve.process.wait(60)
    laws.assert_untouched(subject)
    sentence = f"lm-restore: waiting: lm-restore: {number.name} came; the process runs on at the source\n"
    assert (subject.folder / "restore.err").read_text().endswith(sentence)
