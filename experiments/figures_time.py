"""Figures of one run through time and of fault latencies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from live_migration.experiments import drawing
from live_migration.experiments.figures_sweep import empty
from live_migration.experiments.quantities import duration, latency, lost_ms, plain, round_times, shortened
from live_migration.experiments.results import Floor, Histogram, Result
from live_migration.experiments.summary import Panel, Series, by_series, panels, series_of

STEPS = 350
"""Points along a timeline; more would not be seen, and the page would grow with every second of a run."""
STILL = "#f6d9c4"
ROUND = ("#dcebf5", "#c3dcee")
PATIENCE = 1.6
"""Peers get this many times the time axis that our own strategies need; what is beyond is named at its edge."""


@dataclass(frozen=True)
class Window:
    """What of the time is shown, milliseconds from the resume."""

    begin: float
    end: float


@dataclass(frozen=True)
class Line:
    """Operations per second through time: means of equal steps and what they were between."""

    at: list[float]
    mean: list[float]
    least: list[float]
    most: list[float]


def has_timeline(result: Result) -> float | None:
    """1 for a run with a timeline."""
    return 1.0 if result.speed is not None and result.speed.timeline and result.speed.step_ms > 0 else None


def typical(results: Sequence[Result]) -> Result:
    """Of several runs the one whose lost work is the median's, or just below."""
    ordered = sorted(results, key=lambda one: (lost_ms(one) or 0.0, one.cell.run))
    return ordered[(len(ordered) - 1) // 2]


def bins(result: Result, window: Window) -> Line:
    """The timeline within the window, in at most STEPS steps; none of its dips is lost in that."""
    speed = result.speed
    assert speed is not None
    samples = [(at, count / speed.step_ms * 1000) for at, count in speed.timeline
               if window.begin - speed.step_ms <= at <= window.end]  # fmt: skip
    together = max(1, math.ceil(len(samples) / STEPS))
    line = Line([], [], [], [])
    for first in range(0, len(samples), together):
        group = [value for _, value in samples[first : first + together]]
        line.at.append(samples[first][0])
        line.mean.append(statistics.fmean(group))
        line.least.append(min(group))
        line.most.append(max(group))
    if samples:  # a last point, so that the last step has its width
        line.at.append(samples[-1][0] + speed.step_ms)
        for values in (line.mean, line.least, line.most):
            values.append(values[-1])
    return line


def begin_of(result: Result) -> float:
    """When the migration began, or froze the process if that is all that is known."""
    return min(result.moments_ms.get("start", 0.0), result.moments_ms.get("frozen", 0.0), 0.0)


def end_of(result: Result) -> float:
    """When the last thing happened that the figure is about."""
    recovered = result.speed.recovered_ms if result.speed is not None else None
    return max(0.0, result.moments_ms.get("complete", 0.0), recovered or 0.0)


def window_of(results: Sequence[Result]) -> Window:
    """The time that all rows of a column show."""

    known = [at for one in results if one.speed is not None for at, _ in one.speed.timeline]
    if not any(one.moments_ms for one in results):
        return Window(min(known), max(known) + 1.0)
    ours = [one for one in results if not one.cell.peer] or results

    def needed(what: Callable[[Result], float]) -> float:
        return min(max(what(one) for one in results), PATIENCE * max(what(one) for one in ours))

    before, after = needed(lambda one: -begin_of(one)), needed(end_of)
    length = max(before + after, 4 * max(one.speed.step_ms for one in results if one.speed is not None))
    begin, end = -before - 0.12 * length, after + 0.18 * length
    return Window(max(begin, min(known)), max(min(end, max(known)), length * 0.05))


def mark_moments(axes: Axes, result: Result, window: Window) -> None:
    """Rounds, the time without progress, and when the last page was there."""
    frozen, complete = result.moments_ms.get("frozen"), result.moments_ms.get("complete")
    if frozen is not None:
        axes.axvspan(max(frozen, window.begin), 0, color=STILL, linewidth=0, zorder=0.5)
        axes.axvline(max(frozen, window.begin), color="#b5582a", linewidth=0.8, zorder=0.6)
        # How long each round took is known; they come one after the other, and the last one ends with the freeze.
        end = frozen
        for number, length in reversed(list(enumerate(round_times(result)))):
            if end > window.begin:
                axes.axvspan(max(end - length, window.begin), end, color=ROUND[number % 2], linewidth=0, zorder=0.4)
            end -= length
    if result.moments_ms:
        axes.axvline(0, color="#222222", linewidth=0.8, zorder=0.7)
    if complete is not None and window.begin < complete <= window.end:
        axes.axvline(complete, color="#222222", linewidth=1.1, linestyle=(0, (1, 1.3)), zorder=1.6)


def beyond(result: Result, window: Window) -> str:
    """What lies outside of the time axis, in words."""
    words = []
    frozen, complete = result.moments_ms.get("frozen"), result.moments_ms.get("complete")
    if frozen is not None and frozen < window.begin:
        words.append(f"frozen for {duration(-frozen)}")
    if complete is not None and complete > window.end:
        words.append(f"last page after {duration(complete)}")
    return ", ".join(words)


def draw_timeline(axes: Axes, results: Sequence[Result], series: Series, style: drawing.Style, window: Window) -> float:
    """One row: the typical run, the others pale behind it. Returns the largest speed."""
    shown = typical(results)
    mark_moments(axes, shown, window)
    most = 0.0
    for result in results:
        line = bins(result, window)
        if result is shown:
            axes.fill_between(line.at, line.least, line.most, step="post", color=style.color, alpha=0.22, linewidth=0)
            axes.step(line.at, line.mean, where="post", color=style.color, linewidth=1.2, zorder=3)
        else:
            axes.step(line.at, line.mean, where="post", color=style.color, linewidth=0.5, alpha=0.25, zorder=2)
        most = max([most, *line.mean])
    assert shown.speed is not None
    if shown.speed.before > 0:
        axes.axhline(0.95 * shown.speed.before, color="#777777", linewidth=0.7, linestyle=(0, (3, 3)), zorder=1.2)
    axes.set_title(series.label, color=style.color, fontweight="bold")
    if words := beyond(shown, window):
        axes.set_title(words, loc="right", fontsize=7.5, color="#444444")
    return most


def throughput(results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]) -> Figure:
    """Operations per second through time, the strategies above each other, a column for each workload."""
    title = "Throughput through time"
    shown = panels(results, has_timeline, None, ("workload",))
    if not shown:
        return empty(title, "no verified run has a timeline of its operations")
    columns = min(2, len(shown))
    blocks = [shown[first : first + columns] for first in range(0, len(shown), columns)]
    rows = [list(by_series(run for panel in block for run in panel.results)) for block in blocks]
    heights = [len(series) for series in rows]
    figure, grid = drawing.canvas(sum(heights), columns, 1.12 if sum(heights) > 1 else 2.4)
    first = 0
    for block, series, height in zip(blocks, rows, heights, strict=True):
        for column in range(columns):
            places = [row[column] for row in grid[first : first + height]]
            if column < len(block):
                fill_column(places, series, block[column], order)
            else:
                for axes in places:
                    axes.set_axis_off()
        first += height
    figure.supylabel("operations per second", fontsize=8.5)
    drawing.head(figure, title, moment_handles([result for panel in shown for result in panel.results]))
    return figure


def fill_column(places: Sequence[Axes], rows: Sequence[Series], panel: Panel, order: Sequence[Series]) -> None:
    """The strategies of one workload, sharing both axes; a row for those too that only its neighbour has."""
    groups = by_series(panel.results)
    # A run without a migration has no time at which it could have ended; the others say what is worth showing.
    moved = [one for one in panel.results if one.moments_ms] or panel.results
    window = window_of(moved)
    most = 0.0
    for axes, series in zip(places, rows, strict=True):
        if series in groups:
            most = max(most, draw_timeline(axes, groups[series], series, drawing.style_of(series, order), window))
        else:
            axes.set_title(f"{series.label}: not measured", color="#777777")
    unit, name = (1000, "s") if window.end - window.begin >= 2000 else (1, "ms")
    for axes in places:
        axes.set_xlim(window.begin, window.end)
        axes.set_ylim(0, most * 1.1 or 1)
        axes.yaxis.set_major_formatter(lambda value, _: shortened(value))
        axes.yaxis.set_major_locator(drawing.few_ticks(3))
        axes.xaxis.set_major_locator(drawing.few_ticks(7))
        axes.xaxis.set_major_formatter(lambda value, _: plain(value / unit))
        axes.tick_params(labelbottom=axes is places[-1])
    places[-1].set_xlabel(f"time from the resume, {name}\n{panel.setting.words()}")


def moment_handles(results: Sequence[Result]) -> list[Line2D | Patch]:
    """What the marks mean."""
    marks: list[Line2D | Patch] = []
    if any(one.rounds for one in results):
        marks.append(Patch(color=ROUND[1], label="rounds while it runs at the source"))
    marks += [
        Patch(color=STILL, label="frozen"),
        Line2D([], [], color="#222222", linewidth=0.8, label="resumed (0)"),
        Line2D([], [], color="#222222", linewidth=1.1, linestyle=(0, (1, 1.3)), label="last page there"),
        Line2D([], [], color="#777777", linewidth=0.7, linestyle=(0, (3, 3)), label="95 % of the old speed"),
    ]
    return marks


def merged(results: Sequence[Result]) -> list[tuple[float, float]]:
    """(microseconds, share of all faults up to it) over the histograms of several runs."""
    counts: dict[float, int] = {}
    for result in results:
        for value, count in result.faults.buckets:
            counts[value] = counts.get(value, 0) + count
    total, points, sofar = sum(counts.values()), [], 0
    for value in sorted(counts):
        sofar += counts[value]
        points.append((value, sofar / total))
    return points


def quantile_points(faults: Histogram) -> list[tuple[float, float]]:
    """What is left of a distribution whose buckets are not known: its quantiles."""
    return [(faults.p50_us, 0.5), (faults.p90_us, 0.9), (faults.p99_us, 0.99), (faults.max_us, 1.0)]


def has_faults(result: Result) -> float | None:
    """The number of faults over the network; None if there was none, or nothing is known of how long they took."""
    known = any(count for _, count in result.faults.buckets) or result.faults.p50_us > 0
    return float(result.faults.count) if result.faults.count and known else None


def fault_latency(results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]) -> Figure:
    """The distribution of fault latencies, all runs of a series together, beside the floor's median and p99."""
    title = "Latency of faults over the network"
    shown = panels(results, has_faults, None, ("workload", "link"))
    if not shown:
        return empty(title, "no verified run had a fault over the network")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = drawing.canvas(rows, columns, 2.55 if rows > 1 else 2.9, sharex=True, sharey=True)
    places = [axes for row in grid for axes in row]
    seen: list[float] = []
    limited = False
    for axes, panel in zip(places, shown, strict=False):
        floor = floors(panel.setting.link)
        for series, group in by_series(panel.results).items():
            style = drawing.style_of(series, order)
            counted = [one for one in group if any(count for _, count in one.faults.buckets)]
            points = merged(counted) if counted else quantile_points(drawing_median(group))
            at, share = [point[0] for point in points], [point[1] for point in points]
            axes.plot([at[0], *at], [0.0, *share], color=style.color, linestyle=style.line,
                      drawstyle="steps-post" if counted else "default", zorder=3)  # fmt: skip
            for wanted in (0.5, 0.99):
                place = next((value for value, sofar in points if sofar >= wanted), at[-1])
                axes.plot([place], [wanted], style.marker, color=style.color, markersize=5.5,
                          markeredgecolor="white", markeredgewidth=0.6, zorder=4)  # fmt: skip
            seen += at
        if floor is not None:
            limited = True
            for value, name, side in ((floor.fault_p50_us, "p50", "right"), (floor.fault_p99_us, "p99", "left")):
                drawing.floor_line(axes, value, upright=True)
                axes.annotate(name, (value, 0.03), xytext=(2 if side == "left" else -2, 0), ha=side,
                              textcoords="offset points", fontsize=7.5, color=drawing.FLOOR)  # fmt: skip
                seen.append(value / 1.4)  # room for its name
    for place, axes in enumerate(places):
        if place >= len(shown):
            axes.set_axis_off()
            continue
        finish_distribution(axes, shown[place], seen)
        axes.label_outer(remove_inner_ticks=False)
        if place + columns >= len(shown):
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.set_xlabel("latency of a fault (log scale)")
    order_shown = sorted({series_of(one) for panel in shown for one in panel.results}, key=Series.rank)
    lines = [drawing.series_handle(series, drawing.style_of(series, order)) for series in order_shown]
    if limited:
        lines.append(drawing.floor_handle("floor's p50 and p99"))
    drawing.head(figure, title, lines)
    return figure


def drawing_median(results: Sequence[Result]) -> Histogram:
    """The histogram of the run with the middle p50."""
    ordered = sorted(results, key=lambda one: one.faults.p50_us)
    return ordered[(len(ordered) - 1) // 2].faults


def finish_distribution(axes: Axes, panel: Panel, seen: Sequence[float]) -> None:
    """Axes of a panel of the distribution."""
    drawing.log_axis(axes.xaxis, seen, latency)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.99], ["0 %", "25 %", "50 %", "75 %", "99 %"])
    setting = panel.setting
    lines = (f"{setting.workload} over {setting.link}", setting.words("workload", "link"))
    axes.set(title="\n".join(drawing.wrapped(line) for line in lines), xlabel="latency of a fault (log scale)",
             ylabel="faults that took at most this")  # fmt: skip
