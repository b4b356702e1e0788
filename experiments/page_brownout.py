"""The table of the brownout: what whoever uses the process feels of a move, beyond the downtime.

A process that runs again and waits for pages is up and slow. So this tells the work that was lost, how long it took
until the old speed was back, and the longest that somebody waited; each beside what stop-and-copy costs, which stands
still all the time, and beside what the bare link allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from live_migration.experiments.page import Markup, element, paragraph, section, table
from live_migration.experiments.page_tables import ABSENT, with_ratio
from live_migration.experiments.quantities import PAGE, downtime, duration, lost_ms, working_set
from live_migration.experiments.results import Floor, Result
from live_migration.experiments.summary import (
    Series,
    Value,
    by_series,
    by_setting,
    floor_of,
    median_of,
    migrations,
)

BESIDE = Series("", "stop-and-copy")


def recovered_ms(result: Result) -> float | None:
    """From the resume until the old speed was back, milliseconds."""
    return result.speed.recovered_ms if result.speed is not None else None


def longest_wait_ms(result: Result) -> float | None:
    """The longest that anybody waited around the move, milliseconds: the client, where there is one."""
    return result.client_downtime_ms if result.client_downtime_ms is not None else downtime(result)


@dataclass(frozen=True)
class Measure:
    """A column of the table."""

    title: str
    value: Value


MEASURES = (
    Measure("work lost", lost_ms),
    Measure("95 % of the speed after", recovered_ms),
    Measure("longest wait", longest_wait_ms),
)


def least_lost_ms(results: Sequence[Result], floor: Floor) -> float | None:
    """How long the bare link takes for the pages that the workload works on, or for all where that is not known,
    milliseconds: what is lost at least when nothing runs until they are there."""
    pages = median_of(results, lambda one: working_set(one) or (float(one.pages) if one.pages else None))
    return pages * PAGE / floor.bulk_rate * 1000 if pages and floor.bulk_rate > 0 else None


def brownout_part(results: Sequence[Result], floors: Sequence[Floor]) -> Markup:
    """What was felt, for each setting and series, with the ratio to stop-and-copy's."""
    rows: list[list[object]] = []
    for setting, runs in by_setting(migrations(results)).items():
        groups = by_series(runs)
        beside = groups.get(BESIDE, [])
        floor = floor_of(floors, setting.link)
        if floor is not None and (least := least_lost_ms(runs, floor)) is not None:
            words = [element("em", setting.words()), element("em", "bare link"), element("em", duration(least))]
            rows.append([*words, *[ABSENT] * (len(MEASURES) - 1)])
        for series, group in groups.items():
            row: list[object] = [setting.words(), series.label]
            for measure in MEASURES:
                other = None if series == BESIDE else median_of(beside, measure.value)
                row.append(cell(median_of(group, measure.value), other))
            rows.append(row)
    if not rows:
        return section("The brownout", "brownout", paragraph("Nothing was migrated."))
    note = paragraph(
        f"Medians, and beside each the ratio to {BESIDE.label}'s under the same setting. Work lost: operations that "
        "were not done from the begin of the migration until recovery, as time at the old speed. Longest wait: of the "
        "client, where there is one, else of the process. Bare link: the time that the link takes for the pages that "
        "the workload works on, or for all of the process where that is not known; whoever waits for them as one "
        "loses so much.",
        "note",
    )
    titles = ["setting", "series", *(measure.title for measure in MEASURES)]
    return section("The brownout", "brownout", table(titles, rows, words=2), note)


def cell(value: float | None, beside: float | None) -> object:
    """A quantity, with its ratio to stop-and-copy's."""
    if value is None:
        return ABSENT
    return duration(value) if beside is None else with_ratio(duration(value), value, beside)
