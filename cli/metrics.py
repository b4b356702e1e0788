"""--metrics FILE: figures of a move as Prometheus reads them, for a textfile collector.

The text format is version 0.0.4 of Prometheus's exposition formats. Each file is a move: all figures have the label
`move`, the name of the file, so that no two files of a folder have the same figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_migration.cli.watchers import LAST, STOPPED
from live_migration.wire.report import Report, write_whole

PREFIX = "live_migration"
FIRST = "started"
RUNS = ("resumed", "reattached")
WAITED_FOR = {"listening": "peer", "stalled": "connection", **dict.fromkeys(RUNS, "memory")}
"""A stage, and what is waited for in it."""
SAME_AS = {"reconnected": "resumed"}
"""After the first of these, the second one goes on."""
QUIET = ("frozen", "resumed")
"""Nothing is written at these moments: the process stands still, or has just begun to run."""
WRITE_SECONDS = 1.0

Labels = Mapping[str, object]


@dataclass(frozen=True)
class Family:
    """Figures of one name: its end, "gauge", "counter" or "histogram", what it means, and the figures themselves, each
    with what is added to the name and its labels."""

    name: str
    kind: str
    meaning: str
    figures: Sequence[tuple[str, Labels, float]]


class MetricsFile:
    """Writes the file anew when something has happened, and at most once a second while pages arrive."""

    def __init__(self, name: str, path: str) -> None:
        self._path = path
        self._labels = {"move": Path(path).name.removesuffix(".prom"), "command": name}
        self._pid = 0
        self._stage = FIRST
        self._entered = {FIRST: (time.time(), time.monotonic())}
        self._spent: dict[str, float] = {}
        self._stalls = 0
        self._code = 0
        self._arrived = (0, 0, 0)
        self._reports: dict[str, Report] = {}
        self._written = 0.0

    def event(self, event: Mapping[str, Any]) -> None:
        name = str(event["event"])
        self._pid = int(event["pid"]) or self._pid
        self._code = int(event.get("code", self._code))
        self._stalls += name == "stalled"
        self._enter(SAME_AS.get(name, name))
        if name not in QUIET:
            self._write()

    def progress(self, pages: int, total: int, faults: int) -> None:
        self._arrived = (pages, total, faults)
        if time.monotonic() > self._written + WRITE_SECONDS:
            self._write()

    def measured(self, report: Report) -> None:
        self._reports[report.side] = report
        self._write()

    def end(self) -> None:
        if self._stage not in LAST:
            self._enter(STOPPED)
        self._write()

    def _enter(self, stage: str) -> None:
        """Another stage begins."""
        now = time.monotonic()
        self._spent[self._stage] = self._spent.get(self._stage, 0.0) + now - self._entered[self._stage][1]
        self._stage = stage
        self._entered[stage] = (time.time(), now)

    def _write(self) -> None:
        self._written = time.monotonic()
        write_whole(self._path, text(self._families(), self._labels).encode())

    def _seconds(self) -> dict[str, float]:
        """How long each stage has lasted until now."""
        lasts = time.monotonic() - self._entered[self._stage][1]
        return self._spent | {self._stage: self._spent.get(self._stage, 0.0) + lasts}

    def _families(self) -> Iterator[Family]:
        strategy = next((one.strategy for one in self._reports.values() if one.strategy), "")
        info = {"pid": self._pid, "strategy": strategy}
        yield Family("info", "gauge", "The process that is moved, as this host knows it; always 1.", [("", info, 1)])
        seconds = self._seconds()
        yield Family("stage", "gauge", "1 for the stage that the move is in, 0 for those before it.",
                     [("", {"stage": stage}, stage == self._stage) for stage in seconds])  # fmt: skip
        yield Family("stage_seconds", "gauge", "How long each stage has lasted, when this was written.",
                     [("", {"stage": stage}, spent) for stage, spent in seconds.items()])  # fmt: skip
        yield Family("stage_entered_timestamp_seconds", "gauge", "When each stage began last, seconds since 1970.",
                     [("", {"stage": stage}, entered) for stage, (entered, _) in self._entered.items()])  # fmt: skip
        awaited = WAITED_FOR.get(self._stage)
        yield Family("waiting", "gauge", "1 for what is waited for: the other side, its connection, or memory.",
                     [("", {"for": what}, what == awaited) for what in sorted({*WAITED_FOR.values()})])  # fmt: skip
        brownout = sum(seconds.get(stage, 0.0) for stage in (*RUNS, "stalled"))
        yield Family("brownout_seconds", "gauge", "From the resume until every page was there, pauses included.",
                     [("", {}, brownout if {*RUNS} & seconds.keys() else 0.0)])  # fmt: skip
        yield Family("stalls_total", "counter", "How often the connection was lost.", [("", {}, self._stalls)])
        yield Family("error_code", "gauge", "The status that it failed with; 0: it has not failed.",
                     [("", {}, self._code)])  # fmt: skip
        arrived, total, faults = self._arrived
        yield Family("pages_arrived", "gauge", "Pages of memory that have arrived.", [("", {}, arrived)])
        yield Family("pages_missing", "gauge", "Pages of memory still to come.", [("", {}, max(0, total - arrived))])
        yield Family("faults_total", "counter", "Faults on missing pages.", [("", {}, faults)])
        yield Family("written_timestamp_seconds", "gauge", "When this was written, seconds since 1970.",
                     [("", {}, time.time())])  # fmt: skip
        yield from of_reports(list(self._reports.values()))


def of_reports(reports: Sequence[Report]) -> Iterator[Family]:
    """The figures of reports (docs/report.md), each with its side."""
    if not reports:
        return

    def figures(name: str, of: Any) -> list[tuple[str, Labels, float]]:
        """One for each entry of what `of` makes of a report: {value of the label `name`: figure}."""
        return [("", {"side": one.side, name: key}, value) for one in reports for key, value in of(one).items()]

    def plain(of: Any) -> list[tuple[str, Labels, float]]:
        return [("", {"side": one.side}, of(one)) for one in reports]

    yield Family("outcome", "gauge", "1 for the outcome, as it is known now.",
                 figures("outcome", lambda one: {one.outcome: 1}))  # fmt: skip
    yield Family("duration_seconds", "gauge", "From the connection to the last page; 0: not yet.",
                 plain(lambda one: one.total_ms / 1000))  # fmt: skip
    known = [one for one in reports if one.downtime_ms is not None]
    if known:
        yield Family("downtime_seconds", "gauge", "From the freeze to the resume.",
                     [("", {"side": one.side}, (one.downtime_ms or 0.0) / 1000) for one in known])  # fmt: skip
    yield Family("downtime_step_seconds", "gauge", "What a side did in the downtime, step by step.",
                 figures("step", lambda one: {step: us / 1e6 for step, us in one.downtime_us.items()}))  # fmt: skip
    yield Family("phase_seconds", "gauge", "How long each phase lasted (docs/report.md).",
                 figures("phase", lambda one: {name: ms / 1000 for name, ms in one.phases_ms.items()}))  # fmt: skip
    yield Family("bytes", "gauge", "Data that was moved, by what it was.",
                 figures("kind", lambda one: {name: getattr(one.bytes, name) for name in one.bytes.__struct_fields__})
                 )  # fmt: skip
    yield Family("pages", "gauge", "Pages that were moved, by how they came.",
                 figures("kind", lambda one: {name: getattr(one.pages, name) for name in one.pages.__struct_fields__})
                 )  # fmt: skip
    yield Family("rounds", "gauge", "Rounds of copying before the freeze.", plain(lambda one: len(one.rounds)))
    yield Family("fault_seconds", "histogram", "Faults, from reading one to placing its page.",
                 [figure for one in reports for figure in histogram(one)])  # fmt: skip


def histogram(report: Report) -> Iterator[tuple[str, Labels, float]]:
    """The figures of a report's histogram of faults."""
    side = {"side": report.side}
    for limit, count in report.faults.at_most:
        yield "_bucket", {**side, "le": repr(limit / 1e6)}, count
    # They are counted a moment apart.
    every = max([report.faults.measured, *(count for _, count in report.faults.at_most)])
    yield "_bucket", {**side, "le": "+Inf"}, every
    yield "_sum", side, report.faults.sum_us / 1e6
    yield "_count", side, every


def text(families: Iterator[Family], labels: Labels) -> str:
    """Families in the text format."""
    lines = []
    for family in families:
        if family.figures:
            name = f"{PREFIX}_{family.name}"
            lines += [f"# HELP {name} {family.meaning}", f"# TYPE {name} {family.kind}"]
            for ending, own, value in family.figures:
                pairs = ",".join(f'{key}="{quoted(str(one))}"' for key, one in {**labels, **own}.items())
                lines.append(f"{name}{ending}{{{pairs}}} {float(value)!r}")
    return "\n".join([*lines, ""])


def quoted(value: str) -> str:
    """A label's value as the format has it."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
