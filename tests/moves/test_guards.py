"""Guard regions that a process makes while it is being moved: none of them may be readable afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine, begin_move
from tests.support import programs_help
from tests.support.programs_list import FOLDER, read_program

STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")


@pytest.mark.program
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_guards_made_during_the_move(
    strategy: str, tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    programs_help.build()
    running = programs_help.run(read_program(FOLDER / "memory_guards_changing.c"), tmp_path, machines[0])
    running.wait_ready()
    move = begin_move(running.process.pid, machines, tmp_path, strategy=strategy, restore=["--pid", "namespace"])
    move.restore.event("staged")
    (tmp_path / "begin").touch()
    move.resumed()
    move.complete()
    running.say_moved()
    assert running.verdict() == "passed", move.said()
