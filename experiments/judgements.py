"""The lines of make bench's table: what was measured, and whether it holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Judgement:
    """A line of the table: what was measured, over how many runs, and whether the bound holds."""

    measure: str
    runs: int
    median: float
    least: float
    most: float
    unit: str
    bound: str
    holds: bool | None
    """None: shown for comparison, nothing is asked for."""


def at_most(measure: str, values: Sequence[float], unit: str, bound: float | None) -> Judgement:
    """The median may not be more than the bound."""
    median = statistics.median(values)
    asked = "" if bound is None else f"<= {bound:g} {unit}"
    holds = None if bound is None else median <= bound
    return Judgement(measure, len(values), median, min(values), max(values), unit, asked, holds)


def at_least(measure: str, values: Sequence[float], unit: str, bound: float) -> Judgement:
    """The median may not be less than the bound."""
    median = statistics.median(values)
    return Judgement(
        measure, len(values), median, min(values), max(values), unit, f">= {bound:g} {unit}", median >= bound
    )


def shown(measure: str, values: Sequence[float], unit: str) -> Judgement:
    """For comparison; nothing is asked for."""
    return at_most(measure, values or [0.0], unit, None)
