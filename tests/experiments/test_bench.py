"""The benchmark's arithmetic, and that it leaves nothing behind when it is ended in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_migration.experiments.account import DESTINATION_WAIT, ON_THE_WAY, SOURCE_WAIT, whole
from live_migration.experiments.judgements import at_least, at_most
from live_migration.experiments.machines import descendants, wait_for
from live_migration.experiments.measures import largest_gap

MILLISECOND = 1_000_000


def test_the_largest_gap_is_looked_for_around_the_move() -> None:
    beats = [0, 50 * MILLISECOND, 51 * MILLISECOND, 58 * MILLISECOND, 59 * MILLISECOND, 99 * MILLISECOND]
    assert largest_gap(beats, 0.0515, 0.0585) == 7
    assert largest_gap(beats, 0, 1) == 50
    assert largest_gap(beats, 0.0555, 0.056) == 7, "a gap around all of it"
    assert largest_gap([], 0, 1) == 0


def test_verdicts_are_about_medians() -> None:
    assert at_most("", [1, 2, 30], "ms", 2).holds is True
    assert at_most("", [1, 3, 30], "ms", 2).holds is False
    assert at_most("", [1, 3, 30], "ms", None).holds is None
    assert at_least("", [0.1, 0.5, 0.6], "x", 0.5).holds is True
    assert at_least("", [0.1, 0.4, 0.6], "x", 0.5).holds is False


def test_both_sides_steps_are_one_account() -> None:
    source = {"describing": 3.0, SOURCE_WAIT: 9.0, "deciding": 1.0}
    destination = {"laying out": 5.0, DESTINATION_WAIT: 4.0, "resuming": 2.0}
    steps = whole(source, destination, 14.5)
    assert steps == {
        "source: describing": 3.0,
        "source: deciding": 1.0,
        "destination: laying out": 5.0,
        "destination: resuming": 2.0,
        ON_THE_WAY: 3.5,
    }


@pytest.mark.program
@pytest.mark.experiment
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with (tmp_path / "said").open("wb") as said:
        bench = subprocess.Popen(
            [sys.executable, "-m", "live_migration.experiments.bench", "--quick"],
            stdout=said,
            stderr=said,
            env=environment,
        )
    try:
        wait_for("the first round", lambda: b"round 1" in (tmp_path / "said").read_bytes() or None)
        time.sleep(1)
        begun = descendants(bench.pid)
        assert begun
        bench.send_signal(number)
        assert bench.wait(60) == 128 + number
    finally:
        bench.kill()
        bench.wait()
    assert [pid for pid in begun if Path(f"/proc/{pid}").exists()] == []
    assert [name.name for name in tmp_path.iterdir()] == ["said"]
    namespaces = Path("/run/netns")
    assert [name.name for name in namespaces.iterdir() if f"-{bench.pid}-" in name.name] == []
