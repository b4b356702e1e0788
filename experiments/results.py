"""What one run of an experiment was and what came of it: one JSON object a line in DIR/results.jsonl.

Every raw sample is kept, so that each figure can be drawn again. Times are in milliseconds, latencies in microseconds,
rates in bytes per second, sizes in bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

VERSION = 1
NAME = "results.jsonl"
FLOORS = "floor.jsonl"


class OtherVersion(Exception):
    """Results that another version of lm-bench has written."""


class Machine(msgspec.Struct, kw_only=True, frozen=True):
    """What the figures depend on. `wake_up_us`: the longest that an idle processor may take to wake up, 0 when they are
    kept awake, None where that is not known."""

    kernel: str
    processor: str
    cores: int
    memory: int
    python: str
    versions: dict[str, str] = {}
    wake_up_us: int | None = None
    load: list[float] = []


class Link(msgspec.Struct, kw_only=True, frozen=True):
    """A link as it was asked for and as it was measured; a rate of 0 is no limit. `by`: veth, tbf, netem or relay.
    `measured_jitter_ms`: half of the round trips were at most so far from the median, which is `measured_rtt_ms`."""

    name: str
    asked_rtt_ms: float = 0.0
    asked_rate: int = 0
    loss: float = 0.0
    by: str = "veth"
    measured_rtt_ms: float = 0.0
    measured_rate: int = 0
    measured_jitter_ms: float = 0.0


class Cell(msgspec.Struct, kw_only=True, frozen=True):
    """What was varied. `peer`: "" for lm-serve and lm-restore, "criu", or "none" for a run without a migration.

    `dirty_rate`: bytes of pages that the workload writes per second, None where it writes as it likes. `variant`: the
    workload's settings that are not the usual ones, as "locality=zipf,threads=2"."""

    workload: str
    strategy: str
    link: str
    memory: int
    dirty_rate: int | None = None
    peer: str = ""
    run: int = 0
    variant: str = ""

    def key(self) -> str:
        """The same for the same cell, by which an interrupted sweep knows what is done."""
        rate = "own" if self.dirty_rate is None else str(self.dirty_rate)
        parts = [self.peer or "lm", self.workload, self.strategy, self.link, str(self.memory), rate, str(self.run)]
        return "/".join([*parts, *([self.variant] if self.variant else [])])


class Histogram(msgspec.Struct, kw_only=True, frozen=True):
    """Latencies in microseconds: (value, count) in growing order of the value; a bucket's value is its upper bound."""

    buckets: list[tuple[float, int]] = []
    count: int = 0
    p50_us: float = 0.0
    p90_us: float = 0.0
    p99_us: float = 0.0
    max_us: float = 0.0


class Speed(msgspec.Struct, kw_only=True, frozen=True):
    """Operations through time. `timeline`: (milliseconds from the resume, operations in that step) in steps of
    `step_ms`; negative before the resume. `before` and `during_rounds` in operations per second; `recovered_ms`: from
    the resume until 95 % of `before` is reached and held, None when it never was; `lost`: operations that were not done
    from the begin of the migration to recovery, compared with `before`."""

    step_ms: float
    timeline: list[tuple[float, float]]
    before: float
    during_rounds: float | None = None
    lowest: float = 0.0
    recovered_ms: float | None = None
    lost: float = 0.0


class Cost(msgspec.Struct, kw_only=True, frozen=True):
    """What a command used: processor time in seconds and the largest resident size in bytes."""

    cpu_seconds: float = 0.0
    memory: int = 0


class Result(msgspec.Struct, kw_only=True):
    """One run.

    downtime_ms          longest gap that the process itself felt around the resume
    client_downtime_ms   longest wait of its client, None without one
    reported_downtime_ms as lm-restore's report says, None for a peer
    total_ms             from the start of the migration until the last page is there
    wire_bytes           counted at the link, both directions
    pages, pages_sent, pages_resent   of the process; sent in all; sent a second time or more
    faults               of pages that had to come over the network
    operations           latency of every operation of the workload after the resume
    moments_ms           start, frozen, resumed, complete; relative to the resume
    rounds               as in lm-restore's report
    reports              what the commands reported, untouched: "serve", "restore"
    samples              every raw sample that something above was computed from
    error                the sentence that ended a failed run; a run that is not `verified` has failed
    """

    version: int = VERSION
    cell: Cell
    link: Link
    machine: Machine
    started: float
    verified: bool
    error: str | None = None
    downtime_ms: float | None = None
    client_downtime_ms: float | None = None
    reported_downtime_ms: float | None = None
    total_ms: float | None = None
    wire_bytes: int | None = None
    pages: int | None = None
    pages_sent: int | None = None
    pages_resent: int | None = None
    faults: Histogram = Histogram()
    operations: Histogram = Histogram()
    speed: Speed | None = None
    moments_ms: dict[str, float] = {}
    rounds: list[dict[str, Any]] = []
    costs: dict[str, Cost] = {}
    reports: dict[str, Any] = {}
    samples: dict[str, Any] = {}


class Floor(msgspec.Struct, kw_only=True):
    """The limits of this machine over one link, by the bare C pager (`lm-bench floor`); in DIR/floor.jsonl."""

    version: int = VERSION
    link: Link
    machine: Machine
    fault_p50_us: float
    fault_p99_us: float
    bulk_rate: float
    downtime_ms: float
    samples: dict[str, Any] = {}


def append(path: Path, result: Result | Floor) -> None:
    """Add a line, whole or not at all as far as the file system can do that. Raises OSError."""
    line = msgspec.json.encode(result) + b"\n"
    with path.open("ab", buffering=0) as file:
        written = file.write(line)
        if written != len(line):
            os.truncate(path, path.stat().st_size - (written or 0))
            raise OSError(28, "No space left on device", str(path))


def read(path: Path) -> Iterator[Result]:
    """All results of a file; a torn last line is passed over. Raises OtherVersion, OSError."""
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        if (found := msgspec.json.decode(line).get("version")) != VERSION:
            raise OtherVersion(f"{path}: results of version {found}, this lm-bench reads version {VERSION}")
        yield msgspec.json.decode(line, type=Result)
