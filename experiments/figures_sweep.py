"""Figures of a quantity against what was swept: memory, dirty rate, link. One panel for each workload and link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from live_migration.experiments import drawing
from live_migration.experiments.quantities import (
    PAGE,
    dirty_words,
    downtime,
    duration,
    link_rate,
    page_multiple,
    size,
    times,
)
from live_migration.experiments.results import Floor, Link, Result
from live_migration.experiments.summary import Panel, Series, Value, by_series, median_of, migrations, panels

HEIGHT = 2.55


@dataclass(frozen=True)
class Measured:
    """A quantity on the y axis. `limit`: the floor's value for a panel, None where there is none."""

    value: Value
    label: str
    words: Callable[[float], str]
    log: bool
    limit: Callable[[Panel, Floor | None], float | None]
    binary: bool = False


def draw_panel(
    axes: Axes, panel: Panel, varied: str, scale: drawing.Scale, measured: Measured, order: Sequence[Series],
    floor: Floor | None, joined: bool = True,
) -> list[float]:  # fmt: skip
    """All series of a panel; returns every value that has to fit on the y axis."""
    groups = by_series(one for one in panel.results if measured.value(one) is not None)
    smallest = min((value for one in panel.results if (value := measured.value(one)) is not None and value > 0),
                   default=1.0)  # fmt: skip
    seen: list[float] = []
    for number, (series, results) in enumerate(groups.items()):
        points: dict[Any, list[float]] = {}
        for result in results:
            value = measured.value(result)
            assert value is not None
            # Zero has no place on a logarithmic axis: it is drawn below everything else.
            shown = value if value > 0 or not measured.log else smallest / 2
            points.setdefault(getattr(result.cell, varied), []).append(shown)
        drawing.spread_points(axes, scale, points, drawing.style_of(series, order), (number, len(groups)), joined)
        seen += [value for values in points.values() for value in values]
    limit = measured.limit(panel, floor)
    if limit is not None:
        drawing.floor_line(axes, limit)
        seen.append(limit)
    return seen


def finish(axes: Axes, scale: drawing.Scale, measured: Measured, seen: Sequence[float], title: str, label: str) -> None:
    """Axes, ticks and titles."""
    if measured.log:
        drawing.log_axis(axes.yaxis, seen, measured.words)
    else:
        drawing.from_zero(axes, seen, measured.words, measured.binary)
    scale.apply(axes)
    axes.grid(axis="x", visible=False)
    axes.set(title=title, xlabel=label, ylabel=measured.label)


def shown_series(shown: Sequence[Panel]) -> list[Series]:
    """The series of all panels, for the legend."""
    return list(by_series(result for panel in shown for result in panel.results))


def handles(shown: Sequence[Panel], order: Sequence[Series], joined: bool, limit: str | None) -> list[Line2D]:
    """The legend: each series, and the floor if a panel has one."""
    lines = [drawing.series_handle(series, drawing.style_of(series, order), joined) for series in shown_series(shown)]
    return lines + ([drawing.floor_handle(limit)] if limit else [])


def downtime_limit(panel: Panel, floor: Floor | None) -> float | None:
    """Freeze and resume of an empty process."""
    return floor.downtime_ms if floor else None


def total_limit(panel: Panel, floor: Floor | None) -> float | None:
    """The process's pages at the floor's bulk rate, milliseconds."""
    pages = median_of(panel.results, lambda one: one.pages)
    return pages * PAGE / floor.bulk_rate * 1000 if floor and pages and floor.bulk_rate > 0 else None


DOWNTIME = Measured(downtime, "downtime (log scale)", duration, True, downtime_limit)
TOTAL = Measured(lambda one: one.total_ms, "total time (log scale)", duration, True, total_limit)
PAGES = Measured(page_multiple, "pages sent / pages of the process", times, False, lambda panel, floor: 1.0)
BYTES = Measured(
    lambda one: one.wire_bytes, "bytes on the wire", size, False,
    lambda panel, floor: None if (pages := median_of(panel.results, lambda one: one.pages)) is None else pages * PAGE,
    binary=True,
)  # fmt: skip


def empty(title: str, sentence: str) -> Figure:
    """A figure for which no run has the data."""
    figure, grid = drawing.canvas(1, 1, 1.2)
    drawing.head(figure, title)
    drawing.nothing(grid[0][0], sentence)
    return figure


def of_panel(panel: Panel, varied: str) -> str:
    """What a panel holds fixed, in two short lines."""
    first = panel.setting.workload + (f" over {panel.setting.link}" if panel.setting.link else "")
    rest = panel.setting.words("workload", "link", varied)
    return "\n".join(drawing.wrapped(line) for line in (first, rest) if line)


def in_pairs(
    title: str, shown: Sequence[Panel], varied: str, scale: drawing.Scale, measured: Measured, label: str,
    order: Sequence[Series], floors: Callable[[str], Floor | None], limit: str, joined: bool = True,
) -> Figure:  # fmt: skip
    """Panels two beside each other, all with the same axes."""
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = drawing.canvas(rows, columns, HEIGHT + (0.35 if rows == 1 else 0), sharey=True)
    places = [axes for row in grid for axes in row]
    seen: list[float] = []
    limited = False
    for axes, panel in zip(places, shown, strict=False):
        floor = floors(panel.setting.link)
        seen += draw_panel(axes, panel, varied, scale, measured, order, floor, joined)
        limited = limited or measured.limit(panel, floor) is not None
    for place, (axes, panel) in enumerate(zip(places, shown, strict=False)):
        finish(axes, scale, measured, seen, of_panel(panel, varied), label)
        axes.label_outer(remove_inner_ticks=False)
        if place + columns >= len(shown):
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.set_xlabel(label)
    for axes in places[len(shown):]:  # fmt: skip
        axes.set_axis_off()
    drawing.head(figure, title, handles(shown, order, joined, limit if limited else None))
    return figure


def against_memory(results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]) -> Figure:
    """Downtime against the memory's size."""
    title = "Downtime against the memory's size"
    runs = migrations(results)
    shown = panels(runs, downtime, "memory", ("workload", "link"))
    if not shown:
        return empty(title, "no verified run tells a downtime")
    scale = drawing.swept([one.cell.memory for panel in shown for one in panel.results], size)
    return in_pairs(title, shown, "memory", scale, DOWNTIME, "memory of the workload (log scale)", order, floors,
                    "floor: an empty process")  # fmt: skip


def dirty_scale(shown: Sequence[Panel]) -> drawing.Scale:
    """The dirty rates of all panels."""
    return drawing.swept([one.cell.dirty_rate for panel in shown for one in panel.results], dirty_words)


def times_against_dirty_rate(
    results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]
) -> Figure:
    """Downtime and total time against the dirty rate, beside each other."""
    title = "Downtime and total time against the dirty rate"
    runs = migrations(results)
    shown = panels(runs, downtime, "dirty_rate", ("workload", "link"))
    if not shown:
        return empty(title, "no verified run tells a downtime")
    scale = dirty_scale(shown)
    columns = (DOWNTIME, TOTAL)
    height = HEIGHT + (0.35 if len(shown) == 1 else 0)
    figure, grid = drawing.canvas(len(shown), 2, height, sharex=True, sharey="col")
    seen: list[list[float]] = [[], []]
    for row, panel in zip(grid, shown, strict=True):
        for axes, measured, values in zip(row, columns, seen, strict=True):
            values += draw_panel(axes, panel, "dirty_rate", scale, measured, order, floors(panel.setting.link))
    for row, panel in zip(grid, shown, strict=True):
        for axes, measured, values in zip(row, columns, seen, strict=True):
            finish(axes, scale, measured, values, of_panel(panel, "dirty_rate"), "")
    for axes in grid[-1]:
        axes.set_xlabel("dirty rate of the workload (log scale)")
    limited = any(floors(panel.setting.link) is not None for panel in shown)
    limit = "floor: bare C pager" if limited else None
    drawing.head(figure, title, handles(shown, order, True, limit))
    return figure


def pages_against_dirty_rate(
    results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]
) -> Figure:
    """Pages sent, as a multiple of the process's, against the dirty rate."""
    title = "Pages transferred against the dirty rate"
    shown = panels(migrations(results), page_multiple, "dirty_rate", ("workload", "link"))
    if not shown:
        return empty(title, "no verified run counts the pages that were sent")
    return in_pairs(title, shown, "dirty_rate", dirty_scale(shown), PAGES, "dirty rate of the workload (log scale)",
                    order, floors, "each page once")  # fmt: skip


def speed_rank(link: Link) -> tuple[float, float, str]:
    """Slow links first; without a limit is the fastest."""
    return (link.asked_rate or float("inf"), -link.asked_rtt_ms, link.name)


def bytes_against_link(
    results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]
) -> Figure:
    """Bytes on the wire against the link, one panel for each workload."""
    title = "Bytes on the wire against the link"
    shown = panels(migrations(results), lambda one: one.wire_bytes, "link", ("workload",))
    if not shown:
        return empty(title, "no verified run counts the bytes on the wire")
    links = {one.cell.link: one.link for panel in shown for one in panel.results}
    names = sorted(links, key=lambda name: speed_rank(links[name]))

    def words(name: str) -> str:
        asked = links[name]
        if "=" in name:  # named by what was asked of it
            return drawing.wrapped(name, 14)
        round_trip = f"\n{duration(asked.asked_rtt_ms)}" if asked.asked_rtt_ms else ""
        return f"{drawing.wrapped(name, 14)}\n{link_rate(asked.asked_rate)}{round_trip}"

    return in_pairs(title, shown, "link", drawing.ranked(names, words), BYTES, "link, asked rate and round trip", order,
                    floors, "memory of the process", joined=False)  # fmt: skip

