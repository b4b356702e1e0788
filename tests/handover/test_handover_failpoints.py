"""Every failpoint of the handover, told to fail, to die or to hang: before COMMIT nothing has happened, after it
nothing is taken back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Move, descendants, start, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import DESTINATION_FAILPOINTS, FAILPOINTS, SOURCE_FAILPOINTS
from tests.support import laws

AFTER_COMMIT = [
    "source-committed",
    "source-decided",
    "source-finished",
    "destination-waiting",
    "destination-committed",
    "destination-letting-go",
    "destination-resumed",
    "destination-complete",
]
BEFORE_COMMIT = [failpoint for failpoint in FAILPOINTS if failpoint not in AFTER_COMMIT]
HANGING_SOURCE = ("source-frozen", "source-final-sent", "source-parked")
HANGING_DESTINATION = ("destination-final", "destination-restored", "destination-ready")
# Failpoints that only a strategy with rounds comes to.
ROUNDS = ("source-round", "destination-round")
# What the side that goes on may end with: it was told why, or it lost the other one.
TOLD = (ExitCode.SYSTEM, ExitCode.LOST_BEFORE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> Iterator[laws.Subject]:
    """The program, running; what it wrote has to be in order to the very end."""
    subject = laws.start_subject(program, tmp_path / "subject")
    yield subject
    subject.rows()


def ends(command: Command) -> int:
    """The exit status; -9 for SIGKILL."""
    return command.process.wait(60)


def failed_event(command: Command) -> dict[str, object]:
    """The one event that says why it failed."""
    found = [event for event in command.events() if event["event"] == "failed"]
    assert len(found) == 1, command.said()
    return found[0]


@pytest.mark.parametrize("failpoint", BEFORE_COMMIT)
def test_an_error_before_commit(failpoint: str, subject: laws.Subject) -> None:
    move = laws.begin(subject, fault=f"{failpoint}:fail", restore=["--hybrid"] if failpoint in ROUNDS else [])
    failing, other = (move.serve, move.restore) if failpoint in SOURCE_FAILPOINTS else (move.restore, move.serve)
    try:
        assert ends(failing) == ExitCode.SYSTEM
        assert failpoint in str(failed_event(failing)["error"])
        assert ends(other) in TOLD
        failed_event(other)
        laws.assert_untouched(subject)
    except BaseException:
        print(move.said())
        raise


@pytest.mark.parametrize("failpoint", BEFORE_COMMIT)
def test_a_death_before_commit(failpoint: str, subject: laws.Subject) -> None:
    move = laws.begin(subject, fault=f"{failpoint}:kill", restore=["--hybrid"] if failpoint in ROUNDS else [])
    try:
        if failpoint in SOURCE_FAILPOINTS:
            assert ends(move.serve) == -signal.SIGKILL
            assert ends(move.restore) == ExitCode.LOST_BEFORE
        else:
            assert ends(move.serve) == ExitCode.LOST_BEFORE
            assert ends(move.restore) == ExitCode.LOST_BEFORE
        laws.assert_untouched(subject)
        assert not list(Path("/dev/shm").glob(f"lm-*-{subject.pid}-*"))
    except BaseException:
        print(move.said())
        raise


@pytest.mark.parametrize("failpoint", HANGING_SOURCE)
def test_a_hanging_source_is_bounded(failpoint: str, subject: laws.Subject) -> None:
    """Even a stopped lm-serve freezes nobody: its custodian ends it."""
    # Long enough to reach the failpoint beside other programs.
    move = laws.begin(subject, fault=f"{failpoint}:hang", serve=["--max-freeze", "1"])
    assert ends(move.serve) == -signal.SIGKILL, move.said()
    assert ends(move.restore) == ExitCode.LOST_BEFORE, move.said()
    laws.assert_untouched(subject)


@pytest.mark.parametrize("failpoint", HANGING_DESTINATION)
def test_a_hanging_destination_is_bounded(failpoint: str, subject: laws.Subject) -> None:
    move = laws.begin(subject, fault=f"{failpoint}:hang", serve=["--max-freeze", "1"])
    assert ends(move.serve) == ExitCode.TIMEOUT, move.said()
    assert str(failed_event(move.serve)["error"]) == (
        f"the freeze: process {subject.pid}: it was not over after 1 s, and the process runs on here; "
        "choose post-copy, a faster link, or a higher --max-freeze"
    )
    subject.await_progress()
    for pid in descendants(move.restore.process.pid):
        if laws.process_name(pid) == "lm-pager":
            os.kill(pid, signal.SIGKILL)
    assert ends(move.restore) == ExitCode.LOST_BEFORE, move.said()
    laws.assert_untouched(subject)


@pytest.mark.parametrize("failpoint", [name for name in BEFORE_COMMIT if name in DESTINATION_FAILPOINTS])
def test_a_process_killed_while_the_destination_hangs(failpoint: str, subject: laws.Subject) -> None:
    """No wait of lm-serve goes on when there is nothing left to move."""
    how = ["--hybrid"] if failpoint in ROUNDS else ["--stop-and-copy"]
    move = laws.begin(subject, fault=f"{failpoint}:hang", restore=how, serve=["--max-freeze", "600"])
    time.sleep(1.0)
    os.kill(subject.pid, signal.SIGKILL)
    killed = time.monotonic()
    try:
        assert ends(move.serve) == ExitCode.NO_PROCESS
        # Each of these waits would last for 30 s or more.
        assert time.monotonic() - killed < 20
        assert str(failed_event(move.serve)["error"]).endswith("; nothing is left to move")
    finally:
        for pid in descendants(move.restore.process.pid):
            if laws.process_name(pid) == "lm-pager":
                os.kill(pid, signal.SIGKILL)
    assert ends(move.restore) in (ExitCode.NO_PROCESS, *TOLD), move.said()


@pytest.mark.parametrize("failpoint", [failpoint for failpoint in AFTER_COMMIT if failpoint != "source-finished"])
def test_an_error_after_commit_takes_nothing_back(failpoint: str, subject: laws.Subject) -> None:
    move = laws.begin(subject, fault=f"{failpoint}:fail")
    assert ends(move.restore) == ExitCode.OK, move.said()
    assert ends(move.serve) == ExitCode.OK, move.said()
    assert subject.process.wait(60) == 0
    goes_on(subject, move)


def test_an_error_when_all_is_over_leaves_the_copy_inert(subject: laws.Subject) -> None:
    move = laws.begin(subject, fault="source-finished:fail")
    move.serve.event("stalled")
    # lm-serve goes on, and passes on what the copy gets.
    laws.assert_inert(subject, [signal.SIGCONT])
    goes_on(subject, move)
    assert subject.process.poll() is None


def goes_on(subject: laws.Subject, move: Move) -> None:
    """The moved process runs as before; no thread of it is traced."""
    pid = laws.moved_pid(move)
    subject.await_progress()
    subject.signal(pid, signal.SIGUSR1, laws.Row.SIGNALS)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        assert "TracerPid:\t0\n" in (thread / "status").read_text()


def test_a_source_killed_after_commit(program: Path, tmp_path: Path, orphans: None) -> None:
    """The destination runs until it needs a page that is missing, and waits there; the copy stays, inert."""
    # However late the kill comes, nobody has touched the cold pages, and bulk has not brought them.
    subject = laws.start_subject(program, tmp_path / "subject", warm=16, cold=1024)
    move = laws.begin(subject, fault="source-committed:kill", serve=["--bandwidth-limit", "16K"])
    assert ends(move.serve) == -signal.SIGKILL
    stalled = move.restore.event("stalled")
    pid = laws.moved_pid(move)
    assert stalled["pid"] == pid
    laws.assert_inert(subject, laws.ANY)
    assert subject.process.poll() is None
    os.kill(pid, signal.SIGUSR2)
    subject.await_standstill()
    assert subject.rows()[laws.Row.ALL_COLD] == 0
    assert laws.process_name(pid) == "laws_program"
    assert move.restore.process.poll() is None


def test_a_source_killed_when_all_is_over(subject: laws.Subject) -> None:
    move = laws.begin(subject, fault="source-finished:kill")
    assert ends(move.serve) == -signal.SIGKILL
    assert ends(move.restore) == ExitCode.OK, move.said()
    laws.assert_inert(subject, laws.ANY)
    goes_on(subject, move)


@pytest.mark.parametrize("failpoint", [failpoint for failpoint in AFTER_COMMIT if failpoint in DESTINATION_FAILPOINTS])
def test_a_pager_killed_after_commit(failpoint: str, subject: laws.Subject) -> None:
    """Another one goes on: the moved process gets every page, and the source's copy leaves."""
    move = laws.begin(subject, fault=f"{failpoint}:kill")
    try:
        assert ends(move.restore) == ExitCode.OK
        assert "another one goes on" in move.restore.said()
        assert ends(move.serve) == ExitCode.OK
        laws.assert_inert(subject, laws.ANY)
        goes_on(subject, move)
    except BaseException:
        print(move.said())
        raise


def test_killing_by_the_command_line_spares_who_holds_the_memory(subject: laws.Subject) -> None:
    """As `pkill -9 -f` does it: the frontend alone has the command's words, and its worker carries on."""
    move = laws.begin(subject, serve=["--bandwidth-limit", "2M"], starting=start)
    move.restore.event("resumed")
    named = [pid for pid in descendants(os.getpid()) if b"live_migration.cli.restore" in laws.command_line(pid)]
    assert named == [move.restore.process.pid]
    os.kill(named[0], signal.SIGKILL)
    assert ends(move.serve) == ExitCode.OK, move.said()
    goes_on(subject, move)


@pytest.mark.parametrize("failpoint", ["waiting", "committed", "letting-go"])
def test_a_worker_killed_in_the_handover_of_a_whole_process(failpoint: str, subject: laws.Subject) -> None:
    """Every page is there, so that all threads run on, with the masks that they had."""
    masks = laws.signal_masks(subject.pid)
    move = laws.begin(subject, restore=["--stop-and-copy"], fault=f"destination-{failpoint}:kill")
    try:
        assert ends(move.restore) == ExitCode.OK
        # What else the copy gets lm-serve passes on, and it would be counted below.
        laws.assert_inert(subject, [signal.SIGCONT])
        pid = wait_for("the process", lambda: laws.let_go(subject) or None, 60)
        assert laws.signal_masks(pid) == masks
        subject.await_progress()
        subject.signal(pid, signal.SIGUSR1, laws.Row.SIGNALS)
    except BaseException:
        print(move.said())
        raise


def test_without_a_fault(subject: laws.Subject) -> None:
    """The control run: both sides end, and only the process and its namespace are left."""
    move = laws.begin(subject)
    assert ends(move.serve) == ExitCode.OK, move.said()
    assert ends(move.restore) == ExitCode.OK, move.said()
    assert subject.process.wait(60) == 0
    goes_on(subject, move)
    wait_for("the end of the others", lambda: set(laws.left_over(subject).values()) == {"init", "laws_program"} or None)
