"""The tables of a report: the best strategy for each setting, ratios to the floor, links, machines, runs; the CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from live_migration.experiments.page import Markup, element, escape, paragraph, section, table, together
from live_migration.experiments.quantities import (
    bulk_rate,
    depth,
    dip_ms,
    dirty_words,
    downtime,
    duration,
    fault_share,
    latency,
    link_rate,
    lost_ms,
    network_faults,
    observer,
    page_multiple,
    plain,
    rate,
    rounds_share,
    size,
    times,
)
from live_migration.experiments.results import Floor, Result
from live_migration.experiments.summary import (
    Value,
    by_series,
    by_setting,
    floor_of,
    median_of,
    migrations,
    panels,
    series_of,
    setting_of,
)

NEARLY = 1.1
"""Two medians that differ by less are called equal in the table of the best strategies."""
ABSENT = Markup('<span class="soft">–</span>')


def or_absent(value: float | None, words: Callable[[float], str]) -> object:
    """A quantity in words, or a dash."""
    return ABSENT if value is None else words(value)


@dataclass(frozen=True)
class Ratio:
    """A column of the table of ratios: our value, the floor's, how both are written."""

    title: str
    value: Value
    floor: Callable[[Floor], float]
    words: Callable[[float], str]


def of_faults(result: Result, value: float) -> float | None:
    """A quantile of the faults' latency, if there were any."""
    return value if result.faults.count else None


RATIOS = (
    Ratio("fault p50", lambda one: of_faults(one, one.faults.p50_us), lambda one: one.fault_p50_us, latency),
    Ratio("fault p99", lambda one: of_faults(one, one.faults.p99_us), lambda one: one.fault_p99_us, latency),
    Ratio("bulk rate", bulk_rate, lambda one: one.bulk_rate, rate),
    Ratio("downtime", downtime, lambda one: one.downtime_ms, duration),
)


def floor_part(results: Sequence[Result], floors: Sequence[Floor]) -> Markup:
    """How far each series is from the floor of its link."""
    title, name = "Distance to the floor", "floor"
    if not floors:
        words = "No floor was measured. lm-bench floor, with the same folder, measures what machine and link allow."
        return section(title, name, paragraph(words))
    rows: list[list[object]] = []
    for panel in panels(migrations(results), downtime, None, ("workload", "link")):
        floor = floor_of(floors, panel.setting.link)
        if floor is None:
            continue
        limits = [element("em", ratio.words(ratio.floor(floor))) for ratio in RATIOS]
        rows.append([element("em", f"floor over {panel.setting.link}"), element("em", "bare C pager"), *limits])
        for series, runs in by_series(panel.results).items():
            row: list[object] = [panel.setting.words("link"), series.label]
            for ratio in RATIOS:
                value, limit = median_of(runs, ratio.value), ratio.floor(floor)
                row.append(ABSENT if value is None else with_ratio(ratio.words(value), value, limit))
            rows.append(row)
    if not rows:
        return section(title, name, paragraph("No verified run used a link whose floor was measured."))
    note = paragraph(
        "Medians, and beside each the ratio to the bare C pager over the same link. Of fault latencies and downtime a "
        "low ratio is good, of the bulk rate a high one. The bulk rate is memory before compression, so compression "
        "can lift it above the link's. The floor's downtime is that of freezing and resuming an empty process.",
        "note",
    )
    return section(title, name, table(["setting", "series", *(ratio.title for ratio in RATIOS)], rows, words=2), note)


def with_ratio(words: str, value: float, limit: float) -> object:
    """A value with its ratio to the floor."""
    if limit <= 0:
        return words
    return Markup(f"{escape(words)} {element('strong', times(value / limit, 2))}")


@dataclass(frozen=True)
class Question:
    """What a reader may want least of."""

    title: str
    value: Value
    words: Callable[[float], str]


QUESTIONS = (
    Question("shortest downtime", downtime, duration),
    Question("last page there first", lambda one: one.total_ms, duration),
    Question("fewest bytes", lambda one: one.wire_bytes, size),
    Question("least work lost", lost_ms, duration),
)


def choice_part(results: Sequence[Result]) -> Markup:
    """Which of our strategies was best, for each setting and question."""
    rows: list[list[object]] = []
    for setting, runs in by_setting(migrations(results, peers=False)).items():
        groups = by_series(runs)
        if len(groups) < 2:
            continue
        row: list[object] = [setting.words(), min(len(group) for group in groups.values())]
        for question in QUESTIONS:
            medians = {series.label: value for series, group in groups.items()
                       if (value := median_of(group, question.value)) is not None}  # fmt: skip
            if len(medians) < 2:
                row.append(ABSENT)
                continue
            least = min(medians.values())
            best = [label for label, value in medians.items() if value <= least * NEARLY]
            names = ["all alike"] if len(best) == len(medians) else [f"{label}," for label in best[:-1]] + best[-1:]
            unbroken = [element("span", name, kind="unbroken") for name in names]
            row.append(together([*unbroken, element("span", question.words(least), kind="soft unbroken")]))
        rows.append(row)
    if not rows:
        text = "To compare strategies, this needs two of them under the same setting."
        return section("Which strategy", "which", paragraph(text))
    note = paragraph(
        f"Of the strategies measured under the same setting, the one with the lowest median, and those within "
        f"{(NEARLY - 1) * 100:.0f} % of it; of one run each, it is that run, and chance has its part. Downtime ends "
        "when the process runs again: by post-copy it then waits for pages, often longer than it was stopped. Work "
        "lost counts all of that, operations not done from the begin of the migration until recovery as time at the "
        "old speed: it is what to look at for a job that should end soon, and for a service whose clients notice slow "
        "answers. When the last page is there the source is free.",
        "note",
    )
    titles = ["setting", "runs of each", *(question.title for question in QUESTIONS)]
    return section("Which strategy", "which", table(titles, rows, words=len(titles)), note)


def links_part(results: Sequence[Result], floors: Sequence[Floor]) -> Markup:
    """What was asked of each link, and what it was measured to be."""
    rows: list[list[object]] = []
    every = [*(one.link for one in results), *(one.link for one in floors)]
    for name in sorted({link.name for link in every}):
        same = [link for link in every if link.name == name]
        trips = [link.measured_rtt_ms for link in same if link.measured_rtt_ms > 0]
        jitters = [link.measured_jitter_ms for link in same if link.measured_jitter_ms > 0]
        rates = [link.measured_rate for link in same if link.measured_rate > 0]
        link = same[0]
        rows.append([
            name, ", ".join(sorted({one.by for one in same})),
            duration(link.asked_rtt_ms) if link.asked_rtt_ms else "no delay", between(trips, duration),
            between(jitters, duration), link_rate(link.asked_rate), between(rates, link_rate),
            f"{plain(link.loss * 100)} %" if link.loss else "none",
        ])  # fmt: skip
    titles = ["link", "made by", "round trip asked", "measured", "jitter", "rate asked", "measured", "loss asked"]
    return section("Links", "links", table(titles, rows, words=2))


def between(values: Sequence[float], words: Callable[[float], str]) -> object:
    """One value, or the least and the largest."""
    if not values:
        return ABSENT
    low, high = words(min(values)), words(max(values))
    return low if low == high else f"{low} to {high}"


def machines_part(results: Sequence[Result], floors: Sequence[Floor]) -> Markup:
    """What the figures depend on."""
    seen: dict[tuple[str, str, int, int, str, str, str], list[object]] = {}
    for machine in [*(one.machine for one in results), *(one.machine for one in floors)]:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
        idle = "not known" if machine.wake_up_us is None else "sleep" if machine.wake_up_us else "kept awake"
        key = (machine.kernel, machine.processor, machine.cores, machine.memory, idle, machine.python, versions)
        seen[key] = [*key[:3], size(machine.memory), *key[4:]]
    titles = ["kernel", "processor", "cores", "memory", "idle processors", "Python", "versions"]
    return section("Machine", "machine", table(titles, [seen[key] for key in sorted(seen)], words=len(titles)))


def failed_part(results: Sequence[Result]) -> Markup:
    """Runs that are in no figure, with their error."""
    failed = [one for one in results if not one.verified]
    if not failed:
        return Markup("")
    rows: list[list[object]] = [
        [
            series_of(one).label, setting_of(one.cell).words(), one.cell.run,
            element("div", one.error or "its data was not as it should be", kind="long"),
        ]
        for one in failed
    ]  # fmt: skip
    body = table(["series", "setting", "run", "error"], rows, words=4)
    words = f"{len(failed)} of {len(results)} runs; they are in the table below and in no figure, median or finding."
    return section("Failed runs", "failed", paragraph(words), body)


def runs_part(results: Sequence[Result]) -> Markup:
    """Every run."""
    titles = ["series", "workload", "link", "memory", "writing", "run", "downtime", "client's", "total", "on the wire",
              "pages sent", "again", "faults", "p50", "p99", "in rounds", "95 % after", "work lost",
              "verified"]  # fmt: skip
    rows: list[list[object]] = []
    for one in results:
        cell, faults = one.cell, one.faults
        recovered = one.speed.recovered_ms if one.speed is not None else None
        rows.append([
            series_of(one).label, setting_of(cell).workload, cell.link, size(cell.memory),
            dirty_words(cell.dirty_rate), cell.run,
            or_absent(one.downtime_ms, duration), or_absent(one.client_downtime_ms, duration),
            or_absent(one.total_ms, duration), or_absent(one.wire_bytes, size),
            or_absent(page_multiple(one), times), or_absent(one.pages_resent, lambda value: f"{value:,.0f}"),
            f"{network_faults(one):,}", or_absent(faults.p50_us if faults.count else None, latency),
            or_absent(faults.p99_us if faults.count else None, latency),
            or_absent(rounds_share(one), lambda value: f"{value * 100:.0f} %"), or_absent(recovered, duration),
            or_absent(lost_ms(one), duration), "yes" if one.verified else "no",
        ])  # fmt: skip
    note = "With more columns and full precision: lm-bench report --csv FILE."
    words = paragraph("In rounds: the speed while rounds were copied, of the old speed.", "note")
    return section("All runs", "runs", table(titles, rows, words=3), words, element("p", note, kind="note"))


COLUMNS: tuple[tuple[str, Callable[[Result], object]], ...] = (
    ("peer", lambda one: one.cell.peer),
    ("strategy", lambda one: one.cell.strategy),
    ("workload", lambda one: one.cell.workload),
    ("variant", lambda one: one.cell.variant),
    ("link", lambda one: one.cell.link),
    ("memory_bytes", lambda one: one.cell.memory),
    ("dirty_bytes_per_second", lambda one: one.cell.dirty_rate),
    ("run", lambda one: one.cell.run),
    ("started", lambda one: one.started),
    ("verified", lambda one: "yes" if one.verified else "no"),
    ("downtime_ms", lambda one: one.downtime_ms),
    ("client_downtime_ms", lambda one: one.client_downtime_ms),
    ("reported_downtime_ms", lambda one: one.reported_downtime_ms),
    ("downtime_felt_by", observer),
    ("total_ms", lambda one: one.total_ms),
    ("wire_bytes", lambda one: one.wire_bytes),
    ("bulk_bytes_per_second", bulk_rate),
    ("pages", lambda one: one.pages),
    ("pages_sent", lambda one: one.pages_sent),
    ("pages_resent", lambda one: one.pages_resent),
    ("network_faults", network_faults),
    ("timed_faults", lambda one: one.faults.count),
    ("fault_share_of_working_set", fault_share),
    ("fault_p50_us", lambda one: one.faults.p50_us if one.faults.count else None),
    ("fault_p90_us", lambda one: one.faults.p90_us if one.faults.count else None),
    ("fault_p99_us", lambda one: one.faults.p99_us if one.faults.count else None),
    ("fault_max_us", lambda one: one.faults.max_us if one.faults.count else None),
    ("operation_p50_us", lambda one: one.operations.p50_us if one.operations.count else None),
    ("operation_p99_us", lambda one: one.operations.p99_us if one.operations.count else None),
    ("operations_per_second_before", lambda one: one.speed.before if one.speed else None),
    ("operations_per_second_during_rounds", lambda one: one.speed.during_rounds if one.speed else None),
    ("operations_per_second_lowest", lambda one: one.speed.lowest if one.speed else None),
    ("deepest_dip", depth),
    ("dip_ms_of_work", dip_ms),
    ("recovered_ms", lambda one: one.speed.recovered_ms if one.speed else None),
    ("lost_operations", lambda one: one.speed.lost if one.speed else None),
    ("rounds", lambda one: len(one.rounds)),
    ("asked_rtt_ms", lambda one: one.link.asked_rtt_ms),
    ("measured_rtt_ms", lambda one: one.link.measured_rtt_ms),
    ("asked_bytes_per_second", lambda one: one.link.asked_rate),
    ("measured_bytes_per_second", lambda one: one.link.measured_rate),
)


def runs_csv(results: Sequence[Result]) -> str:
    """Every run as a line of CSV (RFC 4180, lines end with LF): what is not known is empty."""
    sides = sorted({name for one in results for name in one.costs})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    more = [f"{side}_{what}" for side in sides for what in ("cpu_seconds", "memory_bytes")]
    writer.writerow([*(name for name, _ in COLUMNS), *more, "error"])
    for one in results:
        costs: list[object] = []
        for side in sides:
            cost = one.costs.get(side)
            costs += [cost.cpu_seconds, cost.memory] if cost else [None, None]
        writer.writerow([*(value(one) for _, value in COLUMNS), *costs, one.error])
    return file.getvalue()
