"""Runs in groups: which series and which setting a run belongs to, medians with their spread, and which runs of a sweep
one panel shows. No drawing here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from live_migration.experiments.quantities import size, writing
from live_migration.experiments.results import Cell, Floor, Result

Value = Callable[[Result], float | None]

STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
NO_MIGRATION = "none"


@dataclass(frozen=True)
class Series:
    """What gets one colour and one marker: a strategy of ours, or of a peer."""

    peer: str
    strategy: str

    @property
    def label(self) -> str:
        """As the reader knows it."""
        if self.peer == NO_MIGRATION:
            return "no migration"
        return f"{self.peer.upper()} {self.strategy}" if self.peer else self.strategy

    def rank(self) -> tuple[int, str, int, str]:
        """Ours before the peers', in the order of STRATEGIES."""
        place = STRATEGIES.index(self.strategy) if self.strategy in STRATEGIES else len(STRATEGIES)
        return (2 if self.peer == NO_MIGRATION else 1 if self.peer else 0, self.peer, place, self.strategy)


@dataclass(frozen=True)
class Setting:
    """What the strategies are compared under. `workload` with its settings that are not the usual ones, `memory` in
    bytes, `dirty_rate` in bytes per second or None."""

    workload: str
    link: str
    memory: int
    dirty_rate: int | None

    def words(self, *without: str) -> str:
        """`toucher, 512 MiB, writing 10 MiB/s, over 1gbit`, without the fields that are named."""
        parts = {
            "workload": self.workload,
            "memory": size(self.memory),
            "dirty_rate": writing(self.dirty_rate),
            "link": f"over {self.link}",
        }
        return ", ".join(text for name, text in parts.items() if text and name not in without)

    def rank(self) -> tuple[str, str, int, int]:
        """For an order that does not depend on the runs' order."""
        return (self.workload, self.link, self.memory, -1 if self.dirty_rate is None else self.dirty_rate)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `count` values."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Panel:
    """The runs that one panel shows, all of one setting but for what the panel varies."""

    setting: Setting
    results: list[Result]


def series_of(result: Result) -> Series:
    """The run's series."""
    return Series(result.cell.peer, result.cell.strategy if result.cell.peer != NO_MIGRATION else "")


def setting_of(cell: Cell) -> Setting:
    """The cell's setting."""
    workload = f"{cell.workload} ({cell.variant.replace(',', ', ')})" if cell.variant else cell.workload
    return Setting(workload, cell.link, cell.memory, cell.dirty_rate)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of one value all three are that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def known(results: Iterable[Result], value: Value) -> list[float]:
    """The value of every run that tells it."""
    return [found for result in results if (found := value(result)) is not None]


def median_of(results: Iterable[Result], value: Value) -> float | None:
    """The median over the runs that tell it, None if none does."""
    values = known(results, value)
    return statistics.median(values) if values else None


def by_series(results: Iterable[Result]) -> dict[Series, list[Result]]:
    """Runs by series, in the order of the legend."""
    groups: dict[Series, list[Result]] = {}
    for result in results:
        groups.setdefault(series_of(result), []).append(result)
    return {series: groups[series] for series in sorted(groups, key=Series.rank)}


def by_setting(results: Iterable[Result], *without: str) -> dict[Setting, list[Result]]:
    """Runs by setting, in order; fields that are named do not tell settings apart (they are empty in the key)."""
    empty: dict[str, object] = {"workload": "", "link": "", "memory": 0, "dirty_rate": None}
    groups: dict[Setting, list[Result]] = {}
    for result in results:
        setting = replace(setting_of(result.cell), **{name: empty[name] for name in without})  # type: ignore[arg-type]
        groups.setdefault(setting, []).append(result)
    return {setting: groups[setting] for setting in sorted(groups, key=Setting.rank)}


def migrations(results: Iterable[Result], peers: bool = True) -> list[Result]:
    """Without the runs in which nothing was migrated; without the peers' too if `peers` is false."""
    return [one for one in results if one.cell.peer != NO_MIGRATION and (peers or not one.cell.peer)]


def fullest(results: Iterable[Result], value: Value, varied: str | None = None) -> Panel | None:
    """The runs of one setting, `varied` aside: of all settings the one in which most points are known (a point is a
    series at one place of the axis), then the one with most runs; among equals the middle one.

    One figure cannot show a whole sweep; the others are in the table of runs."""
    groups = by_setting([one for one in results if value(one) is not None], *([varied] if varied else []))

    def fullness(setting: Setting) -> tuple[int, int]:
        places = {(series_of(one), getattr(one.cell, varied) if varied else 0) for one in groups[setting]}
        return len(places), len(groups[setting])

    if not groups:
        return None
    best = max(fullness(setting) for setting in groups)
    equals = [setting for setting in groups if fullness(setting) == best]
    chosen = equals[len(equals) // 2]
    return Panel(chosen, groups[chosen])


def panels(results: Sequence[Result], value: Value, varied: str | None, by: Sequence[str]) -> list[Panel]:
    """One panel for each value of the fields `by` (workload, link), each with its fullest setting. Where one of them
    has several places on the axis, those with a single place are left out."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(getattr(setting_of(result.cell), name) for name in by), []).append(result)
    found = [fullest(groups[key], value, varied) for key in sorted(groups)]
    shown = [panel for panel in found if panel is not None]
    if varied is None:
        return shown
    return [one for one in shown if len({getattr(run.cell, varied) for run in one.results}) > 1] or shown


def floor_of(floors: Sequence[Floor], link: str) -> Floor | None:
    """The floor over a link: of several measurements the medians."""
    same = [floor for floor in floors if floor.link.name == link]
    if not same:
        return None
    return Floor(
        link=same[-1].link,
        machine=same[-1].machine,
        fault_p50_us=statistics.median(one.fault_p50_us for one in same),
        fault_p99_us=statistics.median(one.fault_p99_us for one in same),
        bulk_rate=statistics.median(one.bulk_rate for one in same),
        downtime_ms=statistics.median(one.downtime_ms for one in same),
    )
