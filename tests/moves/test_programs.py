"""One program per kernel feature: alone, and moved between two machines by every strategy."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Machine, begin_move, start, wait_for
from tests.support import programs_help, started
from tests.support.programs_list import Program, all_programs

PROGRAMS = all_programs()
MOVED = [program for program in PROGRAMS if not program.refused]
REFUSED = [program for program in PROGRAMS if program.refused]
AS_MARKED = [pytest.param(one, marks=[pytest.mark.alone] if one.alone else [], id=one.name) for one in MOVED]
STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    programs_help.build()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user may reach: programs drop their rights."""
    path = tmp_path.resolve()
    for parent in (path, *path.parents):
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.program
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_unmoved(program: Program, folder: Path, orphans: None) -> None:
    """The control run: the program passes where it is, so that a failure after a move is the move's."""
    running = programs_help.run(program, folder)
    running.wait_ready()
    running.say_moved()
    if program.stopped:
        os.kill(running.process.pid, signal.SIGCONT)
    assert running.verdict() == "passed"
    assert running.process.wait(60) == 0


@pytest.mark.program
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("program", AS_MARKED)
def test_moved(program: Program, strategy: str, folder: Path, machines: tuple[Machine, Machine], orphans: None) -> None:
    move_and_check(program, strategy, folder, machines)


@pytest.mark.program
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_moved_by_commands_that_were_started(
    strategy: str, folder: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    """As a user starts them: the others are forked from a process that has imported everything."""
    program = next(program for program in PROGRAMS if program.name == "eventfd")
    move_and_check(program, strategy, folder, machines, start)


def move_and_check(
    program: Program,
    strategy: str,
    folder: Path,
    machines: tuple[Machine, Machine],
    starting: Callable[..., Command] = started.start,
) -> None:
    """Move a program and hear its verdict."""
    running = programs_help.run(program, folder, machines[0])
    running.wait_ready()
    more = ["--pid", "namespace", *program.restore]
    if strategy == "pre-copy":
        # Where others compute beside it, a program may write as fast as its pages can be sent.
        more += ["--on-no-convergence", "freeze"]
    # Held back, a bulk stream must not hold up a frozen process.
    serve = program.serve if strategy == "post-copy" else []
    move = begin_move(
        running.process.pid, machines, folder, strategy=strategy, serve=serve, restore=more, starting=starting
    )
    try:
        pid = move.resumed()
        if program.stopped:
            # A thread that a tracer has let go runs in the kernel until it stands in the group-stop again. That it runs
            # no further is what the program checks.
            wait_for("the group-stop", lambda: running.state(pid) == "T" or None)
        running.say_moved()
        if program.stopped:
            os.kill(pid, signal.SIGCONT)
        verdict = running.verdict()
        assert verdict == "passed", verdict
        assert move.restore.process.wait(60) == 0, "lm-restore's exit status"
        assert move.serve.process.wait(60) == 0, "lm-serve's exit status"
        assert move.restore.report()["strategy"] == program.becomes(strategy)
        assert move.restore.report()["outcome"] == "complete"
    except BaseException:
        print(move.said())
        raise


def snapshot_at_new_processes(ended: threading.Event) -> None:
    """As whoever lists processes does, all the time: command lines and environments, which are memory of theirs."""
    known = set(os.listdir("/proc"))
    while not ended.is_set():
        for pid in [name for name in os.listdir("/proc") if name.isdecimal() and name not in known]:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    Path(f"/proc/{pid}/{name}").read_bytes()


@pytest.mark.program
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_moved_while_processes_are_listed(
    strategy: str, folder: Path, machines: tuple[Machine, Machine], orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the command line is far from where the stack is in use.
    monkeypatch.setenv("PADDING", "x" * 50_000)
    program = next(program for program in PROGRAMS if program.name == "command_line_changing")
    ended = threading.Event()
    looker = threading.Thread(target=snapshot_at_new_processes, args=(ended,))
    looker.start()
    try:
        move_and_check(program, strategy, folder, machines)
    finally:
        ended.set()
        looker.join()


@pytest.mark.program
@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.name)
def test_refused(program: Program, folder: Path, machines: tuple[Machine, Machine], orphans: None) -> None:
    """What cannot be moved is refused by name, and goes on as if nothing had happened."""
    running = programs_help.run(program, folder, machines[0])
    running.wait_ready()
    try:
        move = begin_move(running.process.pid, machines, folder, restore=["--pid", "namespace"], starting=started.start)
        move.restore.event("failed")
        move.serve.event("failed")
        said = move.said()
    except RuntimeError as error:
        said = str(error)
    assert '"code":67' in said, said
    assert program.refused in said, said
    running.say_moved()
    assert running.verdict() == "passed"
