"""make experiments: the standard set, measured in under ten minutes into docs/results/, and what is in it.

Small enough to be run again after each change, large enough for every figure of the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.errors import Status
from experiments.floors import measure_floors
from experiments.links import PRESETS
from experiments.main import guarded
from experiments.network import check_root
from experiments.plans import Plan
from experiments.reporting import draw
from experiments.run import run_plans

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
)
FLOORS = ("10gbit", "lan-1gbit", "wan-20ms")


def standard(words: Sequence[str] | None) -> Status:
    """Measure what is not done yet, and draw it. Raises ExperimentError."""
    parser = argparse.ArgumentParser(prog="experiments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="DIR", help=f"default: {FOLDER}")
    parser.add_argument("--no-report", action="store_true", help="only measure")
    given = parser.parse_args(words)
    check_root()
    console = Console(stderr=True, highlight=False)
    if not (given.output / "floor.jsonl").exists():
        measure_floors([PRESETS[name] for name in FLOORS], given.output, lambda text: console.print(text, markup=False))
    status = run_plans(list(PLANS), given.output, SECONDS, console)
    if not given.no_report:
        draw(given.output)
    return status


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    return guarded(lambda: standard(words))


if __name__ == "__main__":
    sys.exit(main())
