"""make experiments: the standard set, measured in under ten minutes into docs/results/, and what is in it.

Small enough to be run again after each change, large enough for every figure of the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from live_migration.experiments.errors import Status
from live_migration.experiments.floors import measure_floors
from live_migration.experiments.links import PRESETS
from live_migration.experiments.main import guarded
from live_migration.experiments.network import check_root
from live_migration.experiments.plans import Plan, done_already
from live_migration.experiments.report import read_floors
from live_migration.experiments.reporting import draw
from live_migration.experiments.results import FLOORS, NAME
from live_migration.experiments.run import run_plans

FOLDER = Path("docs/results")
SECONDS = 1.5
MIB = 2**20
RUNS = 3
PLANS = (
    # Downtime against memory size, bytes, and throughput through time.
    Plan(links=(PRESETS["10gbit"],), memory=(64 * MIB, 256 * MIB), runs=RUNS),
    # Downtime, total time and pages against the dirty rate, where the link is the limit.
    Plan(links=(PRESETS["lan-1gbit"],), dirty_rates=(0, 10 * MIB, 40 * MIB), runs=RUNS),
    # Bytes and downtime against the link.
    Plan(links=(PRESETS["wan-20ms"],), memory=(32 * MIB,), dirty_rates=(4 * MIB,), runs=1),
    # Real programs.
    Plan(workloads=("redis", "python", "node"), links=(PRESETS["lan-1gbit"],), memory=(64 * MIB,), runs=1),
    Plan(workloads=("redis",), links=(PRESETS["lan-1gbit"],), memory=(64 * MIB,), runs=1, keys="zipf"),
)
FLOOR_LINKS = ("10gbit", "lan-1gbit", "wan-20ms")


def finished(folder: Path) -> bool:
    """Whether the whole set has been measured into a folder already. Raises ExperimentError, see done_already."""
    done = done_already(folder)
    return all(cell.key() in done for plan in PLANS for link in plan.links for cell in plan.cells(link))


def standard(words: Sequence[str] | None) -> Status:
    """Measure the set, or what is left of one that was interrupted, and draw it. Raises ExperimentError."""
    parser = argparse.ArgumentParser(prog="experiments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="DIR", help=f"default: {FOLDER}")
    parser.add_argument("--no-report", action="store_true", help="only measure")
    given = parser.parse_args(words)
    check_root()
    console = Console(stderr=True, highlight=False)
    if finished(given.output):
        console.print(f"{given.output}: a finished set is there; measured anew", markup=False)
        for name in (NAME, FLOORS):
            (given.output / name).unlink(missing_ok=True)
    known = {floor.link.name for floor in read_floors(given.output)}
    if links := [PRESETS[name] for name in FLOOR_LINKS if name not in known]:
        measure_floors(links, given.output, lambda text: console.print(text, markup=False))
    status = run_plans(list(PLANS), given.output, SECONDS, console)
    if not given.no_report:
        draw(given.output)
    return status


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    return guarded(lambda: standard(words))


if __name__ == "__main__":
    sys.exit(main())
