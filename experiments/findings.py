"""The classic findings about live migration, looked for in the runs: each holds, does not hold, or was not measured.

A finding has to hold in every setting that was measured. A quantity grows if its median at the high end is more than
GROWTH times that at the low end and the quartiles are apart; so what differs only by the machine's noise does not grow.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from live_migration.experiments.quantities import (
    depth,
    dip_ms,
    dirty_words,
    downtime,
    duration,
    fault_share,
    network_faults,
    page_multiple,
    plain,
    size,
    times,
)
from live_migration.experiments.results import Cell, Result
from live_migration.experiments.summary import (
    Setting,
    Spread,
    Value,
    by_series,
    by_setting,
    known,
    median_of,
    migrations,
    series_of,
    spread,
)

GROWTH = 1.25
WELL_BELOW_A_FIFTH = 0.15
RULE = (
    f"A quantity grows if its median becomes more than {GROWTH:g} times as large and the quartiles are apart; a "
    "finding holds if it does in every setting and for each quantity that it names."
)
"""For the reader of the findings."""
HINES_GOPALAN = "Hines and Gopalan, VEE 2009, report 21 %"


class Outcome(enum.Enum):
    """What came of a finding."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Finding:
    """A claim, what came of it, and a sentence with the numbers."""

    claim: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Growth:
    """A quantity at the two ends of what was varied."""

    low: Spread
    high: Spread

    @property
    def grew(self) -> bool:
        """More than noise."""
        return self.high.median > GROWTH * self.low.median and self.high.low > self.low.high

    def words(self, text: Callable[[float], str]) -> str:
        """`from 5 ms to 50 ms (10×)`."""
        ratio = f" ({times(self.high.median / self.low.median, 2)})" if self.low.median > 0 else ""
        return f"from {text(self.low.median)} to {text(self.high.median)}{ratio}"


@dataclass(frozen=True)
class Case:
    """One setting in which a finding can be judged, and the numbers there."""

    setting: Setting
    holds: bool
    numbers: str
    weight: float = 0.0
    """The case with the most is the one that is told."""


def find(results: Sequence[Result]) -> list[Finding]:
    """All findings, from the verified runs of our own strategies."""
    ours = [one for one in migrations(results, peers=False) if one.verified]
    return [
        pre_copy_grows(ours),
        post_copy_does_not_grow(ours),
        memory_does_not_matter(ours),
        each_page_once(ours),
        few_network_faults(ours),
        smallest_dip(ours),
    ]


def conclude(claim: str, cases: Sequence[Case], needs: str, without: Sequence[str] = ()) -> Finding:
    """The finding from its cases: it holds if it holds in all; told is a case in which it does not, if there is one."""
    if not cases:
        return Finding(claim, Outcome.UNKNOWN, f"This needs {needs}.")
    failing = [case for case in cases if not case.holds]
    told = max(failing or cases, key=lambda case: case.weight)
    others = ""
    if len(cases) > 1:
        others = f" It holds in {len(cases) - len(failing)} of {len(cases)} settings."
    sentence = f"{told.numbers} ({told.setting.words(*without)}).{others}"
    return Finding(claim, Outcome.FAILS if failing else Outcome.HOLDS, sentence)


def ends(results: Sequence[Result], strategy: str, of: Callable[[Cell], int | None], value: Value) -> Growth | None:
    """A quantity of a strategy at the least and the largest place of the axis; None if there are not two places."""
    known_runs = [one for one in results if series_of(one).strategy == strategy and value(one) is not None]
    places = sorted({place for one in known_runs if (place := of(one.cell)) is not None})
    if len(places) < 2:
        return None
    low, high = (spread(known((one for one in known_runs if of(one.cell) == place), value))
                 for place in (places[0], places[-1]))  # fmt: skip
    return Growth(low, high)


def dirty_range(results: Sequence[Result], strategy: str) -> tuple[int, int]:
    """The least and the largest dirty rate of a strategy's runs, bytes per second."""
    rates = [one.cell.dirty_rate for one in results
             if series_of(one).strategy == strategy and one.cell.dirty_rate is not None]  # fmt: skip
    return min(rates), max(rates)


def against_dirty_rate(results: Sequence[Result], strategy: str, should_grow: bool) -> list[Case]:
    """Downtime and pages of a strategy from the least to the largest dirty rate, in each setting."""
    cases = []
    for setting, runs in by_setting(results, "dirty_rate").items():
        still = ends(runs, strategy, lambda cell: cell.dirty_rate, downtime)
        pages = ends(runs, strategy, lambda cell: cell.dirty_rate, page_multiple)
        if still is None or pages is None:
            continue
        low, high = dirty_range(runs, strategy)
        numbers = (
            f"From {dirty_words(low)} to {dirty_words(high)} of writes, {strategy}'s downtime went "
            f"{still.words(duration)} and the pages sent for each page of the process {pages.words(plain)}"
        )
        holds = (still.grew and pages.grew) if should_grow else not (still.grew or pages.grew)
        cases.append(Case(setting, holds, numbers, high - low))
    return cases


def pre_copy_grows(results: Sequence[Result]) -> Finding:
    """Downtime and pages of pre-copy against the dirty rate."""
    return conclude(
        "Pre-copy's downtime and pages grow with the dirty rate",
        against_dirty_rate(results, "pre-copy", should_grow=True),
        "runs of pre-copy at two dirty rates",
        ["dirty_rate"],
    )


def post_copy_does_not_grow(results: Sequence[Result]) -> Finding:
    """Downtime and pages of post-copy against the dirty rate."""
    return conclude(
        "Post-copy's downtime and pages do not grow with the dirty rate",
        against_dirty_rate(results, "post-copy", should_grow=False),
        "runs of post-copy at two dirty rates",
        ["dirty_rate"],
    )


def memory_does_not_matter(results: Sequence[Result]) -> Finding:
    """Downtime of post-copy against the memory's size."""
    cases = []
    for setting, runs in by_setting(results, "memory").items():
        still = ends(runs, "post-copy", lambda cell: cell.memory, downtime)
        if still is None:
            continue
        sizes = [one.cell.memory for one in runs if series_of(one).strategy == "post-copy"]
        numbers = (
            f"From {size(min(sizes))} to {size(max(sizes))} of memory, post-copy's downtime went "
            f"{still.words(duration)}"
        )
        cases.append(Case(setting, not still.grew, numbers, max(sizes) / min(sizes)))
    claim = "Post-copy's downtime does not grow with the memory"
    return conclude(claim, cases, "runs of post-copy with two sizes of memory", ["memory"])


def each_page_once(results: Sequence[Result]) -> Finding:
    """Pages that post-copy sent a second time."""
    claim = "Post-copy sends each page once"
    runs = [
        (one.pages_sent, one.pages_resent)
        for one in results
        if one.cell.strategy == "post-copy" and one.pages_sent is not None and one.pages_resent is not None
    ]
    if not runs:
        return Finding(claim, Outcome.UNKNOWN, "This needs runs of post-copy that count the pages sent twice.")
    sent, again = sum(run[0] for run in runs), sum(run[1] for run in runs)
    where = f"in {len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    if not again:
        return Finding(claim, Outcome.HOLDS, f"Of {sent:,} pages that it sent {where}, none went a second time.")
    several = sum(1 for run in runs if run[1])
    share = f"{plain(again / sent * 100, 2)} %" if sent else "more than were sent"
    sentence = f"Of {sent:,} pages that it sent {where}, {again:,} ({share}) went again, in {several} of the runs."
    return Finding(claim, Outcome.FAILS, sentence)


def few_network_faults(results: Sequence[Result]) -> Finding:
    """Faults over the network for each page of the working set, under post-copy."""
    cases = []
    for setting, runs in by_setting(results).items():
        shares = known((one for one in runs if one.cell.strategy == "post-copy"), fault_share)
        if not shares:
            continue
        faults = median_of((one for one in runs if one.cell.strategy == "post-copy"), network_faults)
        share = spread(shares).median
        numbers = (
            f"Under post-copy {plain(faults or 0, 6)} faults went over the network, {plain(share * 100, 2)} % of the "
            "working set's pages"
        )
        cases.append(Case(setting, share <= WELL_BELOW_A_FIFTH, numbers, share))
    return conclude(
        f"Prefetch keeps network faults well below a fifth of the working set's pages ({HINES_GOPALAN}; "
        f"here: at most {WELL_BELOW_A_FIFTH * 100:.0f} %)",
        cases,
        "runs of post-copy whose workload tells its working set",
    )


def smallest_dip(results: Sequence[Result]) -> Finding:
    """What the dip cost under hybrid, beside post-copy and pre-copy."""
    cases = []
    for setting, runs in by_setting(results).items():
        lost = {series.strategy: median_of(group, dip_ms) for series, group in by_series(runs).items()}
        losses = {strategy: value for strategy, value in lost.items() if value is not None}
        if not {"hybrid", "post-copy", "pre-copy"} <= losses.keys():
            continue
        rest = {strategy: value for strategy, value in losses.items() if strategy != "hybrid"}
        deepest = median_of((one for one in runs if one.cell.strategy == "hybrid"), depth)
        beside = ", ".join(f"{strategy} {duration(value)}" for strategy, value in rest.items())
        lowest = "" if deepest is None else f" (at its lowest {plain(deepest * 100)} % below the old speed)"
        numbers = (
            f"Between freeze and recovery hybrid lost the work of {duration(losses['hybrid'])} at the old "
            f"speed{lowest}, {beside}"
        )
        margin = losses["hybrid"] - min(rest.values())
        cases.append(Case(setting, margin <= 0, numbers, abs(margin)))
    claim = "Hybrid has the smallest dip, counted as work lost between freeze and recovery"
    return conclude(claim, cases, "runs of hybrid, post-copy and pre-copy under the same setting")
