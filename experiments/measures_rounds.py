"""What make bench measures of the rounds: one process, moved by a strategy, with what it wrote meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from live_migration.experiments.measures import MOVE_SECONDS, SETTLE_SECONDS, Laboratory, Samples, moving

STEP_SECONDS = 0.01
BEFORE_SECONDS = 0.8
HELD_STEPS = 10


def recovered(steps: Sequence[int], before: float, resumed: int) -> float | None:
    """Milliseconds from the step of the resume until 95 % of the old speed is held for a tenth of a second, if ever."""
    for place in range(resumed, len(steps) - HELD_STEPS):
        if statistics.fmean(steps[place : place + HELD_STEPS]) >= 0.95 * before:
            return (place - resumed) * STEP_SECONDS * 1000
    return None


def measure_writer(
    laboratory: Laboratory,
    strategy: str,
    mebibytes: int,
    rate: int,
    *,
    share: int = 100,
    spread: bool = False,
    serve: Sequence[str] = (),
    restore: Sequence[str] = (),
) -> Samples:
    """Move a process that writes `rate` MiB of pages a second (0: as fast as it can) to `share` percent of its memory:
    the first of it, or `spread` evenly over all of it.

    speed_kept: its speed while rounds were copied, as a part of that before; the rest is from lm-restore's report."""
    words = ["writer", str(mebibytes), str(rate), str(share), str(int(spread))]
    time.sleep(SETTLE_SECONDS)
    with moving(laboratory, words, serve=serve, strategy=strategy, restore=restore, memory=mebibytes) as trial:
        to_monotonic = time.monotonic() - time.time()
        trial.move.complete(MOVE_SECONDS)
        time.sleep(SETTLE_SECONDS)
        trial.told()
        begin, *steps = trial.read_numbers()
        report = trial.report()
        staged = float(trial.move.serve.event("staged")["time"]) + to_monotonic
        frozen = float(trial.move.serve.event("frozen")["time"]) + to_monotonic
        resumed = trial.moment("resumed") + to_monotonic
        listening = float(trial.move.serve.event("listening")["time"]) + to_monotonic

    def speed(first: float, last: float) -> float:
        """Pages in a step, on average."""
        low, high = (int((moment - begin / 1e9) / STEP_SECONDS) for moment in (first, last))
        return statistics.fmean(steps[max(low, 0) : max(high, low + 1)] or [0])

    # The command that looks at it starts up shortly before it listens.
    before = speed(listening - BEFORE_SECONDS, listening - 0.4)
    return {
        "strategy": report["strategy"],
        "downtime_ms": report["downtime_ms"],
        "total_ms": report["total_ms"],
        "wire_bytes": report["bytes"]["wire"],
        "pages": report["pages"],
        "faults": report["faults"]["count"],
        "rounds": report["rounds"],
        "speed_kept": speed(staged, frozen) / before if before and report["rounds"] else None,
        "rounds_seconds": frozen - staged,
        "recovered_ms": recovered(steps, before, int((resumed - begin / 1e9) / STEP_SECONDS)),
    }
