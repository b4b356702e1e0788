"""A process with seccomp filters: while lm-serve traces it they are suspended, and when lm-serve dies they are not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine
from live_migration.wire.exit_codes import ExitCode
from tests.support import programs_help, started
from tests.support.programs_list import all_programs

PROGRAM = next(program for program in all_programs() if program.name == "seccomp_threads")


@pytest.mark.parametrize("failpoint", ["source-frozen", "source-queried", "source-parked"])
def test_a_death_of_lm_serve_leaves_it_as_it_was(
    failpoint: str,
    tmp_path: Path,
    machines: tuple[Machine, Machine],
    orphans: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its filters kill for calls that its threads are asked by default, and one that is parked waits under them."""
    programs_help.build()
    running = programs_help.run(PROGRAM, tmp_path.resolve(), machines[0])
    running.wait_ready()
    monkeypatch.setenv("LM_FAULT", f"{failpoint}:kill")
    move = started.begin_move(running.process.pid, machines, running.folder)
    monkeypatch.delenv("LM_FAULT")
    assert move.serve.process.wait(60) == -signal.SIGKILL, move.said()
    running.say_moved()
    assert running.verdict() == "passed"
    assert move.restore.process.wait(60) == ExitCode.LOST_BEFORE, move.said()
