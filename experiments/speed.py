"""Operations through time: how fast a workload was before, how far it dipped, and when it was itself again."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from live_migration.experiments.results import Speed

RECOVERED = 0.95
WINDOW_SECONDS = 0.1
"""Over which speeds are averaged: a single step may be empty because of the machine."""
HELD_SECONDS = 0.5
"""For how long a recovered workload keeps its speed."""
SHOWN_BEFORE = 2.0
SHOWN_AFTER = 30.0
"""Seconds around the resume that are kept in the results."""
SHOWN_STEPS = 600
"""Steps that a kept timeline has at most; more are taken together."""


@dataclass(frozen=True)
class Timeline:
    """Operations counted in steps: `begin` and `step` in seconds, `begin` since 1970."""

    begin: float
    step: float
    counts: Sequence[int]

    def between(self, begin: float, end: float) -> Sequence[int]:
        """The counts of the whole steps in this time, seconds since 1970."""
        first = max(0, int((begin - self.begin) / self.step + 0.999999))
        last = max(first, int((end - self.begin) / self.step + 0.000001))
        return self.counts[first:last]

    def rate(self, begin: float, end: float) -> float:
        """Operations per second on average; 0 where nothing is known."""
        counts = self.between(begin, end)
        return sum(counts) / len(counts) / self.step if counts else 0.0

    def until(self) -> float:
        """When it ends, seconds since 1970."""
        return self.begin + len(self.counts) * self.step


@dataclass(frozen=True)
class Moments:
    """When things happened, seconds since 1970; the workload ran undisturbed from `calm` to `command`."""

    calm: float
    command: float
    """When the first of the commands that move it was started."""
    start: float
    """When its migration began: the connection of both sides."""
    frozen: float
    resumed: float
    complete: float
    rounds: bool = False
    """Whether pages were copied between start and frozen."""


def recovery(timeline: Timeline, before: float, resumed: float) -> float | None:
    """Seconds from the resume until RECOVERED of `before` is reached and held; None when it never was."""
    wanted = before * RECOVERED
    moment = resumed
    while moment + HELD_SECONDS <= timeline.until():
        if (
            timeline.rate(moment, moment + WINDOW_SECONDS) >= wanted
            and timeline.rate(moment, moment + HELD_SECONDS) >= wanted
        ):
            return moment - resumed
        moment += timeline.step
    return None


def lowest(timeline: Timeline, begin: float, end: float) -> float:
    """The least speed over any WINDOW_SECONDS that begin in this time, operations per second."""
    width = max(1, round(WINDOW_SECONDS / timeline.step))
    counts = timeline.between(begin, end + WINDOW_SECONDS)
    sums = [sum(counts[i : i + width]) for i in range(max(0, len(counts) - width + 1))]
    return min(sums, default=0) / (width * timeline.step)


def shown(timeline: Timeline, moments: Moments) -> tuple[float, list[tuple[float, float]]]:
    """Milliseconds of a step, and the (milliseconds from the resume, operations) that are kept."""
    begin = max(timeline.begin, moments.command - SHOWN_BEFORE)
    first = int((begin - timeline.begin) / timeline.step)
    last = min(len(timeline.counts), int((moments.complete + SHOWN_AFTER - timeline.begin) / timeline.step))
    together = -(-max(1, last - first) // SHOWN_STEPS)
    kept = []
    for index in range(first, last - together + 1, together):
        at = timeline.begin + index * timeline.step - moments.resumed
        kept.append((round(at * 1000, 3), float(sum(timeline.counts[index : index + together]))))
    return round(timeline.step * together * 1000, 3), kept


def speed_of(timeline: Timeline, moments: Moments) -> Speed:
    """Everything about a workload's speed."""
    steps = timeline.between(moments.calm, moments.command)
    before = statistics.fmean(steps) / timeline.step if steps else 0.0
    recovered = recovery(timeline, before, moments.resumed) if before else None
    end = moments.resumed + recovered if recovered is not None else timeline.until()
    done = sum(timeline.between(moments.start, end))
    step_ms, kept = shown(timeline, moments)
    return Speed(
        step_ms=step_ms,
        timeline=kept,
        before=before,
        during_rounds=timeline.rate(moments.start, moments.frozen) if moments.rounds else None,
        lowest=lowest(timeline, moments.frozen - WINDOW_SECONDS, end),
        recovered_ms=None if recovered is None else recovered * 1000,
        lost=max(0.0, before * (end - moments.start) - done),
    )
