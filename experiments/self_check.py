"""What measuring costs the workload toucher: the same process, with and without it in short turns.

Operations are compared per second of processor time, so that what else the machine does falls out.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from live_migration.experiments.costs import Costs
from live_migration.experiments.network import Network
from live_migration.experiments.results import Cell
from live_migration.experiments.trial import nothing_left, own_folder
from live_migration.experiments.workload_toucher import MEASURE, RunningToucher, start_toucher
from live_migration.experiments.workloads import Place

TURNS = 40
TURN_SECONDS = 0.06
SETTLE_SECONDS = 0.3
MEMORY = 16 * 2**20


def processor_seconds(pid: int) -> float:
    """Of a process with one thread so far (schedstat, proc(5))."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def speed(running: RunningToucher, *, measured: bool) -> float:
    """Operations per second of processor time, in one turn."""
    running.touched.say(MEASURE, int(measured))
    before, used = running.touched.operations(), processor_seconds(running.pid)
    time.sleep(TURN_SECONDS)
    return (running.touched.operations() - before) / (processor_seconds(running.pid) - used)


def turns(network: Network, count: int = TURNS) -> list[tuple[float, float]]:
    """(without, with) measuring, operations per second. Raises ExperimentError."""
    cell = Cell(workload="toucher", strategy="none", link=network.link.name, memory=MEMORY, peer="none")
    with own_folder() as folder, nothing_left(), Costs() as costs:
        running = start_toucher(cell, Place(network, folder))
        costs.watch("toucher", running.pid)
        time.sleep(SETTLE_SECONDS)
        return [(speed(running, measured=False), speed(running, measured=True)) for _ in range(count)]


def measuring_cost(found: list[tuple[float, float]]) -> float:
    """The share of its speed that measuring costs a workload: the median over the turns."""
    return 1 - statistics.median(measured / without for without, measured in found)
