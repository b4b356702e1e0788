"""What is moved: each workload starts a process, keeps it at work, and knows at the end whether its data is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from experiments.network import Network
from experiments.results import Cell, Histogram
from experiments.speed import Timeline

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


@dataclass(frozen=True)
class Place:
    """Where a workload runs: the network, a folder of its own, and the folder of the compiled programs.

    `measured`: False to leave out all measuring in the process, to see what that costs."""

    network: Network
    folder: Path
    programs: Path
    toucher: Toucher = field(default_factory=Toucher)
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
