"""Figures with a row for each strategy: recovery and work lost, processor time and memory of the commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from live_migration.experiments import drawing
from live_migration.experiments.figures_sweep import empty
from live_migration.experiments.quantities import duration, plain, shortened, size
from live_migration.experiments.results import Cost, Floor, Result
from live_migration.experiments.summary import Panel, Series, by_series, known, migrations, panels, spread

SIDES = {"serve": "lm-serve", "restore": "lm-restore"}


@dataclass(frozen=True)
class Column:
    """A quantity along the x axis of a column of panels."""

    value: Callable[[Result], float | None]
    label: str
    words: Callable[[float], str]
    nothing: str
    """What is said of a value of 0, which has no place on the logarithmic axis."""


@dataclass(frozen=True)
class Need:
    """Something that a command uses, and the ticks of an axis that ends at a value."""

    value: Callable[[Cost], float]
    label: str
    words: Callable[[float], str]
    ticks: Callable[[float], list[float]]


def seconds(value: float) -> str:
    """1.9 s."""
    return f"{plain(value)} s"


NEEDS = (
    Need(lambda cost: cost.cpu_seconds, "processor time", seconds, drawing.round_ticks),
    Need(lambda cost: float(cost.memory), "largest resident size", size, drawing.binary_ticks),
)


def recovered_ms(result: Result) -> float | None:
    """Until 95 % of the old speed."""
    return result.speed.recovered_ms if result.speed is not None else None


def lost_operations(result: Result) -> float | None:
    """Operations that were not done."""
    return result.speed.lost if result.speed is not None else None


RECOVERY = (
    Column(recovered_ms, "time to 95 % of the old speed (log scale)", duration, "at once"),
    Column(lost_operations, "operations lost (log scale)", shortened, "none"),
)


def has_speed(result: Result) -> float | None:
    """1 for a run that knows its speed."""
    return 1.0 if result.speed is not None else None


def rows_of(axes: Axes, groups: dict[Series, list[Result]]) -> None:
    """The names of the strategies on the y axis, the first one on top."""
    axes.set_yticks(range(len(groups)), [series.label for series in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def draw_row(
    axes: Axes, place: float, values: Sequence[float], style: drawing.Style, words: Callable[[float], str],
    beside: bool = False,
) -> None:  # fmt: skip
    """All values pale, the median with its quartiles, and the median in words, above it or `beside` it."""
    jitter = drawing.fan(len(values), 0.22)
    axes.plot(values, [place + one for one in jitter], style.marker, color=style.color, alpha=drawing.PALE,
              markersize=3, markeredgewidth=0, zorder=2.5)  # fmt: skip
    middle = spread(values)
    axes.errorbar([middle.median], [place], xerr=[[middle.median - middle.low], [middle.high - middle.median]],
                  color=style.color, marker=style.marker, markersize=6.5, markeredgewidth=0.6, markeredgecolor="white",
                  capsize=2.5, elinewidth=1.1, linestyle="none", zorder=3)  # fmt: skip
    at, across, up = (max(middle.high, *values), "left", "center") if beside else (middle.median, "center", "baseline")
    axes.annotate(words(middle.median), (at, place), xytext=(6, 0) if beside else (0, 7), textcoords="offset points",
                  fontsize=7.5, ha=across, va=up, color="#333333", zorder=4)  # fmt: skip


def recovery(results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]) -> Figure:
    """Time to 95 % of the old speed and operations lost, for each strategy, a row of panels for each workload."""
    title = "Recovery: time to 95 % of the old speed, and operations lost"
    shown = panels(migrations(results), has_speed, None, ("workload",))
    if not shown:
        return empty(title, "no verified run counts its operations through time")
    tall = max(len(by_series(panel.results)) for panel in shown)
    figure, grid = drawing.canvas(len(shown), 2, 0.75 + 0.42 * tall)
    never = False
    for row, panel in zip(grid, shown, strict=True):
        never = recovery_row(row, panel, order) or never
    mark = Line2D([], [], color="#444444", marker=">", linestyle="none", markersize=6,
                  label="at the right edge: not recovered within the record")  # fmt: skip
    drawing.head(figure, title, [mark] if never else [])
    return figure


def recovery_row(row: Sequence[Axes], panel: Panel, order: Sequence[Series]) -> bool:
    """Both panels of a workload. Returns whether a run never recovered."""
    groups = by_series(panel.results)
    never = False
    for axes, column in zip(row, RECOVERY, strict=True):
        everything = known(panel.results, column.value)
        smallest = min((value for value in everything if value > 0), default=1.0)
        # Nothing lost, or recovered within the first step: less than the smallest that was measured.
        shown = [value if value > 0 else smallest / 2 for value in everything]
        room = [max(shown, default=1.0) * 2, min(shown, default=1.0) / 1.5]  # for the words beside the marks
        drawing.log_axis(axes.xaxis, [*shown, *room], column.words, 5)
        for place, (series, results) in enumerate(groups.items()):
            values = known(results, column.value)
            style = drawing.style_of(series, order)
            if values:
                draw_row(axes, place, [value if value > 0 else smallest / 2 for value in values], style,
                         words_of(column, smallest))  # fmt: skip
            missing = len(results) - len(values)
            if missing:
                never = True
                words = "" if missing == 1 and len(results) == 1 else f"{missing} of {len(results)} "
                axes.plot([0.985], [place], ">", color=style.color, markersize=6, clip_on=False,
                          transform=axes.get_yaxis_transform(), zorder=4)  # fmt: skip
                axes.annotate(f"{words}not", (0.965, place), xycoords=axes.get_yaxis_transform(), ha="right",
                              va="center", fontsize=7.5, color="#333333")  # fmt: skip
        rows_of(axes, groups)
        axes.set(xlabel=column.label, title=panel.setting.words() if axes is row[0] else "")
    row[1].tick_params(labelleft=False)
    return never


def words_of(column: Column, smallest: float) -> Callable[[float], str]:
    """A value in words; those drawn below the smallest stand for 0."""
    return lambda value: column.nothing if value < smallest else column.words(value)


def in_order(name: str) -> tuple[int, str]:
    """Our own commands first, as they are started."""
    return (list(SIDES).index(name) if name in SIDES else len(SIDES), name)


def named(need: Need, name: str, value: float) -> str:
    """What a command needs, in words."""
    return f"{SIDES.get(name, name)} {need.words(value)}"


def costs(results: Sequence[Result], order: Sequence[Series], floors: Callable[[str], Floor | None]) -> Figure:
    """Processor time and largest resident size of the commands on both sides."""
    title = "What the commands themselves need"
    shown = panels(migrations(results), lambda one: 1.0 if one.costs else None, None, ("workload", "link"))
    if not shown:
        return empty(title, "no verified run tells what the commands used")
    # One setting is enough here: the one with most runs.
    panel = max(shown, key=lambda one: len(one.results))
    groups = by_series(panel.results)
    figure, grid = drawing.canvas(1, 2, 0.9 + 0.66 * len(groups))
    for axes, need in zip(grid[0], NEEDS, strict=True):
        most = 0.0
        for place, (series, runs) in enumerate(groups.items()):
            names = sorted({name for one in runs for name in one.costs}, key=in_order)
            style = drawing.style_of(series, order)
            for number, name in enumerate(names):
                values = [need.value(one.costs[name]) for one in runs if name in one.costs]
                offset = ((number + 0.5) / len(names) - 0.5) * 0.8
                draw_row(axes, place + offset, values, style, partial(named, need, name), beside=True)
                most = max([most, *values])
        rows_of(axes, groups)
        axes.set(xlabel=need.label, title=panel.setting.words() if axes is grid[0][0] else "")
        # Room for the words beside the last mark.
        top = most * 1.6 or 1.0
        axes.set_xlim(0, top)
        ticks = need.ticks(top)
        axes.set_xticks(ticks, [need.words(tick) if tick else "0" for tick in ticks])
    grid[0][1].tick_params(labelleft=False)
    drawing.head(figure, title, [])
    return figure
