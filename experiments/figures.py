"""The figures of a report: their names, what is said beneath each, and how each is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")  # before anything that asks for a display

from matplotlib.figure import Figure

from live_migration.experiments import drawing, figures_strategies, figures_sweep, figures_time
from live_migration.experiments.results import Floor, Result
from live_migration.experiments.summary import Series, by_series, floor_of

Floors = Callable[[str], Floor | None]


@dataclass(frozen=True)
class Drawing:
    """A figure to draw: the files' name, its heading on the page, and what its marks mean."""

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Result], Sequence[Series], Floors], Figure]


@dataclass(frozen=True)
class Drawn:
    """A figure as a file."""

    name: str
    title: str
    caption: str
    png: bytes


POINTS = (
    "Large marks are medians, whiskers the quartiles, small pale marks the single runs; series stand a little beside "
    "each other so that none hides another."
)
SLICE = (
    "Of a sweep over several things, each panel shows the setting that was measured most fully; its title names it, "
    "and the table of runs has the others."
)

FIGURES = (
    Drawing(
        "throughput",
        "Throughput through time",
        "Operations per second of the workload, around the resume at 0. Shaded: the rounds that are copied while the "
        "process runs at the source, and the time for which it is frozen. The dotted line is the moment the last page "
        "arrived. The strong line is the run whose lost work is the median, its band what the speed was between within "
        "one step; the other runs are pale behind it. All strategies share both axes.",
        figures_time.throughput,
    ),
    Drawing(
        "downtime-memory",
        "Downtime against memory",
        "How long the process makes no progress, as it feels it itself (as its client does, or lm-restore, where the "
        f"workload cannot tell). {POINTS} {SLICE}",
        figures_sweep.against_memory,
    ),
    Drawing(
        "times-dirty-rate",
        "Downtime and total time against the dirty rate",
        "The dirty rate is what the workload writes each second, in whole pages. Total time ends when the last page is "
        "at the destination; its floor is the process's memory at the bulk rate of the bare C pager.",
        figures_sweep.times_against_dirty_rate,
    ),
    Drawing(
        "pages-dirty-rate",
        "Pages transferred against the dirty rate",
        "Pages sent for each page of the process: at 1, each page went once.",
        figures_sweep.pages_against_dirty_rate,
    ),
    Drawing(
        "fault-latency",
        "Latency of faults",
        "What share of the faults that had to go over the network took at most so long, all runs together. The marks "
        "are the median and the p99 of each series, the dashed lines those of the bare C pager over the same link.",
        figures_time.fault_latency,
    ),
    Drawing(
        "bytes-link",
        "Bytes on the wire against the link",
        "Counted at the link, in both directions. Below the dashed line, compression or pages that are zero saved "
        "something.",
        figures_sweep.bytes_against_link,
    ),
    Drawing(
        "recovery",
        "Recovery",
        "How long after the resume the workload has 95 % of its old speed again and holds it, and how many operations "
        "it did not do from the begin of the migration until then, compared with the speed before.",
        figures_strategies.recovery,
    ),
    Drawing(
        "costs",
        "Processor time and memory of the commands",
        "What the two commands themselves use, on each side.",
        figures_strategies.costs,
    ),
)


def draw(results: Sequence[Result], floors: Sequence[Floor]) -> Iterator[Drawn]:
    """Every figure, from the verified runs; one after the other, since each takes some seconds."""
    verified = [one for one in results if one.verified]
    order = list(by_series(results))
    with drawing.style():
        for one in FIGURES:
            figure = one.draw(verified, order, lambda link: floor_of(floors, link))
            yield Drawn(one.name, one.title, one.caption, drawing.save(figure))
