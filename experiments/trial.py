"""One run: start a workload, let it work, move it, let it recover, compare its data, and compute a result."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from live_migration.experiments.costs import Costs, family
from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.histograms import from_latencies
from live_migration.experiments.machines import adopt_orphans
from live_migration.experiments.moves import Moved, Order, move
from live_migration.experiments.network import Network
from live_migration.experiments.results import Cell, Histogram, Machine, Result
from live_migration.experiments.speed import Moments, speed_of
from live_migration.experiments.workload_python import start_python, start_sqlite
from live_migration.experiments.workload_served import start_node, start_redis
from live_migration.experiments.workload_toucher import start_toucher
from live_migration.experiments.workloads import KEYS, Observed, Place, Running, Starter, Toucher

STARTERS: dict[str, Starter] = {
    "toucher": start_toucher,
    "redis": start_redis,
    "python": start_python,
    "node": start_node,
    "sqlite": start_sqlite,
}
PAGE = 4096
AROUND_SECONDS = 0.05
"""Around the freeze and the resume in which a wait belongs to the downtime."""
FAULT_LEAST = 20e-6
"""Seconds: what an operation of the toucher has to take for a page to have been missing."""
RECENT_SECONDS = 0.5
"""After the last page in which a wait may still be for it."""


@dataclass(frozen=True)
class Bench:
    """What the runs of a sweep share. `before` and `after`: seconds of undisturbed work around a migration."""

    network: Network
    machine: Machine
    before: float = 1.0
    after: float = 2.0
    toucher: Toucher = field(default_factory=Toucher)
    keys: str = KEYS[0]
    movers: dict[str, Callable[[Order], Moved]] = field(default_factory=lambda: {"": move})
    measured: bool = True


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder in memory for what a run writes, so that no disk takes part in it."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"lm-bench-run-{os.getpid()}-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Kill what was started meanwhile, by whomever: all that descends from this process then and did not before."""
    adopt_orphans()
    before = set(family(os.getpid()))
    try:
        yield
    finally:
        end = time.monotonic() + 20
        while (left := set(family(os.getpid())) - before) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.005)


def run_cell(bench: Bench, cell: Cell) -> Result:
    """Measure one cell. A failed run is a result too, with its error; raises OSError only."""
    result = Result(cell=cell, link=bench.network.link, machine=bench.machine, started=time.time(), verified=False)
    bench.network.route_service_to(bench.network.source)
    with own_folder() as folder, nothing_left():
        place = Place(bench.network, folder, bench.toucher, bench.keys, bench.measured)
        try:
            with Costs() as costs:
                observed, moved, calm = _measure(bench, cell, place, costs, result)
                result.costs = costs.found()
            _compute(result, observed, moved, calm)
            if cell.workload == "toucher":
                # What it works on; the others' working sets are not known.
                result.samples["working_set_pages"] = int(cell.memory * bench.toucher.working_set) // PAGE
        except (ExperimentError, TimeoutError) as error:
            result.error = str(error)
    return result


def _measure(bench: Bench, cell: Cell, place: Place, costs: Costs, result: Result) -> tuple[Observed, Moved, float]:
    """Everything that takes time: what the workload saw, the migration, and since when it worked undisturbed."""
    running = STARTERS[cell.workload](cell, place)
    # What a start leaves behind, as caches that fill, is not its usual speed.
    time.sleep(bench.before / 2)
    calm = time.time()
    time.sleep(bench.before)
    carried = bench.network.carried()
    moved = _no_move(running, bench) if cell.peer == "none" else _move(bench, cell, place, costs, running)
    result.wire_bytes = bench.network.carried() - carried
    time.sleep(bench.after)
    return running.finish(moved.resumed), moved, calm


def _move(bench: Bench, cell: Cell, place: Place, costs: Costs, running: Running) -> Moved:
    def when_resumed(pid: int) -> None:
        bench.network.route_service_to(bench.network.destination)
        running.resumed(pid)

    return bench.movers[cell.peer](Order(bench.network, place.folder, running.pid, cell.strategy, costs, when_resumed))


def _no_move(running: Running, bench: Bench) -> Moved:
    """A run in which nothing happens, at the time in which it would."""
    now = time.time()
    running.resumed(running.pid)
    return Moved(running.pid, now, now, now, now, now)


def longest(waits: list[tuple[float, float]], begin: float, end: float) -> float | None:
    """Milliseconds of the longest wait of which some is in [begin, end] (seconds since 1970); None without any."""
    return max((took * 1000 for until, took in waits if until >= begin and until - took <= end), default=None)


def _compute(result: Result, observed: Observed, moved: Moved, calm: float) -> None:
    """Fill in everything that follows from what was seen."""
    result.verified, result.error = observed.verified, observed.error
    result.operations = observed.operations
    moments = Moments(
        calm=calm, command=moved.command, start=moved.start, frozen=moved.frozen, resumed=moved.resumed,
        complete=moved.complete, rounds=bool(moved.rounds),
    )  # fmt: skip
    result.speed = speed_of(observed.timeline, moments)
    result.samples = {"operations": observed.done}
    if result.cell.peer == "none":
        return
    around = (moved.frozen - AROUND_SECONDS, moved.resumed + AROUND_SECONDS)
    if observed.waits is not None:
        waits = list(observed.waits)
        result.downtime_ms = longest(waits, *around)
        result.samples["before_longest_ms"] = longest(waits, calm, moved.command)
        missed = [wait for wait in waits if moved.resumed < wait[0] <= moved.complete + RECENT_SECONDS]
        # The first is the freeze itself.
        result.faults = from_latencies(
            round(took * 1e9) for until, took in missed if until - took >= moved.resumed and took >= FAULT_LEAST
        )
    if observed.client_waits is not None:
        waits = list(observed.client_waits)
        result.client_downtime_ms = longest(waits, *around)
        result.samples["client_longest_waits_ms"] = [
            (round((until - moved.resumed) * 1000, 3), round(took * 1000, 3))
            for until, took in sorted(waits, key=lambda wait: -wait[1])[:20]
        ]
    report = moved.reports.get("restore")
    # What a process times itself may also be a wait for the processor: without a fault over the network it is.
    if report and (result.cell.workload != "toucher" or not report["faults"]["count"]):
        result.faults = reported_faults(report["faults"])
    result.reported_downtime_ms = moved.reported_downtime_ms
    result.total_ms = (moved.complete - moved.start) * 1000
    result.pages, result.pages_sent, result.pages_resent = moved.pages, moved.pages_sent, moved.pages_resent
    result.rounds, result.reports = moved.rounds, moved.reports
    result.moments_ms = {
        name: round((value - moved.resumed) * 1000, 3)
        for name, value in asdict(moments).items()
        if name not in ("calm", "rounds")
    }


def reported_faults(faults: dict[str, float]) -> Histogram:
    """As much of a histogram as lm-restore's report tells, for a process that does not time its own faults."""
    count = int(faults["count"])
    shares = ((0.5, "p50_us"), (0.9, "p90_us"), (0.99, "p99_us"), (1.0, "max_us"))
    pairs, seen = [], 0
    for share, name in shares:
        if here := math.ceil(count * share) - seen:
            pairs.append((faults[name], here))
        seen += here
    known = {name: faults[name] for _, name in shares}
    return Histogram(buckets=pairs, count=count, **known) if count else Histogram()
