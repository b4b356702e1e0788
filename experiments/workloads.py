"""What is moved: each workload starts a process, keeps it at work, and knows at the end whether its data is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from live_migration.experiments.histograms import from_latencies
from live_migration.experiments.network import Network
from live_migration.experiments.results import Cell, Histogram
from live_migration.experiments.speed import Timeline

STEP_SECONDS = 0.01
Waits = Sequence[tuple[float, float]]
"""(when it ended, how long it was), seconds since 1970 and seconds."""


@dataclass(frozen=True)
class Toucher:
    """Settings of the workload toucher that are no coordinates of a sweep."""

    working_set: float = 0.5
    locality: str = "uniform"
    write_share: float = 0.2
    compressible: float = 0.5
    threads: int = 1

    def variant(self) -> str:
        """What differs from the usual, for Cell.variant."""
        usual = Toucher()
        names = ("working_set", "locality", "write_share", "compressible", "threads")
        different = [name for name in names if getattr(self, name) != getattr(usual, name)]
        return ",".join(f"{name.replace('_', '-')}={getattr(self, name)}" for name in different)


KEYS = ("uniform", "zipf")
"""How often a client asks for which entry of redis and node, and sqlite for which row: for all alike, or for few of
them most of the time."""


def variant_of(workload: str, toucher: Toucher, keys: str) -> str:
    """What of a workload's settings differs from the usual, for Cell.variant."""
    if workload == "toucher":
        return toucher.variant()
    return f"keys={keys}" if workload in ("redis", "node", "sqlite") and keys != KEYS[0] else ""


@dataclass(frozen=True)
class Place:
    """Where a workload runs: the network, and a folder of its own.

    `keys`: one of KEYS; `measured`: False to leave out all measuring in the process, to see what that costs."""

    network: Network
    folder: Path
    toucher: Toucher = field(default_factory=Toucher)
    keys: str = KEYS[0]
    measured: bool = True


@dataclass(frozen=True)
class Observed:
    """What a workload and its client have seen, with all times on the clock that everybody shares.

    `waits`: what the process itself waited for, if longer than usual; `client_waits`: its client, None without one.
    `operations` after the resume."""

    verified: bool
    error: str | None
    timeline: Timeline
    operations: Histogram
    waits: Waits | None = None
    client_waits: Waits | None = None
    done: int = 0


class Running(Protocol):
    """A workload that runs."""

    @property
    def pid(self) -> int:
        """Of its process on the source."""

    def resumed(self, pid: int) -> None:
        """Its process now runs at the destination."""

    def finish(self, resumed: float) -> Observed:
        """Let it end, compare all its data, and tell. `resumed`: seconds since 1970. Raises ExperimentError."""


class Starter(Protocol):
    """Starts a workload, which is ready and at work when this returns. Raises ExperimentError."""

    def __call__(self, cell: Cell, place: Place) -> Running:
        """Start it for a cell."""


def observe(
    operations: Sequence[tuple[int, int]],
    resumed: float,
    long: float,
    *,
    error: str | None,
    at_client: bool = False,
    gaps: Waits | None = None,
    done: int | None = None,
) -> Observed:
    """What follows from a record of every operation (recorder.py). `long`: seconds from which on a wait is kept by
    itself; `at_client`: the record is a client's, and what the process itself waited for are `gaps`, if it tells."""
    step = round(STEP_SECONDS * 1e9)
    begin = operations[0][0] if operations else 0
    counts = Counter((end - begin) // step for end, _ in operations)
    # The last step is not over.
    timeline = Timeline(begin / 1e9, STEP_SECONDS, [counts[at] for at in range(max(counts, default=0))])
    waits = [(end / 1e9, took / 1e9) for end, took in operations if took >= long * 1e9]
    return Observed(
        verified=error is None,
        error=error,
        timeline=timeline,
        operations=from_latencies(took for end, took in operations if end > resumed * 1e9),
        waits=gaps if at_client else waits,
        client_waits=waits if at_client else None,
        done=len(operations) if done is None else done,
    )
