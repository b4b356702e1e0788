"""How the figures look: colours, markers, axes, points with their spread, and files that come out the same each time.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers can tell apart; marker and
line style say the same once more, for print without colour.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter
from PIL import Image

from live_migration.experiments.summary import NO_MIGRATION, Series, spread

WIDTH = 7.4
"""Inches; on the page a figure is as wide as the text, so that its letters have nearly the text's size."""
DOTS_PER_INCH = 160
FLOOR = "#555555"
PALE = 0.45
TITLE_SIZE = 10.5

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.5,
    "text.parse_math": False,  # a name with two dollar signs is a name
}


@dataclass(frozen=True)
class Style:
    """Colour, marker and line style of a series."""

    color: str
    marker: str
    line: Any
    """As matplotlib wants it: a name, or (offset, (ink, gap, ink, gap))."""


STYLES = {
    ("", "post-copy"): Style("#0072B2", "o", "-"),
    ("", "hybrid"): Style("#009E73", "D", (0, (7, 2))),
    ("", "pre-copy"): Style("#D55E00", "s", (0, (4, 2))),
    ("", "stop-and-copy"): Style("#000000", "^", (0, (5, 1.5, 1, 1.5))),
    ("criu", "lazy-pages"): Style("#CC79A7", "v", (0, (1, 1.2))),
    ("criu", "stop-and-copy"): Style("#E69F00", "P", (0, (3, 1, 1, 1, 1, 1))),
}
OTHERS = (Style("#56B4E9", "X", (0, (2, 2))), Style("#E69F00", "*", (0, (6, 1, 1, 1))), Style("#CC79A7", "<", "-"))
NOTHING_MOVED = Style("#999999", "h", "-")


def style_of(series: Series, everything: Sequence[Series]) -> Style:
    """The same style for a series in every figure of a report."""
    if series.peer == NO_MIGRATION:
        return NOTHING_MOVED
    if (known := STYLES.get((series.peer, series.strategy))) is not None:
        return known
    unknown = [one for one in everything if (one.peer, one.strategy) not in STYLES and one.peer != NO_MIGRATION]
    return OTHERS[unknown.index(series) % len(OTHERS)]


@contextmanager
def style() -> Iterator[None]:
    """Everything in it is drawn with the settings above, whatever the user's own matplotlibrc says."""
    # Its stubs name every parameter and differ from version to version.
    parameters: Any = matplotlib.rcParams
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in SETTINGS.items():
            parameters[name] = value
        yield


def canvas(rows: int, columns: int, height: float, **more: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of panels, each `height` inches high, with room for title and legend."""
    figure = Figure(figsize=(WIDTH, rows * height + 0.75), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    return figure, [list(row) for row in axes]


def head(figure: Figure, title: str, handles: Sequence[Artist] = ()) -> None:
    """The title, and below it the legend, where it covers no data."""
    if not handles:
        figure.suptitle(title, x=0.012, ha="left", fontsize=TITLE_SIZE, fontweight="bold")
        return
    lengths = [len(str(handle.get_label())) for handle in handles]
    columns = next(count for count in range(len(handles), 0, -1) if count == 1 or legend_width(lengths, count) <= WIDTH)
    # The title belongs to the legend: a layout with both outside of the panels would draw one over the other.
    box = figure.legend(handles=list(handles), loc="outside upper left", ncols=columns, title=title, alignment="left",
                        columnspacing=1.4, borderaxespad=0.3, borderpad=0.2)  # fmt: skip
    box.get_title().set(fontsize=TITLE_SIZE, fontweight="bold")


def legend_width(lengths: Sequence[int], columns: int) -> float:
    """Inches that a legend with labels of so many letters takes, estimated; it is filled column by column."""
    rows, longer = divmod(len(lengths), columns)
    ends = itertools.accumulate(rows + (1 if column < longer else 0) for column in range(columns))
    starts = [0, *ends]
    return sum(0.64 + 0.068 * max(lengths[begin:end]) for begin, end in itertools.pairwise(starts))


def series_handle(series: Series, style: Style, joined: bool = True) -> Line2D:
    """The line of a legend that stands for a series."""
    line: Any = style.line if joined else "none"
    return Line2D([], [], color=style.color, marker=style.marker, linestyle=line, markersize=5.5, label=series.label)


def floor_handle(label: str = "floor: bare C pager") -> Line2D:
    """The line of a legend that stands for the floor."""
    return Line2D([], [], color=FLOOR, linestyle=(0, (2, 1.5)), linewidth=1.2, label=label)


def floor_line(axes: Axes, value: float, upright: bool = False) -> None:
    """The limit of this machine and link, across the panel."""
    draw = axes.axvline if upright else axes.axhline
    draw(value, color=FLOOR, linestyle=(0, (2, 1.5)), linewidth=1.2, zorder=1.5)


def wrapped(text: str, width: int = 48) -> str:
    """In lines that fit above a panel or below a tick, broken at spaces and commas: a link may be named by all that was
    asked of it, without a space."""
    lines = [""]
    for piece in re.findall(r"[^ ,]+[ ,]*|[ ,]+", text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def nothing(axes: Axes, sentence: str) -> None:
    """A panel for which there is no data says so."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color="#555555", transform=axes.transAxes, wrap=True)


def save(figure: Figure) -> bytes:
    """The figure as PNG, without dates and versions in it. It has a palette: a third of the size, and the same to
    the eye, since a figure's pixels are a few colours and the blends of these at edges."""
    painted, small = io.BytesIO(), io.BytesIO()
    figure.savefig(painted, format="png", dpi=DOTS_PER_INCH)
    pixels = Image.open(painted).convert("RGB")
    pixels.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


@dataclass(frozen=True)
class Scale:
    """Places along the x axis for the values that were swept, each with its label."""

    places: dict[Any, float]
    labels: dict[Any, str]

    @property
    def step(self) -> float:
        """The smallest distance between two places."""
        ordered = sorted(self.places.values())
        return min((after - before for before, after in itertools.pairwise(ordered)), default=1.0)

    def apply(self, axes: Axes) -> None:
        """Ticks at the values and nowhere else; of values too close for their labels only some get one."""
        ordered = sorted(self.places, key=lambda value: self.places[value])
        first, last = self.places[ordered[0]], self.places[ordered[-1]]
        room = max(last - first, 1.0) / 7
        shown: list[Any] = []
        for value in ordered:
            if not shown or self.places[value] - self.places[shown[-1]] >= room:
                shown.append(value)
        axes.set_xticks([self.places[value] for value in shown], [self.labels[value] for value in shown])
        margin = max(self.step * 0.55, (last - first) * 0.06)
        axes.set_xlim(first - margin, last + margin)


def swept(values: Sequence[float | None], words: Callable[[Any], str]) -> Scale:
    """A logarithmic axis through the values of a sweep. Zero, which has no logarithm, stands one step before the least,
    and None (a workload that writes as it likes) one step behind the largest."""
    positive = sorted({value for value in values if value})
    places: dict[Any, float] = {value: math.log2(value / positive[0]) for value in positive}
    step = max(1.0, places[positive[-1]] / (len(positive) - 1) if len(positive) > 1 else 1.0)
    if any(value == 0 for value in values):
        places[0] = -step
    if any(value is None for value in values):
        places[None] = (max(places.values()) if places else 0.0) + step
    return Scale(places, {value: words(value) for value in places})


def ranked(values: Sequence[str], words: Callable[[str], str]) -> Scale:
    """An axis with a place for each name, in the order given."""
    return Scale({value: float(place) for place, value in enumerate(values)}, {value: words(value) for value in values})


def spread_points(
    axes: Axes, scale: Scale, points: dict[Any, list[float]], style: Style, slot: tuple[int, int], joined: bool
) -> None:
    """Every value as a pale point, medians joined by a line, quartiles as whiskers. `slot`: (number, of how many):
    series stand beside each other, so that none hides another."""
    number, several = slot
    # Where the axis has a measure, as little beside their place as keeps them apart.
    width = scale.step * min(0.6, (0.07 if joined else 0.16) * several)
    shift = ((number + 0.5) / several - 0.5) * width if several > 1 else 0.0
    ordered = sorted(points, key=lambda value: scale.places[value])
    centers = [scale.places[value] + shift for value in ordered]
    for value, center in zip(ordered, centers, strict=True):
        jitter = fan(len(points[value]), width / several * 0.5 if several > 1 else scale.step * 0.05)
        axes.plot([center + one for one in jitter], points[value], style.marker, color=style.color,
                  alpha=PALE, markersize=3, markeredgewidth=0, zorder=2.5)  # fmt: skip
    middle = [spread(points[value]) for value in ordered]
    axes.errorbar(centers, [one.median for one in middle],
                  yerr=[[one.median - one.low for one in middle], [one.high - one.median for one in middle]],
                  color=style.color, marker=style.marker, markersize=5.5, markeredgecolor="white",
                  markeredgewidth=0.6, linestyle=style.line if joined else "none", capsize=2.5,
                  elinewidth=1.1, zorder=3)  # fmt: skip


def fan(count: int, width: float) -> list[float]:
    """Offsets that keep points of the same place apart."""
    return [((place + 0.5) / count - 0.5) * width for place in range(count)]


def log_axis(axis: Any, values: Sequence[float], words: Callable[[float], str], most: int = 7) -> None:
    """A logarithmic axis over the values with two to `most` labelled ticks: 1, 2, 5 of each power of ten where there is
    room for them, else 1 and 3, else some of the powers. `axis`: axes.xaxis or axes.yaxis."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.5, max(positive) * 1.5
    if high / low < 10:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[tuple[tuple[int, ...], int]] = [((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)]
    for steps, every in choices:
        ticks = [step * 10.0**power for power in powers if power % every == 0 for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    small = [step * 10.0**power for power in powers for step in range(1, 10)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([words(tick) for tick in ticks]))
    axis.set_minor_locator(FixedLocator([tick for tick in small if low <= tick <= high and tick not in ticks]))
    axis.set_minor_formatter(NullFormatter())


def from_zero(axes: Axes, values: Sequence[float], words: Callable[[float], str], binary: bool = False) -> None:
    """A linear y axis that begins at zero and has room above the largest value; `binary`: ticks at powers of two."""
    top = max([*values, 0.0]) * 1.12 or 1.0
    axes.set_ylim(0, top)
    if binary:
        axes.yaxis.set_major_locator(FixedLocator(binary_ticks(top)))
    axes.yaxis.set_major_formatter(lambda value, _: words(value) if value else "0")


def few_ticks(count: int) -> MaxNLocator:
    """At most so many ticks at round numbers."""
    return MaxNLocator(nbins=count, steps=[1, 2, 5, 10])


def round_ticks(top: float) -> list[float]:
    """At most six ticks from zero, at round numbers."""
    return [float(tick) for tick in few_ticks(5).tick_values(0, top) if 0 <= tick <= top]


def binary_ticks(top: float) -> list[float]:
    """At most seven ticks from zero, a power of two apart."""
    step = 2.0 ** math.ceil(math.log2(max(top, 1.0) / 6))
    return [step * number for number in range(int(top / step) + 1)]
