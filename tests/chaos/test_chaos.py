"""A few trials of tests/chaos/trial.py; `make chaos` makes a thousand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.wire.control import PULSE_SECONDS
from tests.chaos import trial
from tests.chaos.relay import Fault
from tests.support import laws

# As many as take less than a minute on two processors.
TRIALS = range(1, 11)
PAIRS = (1, 2)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.mark.parametrize("number", TRIALS)
def test_one_failure_breaks_no_law(number: int, program: Path, tmp_path: Path, orphans: None) -> None:
    trial.make(trial.draw(number), program, tmp_path / "subject")


@pytest.mark.parametrize("number", PAIRS)
def test_two_who_are_killed_at_once(number: int, program: Path, tmp_path: Path, orphans: None) -> None:
    """What docs/recovery.md says brings the process back, where it does not come back by itself."""
    trial.make(trial.draw(number, pairs=True), program, tmp_path / "subject")


def test_a_path_that_is_cut_before_the_freeze(program: Path, tmp_path: Path, orphans: None) -> None:
    """Nothing closes, and no kernel notices: both commands find out by themselves, and the process runs on."""
    plan = trial.Plan(0, "post-copy", "destination-staged", trial.Target.NETWORK, Fault.CUT, 0.1, 0, True)
    assert trial.make(plan, program, tmp_path / "subject") is trial.Outcome.UNTOUCHED


def test_a_source_whose_connections_are_reset_before_its_memory_is_fetched(
    program: Path, tmp_path: Path, orphans: None
) -> None:
    """It is killed after COMMIT, and what lm-restore says in the meantime meets a closed end."""
    plan = trial.Plan(
        0, "post-copy", "destination-resumed", trial.Target.SERVE, trial.Action.KILL, 0.1, 0, False
    )
    with trial.begin(plan, program, tmp_path / "subject") as (move, steps):
        caller, _ = steps.accept()
        with caller:
            assert move.strike()
            # Two pulses and more: the first is answered by RST.
            time.sleep(3 * PULSE_SECONDS)
            caller.sendall(b"+")
        wait_for("the stall", lambda: trial.told(move, "restore", "stalled") or None)
        assert laws.let_go(move.subject)


def test_a_number_is_a_trial() -> None:
    plans = [trial.draw(number) for number in range(2000)]
    assert plans == [trial.draw(number) for number in range(2000)]
    assert {plan.step for plan in plans} == set(trial.STEPS)
    assert {plan.target for plan in plans} == set(trial.Target)
