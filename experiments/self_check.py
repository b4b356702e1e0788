"""What measuring costs the workload toucher: the same work with and without it, taking turns.

Operations are compared per second of processor time, so that what else the machine does falls out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.costs import Costs
from experiments.network import Network
from experiments.results import Cell
from experiments.trial import nothing_left, own_folder
from experiments.workload_toucher import start_toucher
from experiments.workloads import Place

PAIRS = 6
SETTLE_SECONDS = 0.15
SECONDS = 0.5
MEMORY = 16 * 2**20


def processor_seconds(pid: int) -> float:
    """Of a process with one thread so far (schedstat, proc(5))."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def speed(network: Network, programs: Path, *, measured: bool) -> float:
    """Operations per second of processor time; measured: as in every run, with somebody who looks at costs too."""
    cell = Cell(workload="toucher", strategy="none", link=network.link.name, memory=MEMORY, peer="none")
    with own_folder() as folder, nothing_left(), Costs() as costs:
        running = start_toucher(cell, Place(network, folder, programs, measured=measured))
        if measured:
            costs.watch("toucher", running.pid)
        time.sleep(SETTLE_SECONDS)
        before, used = running.touched.operations(), processor_seconds(running.pid)
        time.sleep(SECONDS)
        return (running.touched.operations() - before) / (processor_seconds(running.pid) - used)


def pairs(network: Network, programs: Path, count: int = PAIRS) -> Iterator[tuple[float, float]]:
    """(without, with) measuring, in turns."""
    for _ in range(count):
        yield speed(network, programs, measured=False), speed(network, programs, measured=True)


def measuring_cost(found: list[tuple[float, float]]) -> float:
    """The share of its speed that measuring costs a workload, from medians."""
    without, measured = (statistics.median(column) for column in zip(*found, strict=True))
    return 1 - measured / without
