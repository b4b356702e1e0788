"""Moves where nothing tells of the process's writes: one plain round, or none, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.experiments.machines import Machine
from tests.conftest import skip
from tests.support import programs_help
from tests.support.programs_list import FOLDER, read_program
from tests.support.started import begin_move

UNTRACKED = Path(__file__).with_name("untracked_serve.py")


@pytest.mark.program
@pytest.mark.parametrize("name", ["memory_changing", "memory_touched", "memory_shared_anonymous"])
@pytest.mark.parametrize(
    ("strategy", "becomes"),
    [("pre-copy", "pre-copy"), ("hybrid", "post-copy"), ("auto", "post-copy"), ("post-copy", "post-copy")],
)
def test_moved_without_tracking(
    name: str, strategy: str, becomes: str, tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    if lib.lm_probe_soft_dirty() == 0:
        skip("this kernel has soft-dirty bits, which cannot be taken away")
    programs_help.build()
    running = programs_help.run(read_program(FOLDER / f"{name}.c"), tmp_path, machines[0])
    running.wait_ready()
    move = begin_move(
        running.process.pid,
        machines,
        tmp_path,
        strategy=f"strategy={strategy}",
        serve=["-v"],
        restore=["--pid", "namespace"],
        serving=[str(UNTRACKED)],
    )
    move.resumed()
    running.say_moved()
    assert running.verdict() == "passed", move.said()
    assert move.restore.process.wait(60) == 0, move.said()
    report = move.restore.report()
    assert (report["strategy"], report["tracking"]) == (becomes, "none")
    assert len(report["rounds"]) == (1 if becomes == "pre-copy" else 0)
    warned = "this kernel tracks no writes" in move.serve.said()
    assert warned == (strategy != "post-copy")
