"""make bench: what a move costs, each figure beside what the kernel and the machine allow, in one run.

The downtime as the moved process feels it, its faults and the bulk stream beside a bare C floor (floor.c) over
the same link in the same round, and the memory of both commands. Needs root: two network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from live_migration.experiments import bench_rounds, bench_tls
from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.judgements import Judgement, at_least, at_most
from live_migration.experiments.machines import adopt_orphans, kill_descendants, leave_on_signals, two_machines
from live_migration.experiments.measures import (
    Laboratory,
    Samples,
    measure_bulk,
    measure_downtime,
    measure_idle_faults,
    run_floor,
)

DOWNTIME_MS = 8.0
GROWTH = 1.5
IDLE_FAULT = 1.5
BUSY_FAULT = 3.0
BULK = 0.5
MEMORY_MIB = 200.0
WIDTH = 120
"""Of the table where there is no terminal, in characters."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: sizes in MiB."""

    runs: int
    downtime_sizes: tuple[int, int]
    bulk_size: int
    fault_size: int
    faults: int
    rounds_runs: int


FULL = Plan(runs=9, downtime_sizes=(64, 2048), bulk_size=1024, fault_size=512, faults=4000, rounds_runs=3)
QUICK = Plan(runs=2, downtime_sizes=(64, 512), bulk_size=512, fault_size=128, faults=1000, rounds_runs=1)


def machine_facts() -> dict[str, Any]:
    """What the figures depend on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def collect(laboratory: Laboratory, plan: Plan, say: Callable[[str], None]) -> dict[str, list[Samples]]:
    """All measurements, in rounds, so that what disturbs the machine for a while disturbs everything alike."""
    small, large = plan.downtime_sizes
    measures: dict[str, Callable[[], Samples]] = {
        "downtime_small": lambda: measure_downtime(laboratory, small),
        "downtime_large": lambda: measure_downtime(laboratory, large),
        "idle": lambda: measure_idle_faults(laboratory, plan.fault_size, plan.faults),
        "bulk": lambda: measure_bulk(laboratory, plan.bulk_size, faulting=False),
        # In the middle of what is compared with it.
        "floor": lambda: run_floor(laboratory, plan.bulk_size, plan.faults),
        "bulk_faulting": lambda: measure_bulk(laboratory, plan.bulk_size, faulting=True),
    }
    samples: dict[str, list[Samples]] = {name: [] for name in measures}
    for number in range(plan.runs):
        for name, measure in measures.items():
            say(f"round {number + 1} of {plan.runs}: {name.replace('_', ' ')}")
            samples[name].append(measure())
    say("memory of both commands")
    samples["memory"] = [measure_bulk(laboratory, large, faulting=True, watched=True)]
    encryption = bench_tls.measures(laboratory, plan.bulk_size, plan.fault_size, plan.faults)
    for number in range(plan.runs):
        for name, measure in encryption.items():
            say(f"encryption, {number + 1} of {plan.runs}: {name}")
            samples.setdefault(name, []).append(measure())
    for number in range(plan.rounds_runs):
        for name, measure in bench_rounds.measures(laboratory).items():
            say(f"rounds, {number + 1} of {plan.rounds_runs}: {name}")
            samples.setdefault(name, []).append(measure())
    return samples


def judge(plan: Plan, samples: dict[str, list[Samples]]) -> list[Judgement]:
    """The table's lines. Ratios are taken between measurements of the same round."""
    small, large = plan.downtime_sizes

    def every(name: str, value: str) -> list[float]:
        return [float(one[value]) for one in samples[name]]

    def faults(name: str) -> list[float]:
        return [statistics.median(one["fault_us"]) for one in samples[name] if one["fault_us"]]

    def ratios(ours: Sequence[float], floor: Sequence[float]) -> list[float]:
        return [one / other for one, other in zip(ours, floor, strict=True)]

    floor_fault, floor_bulk = every("floor", "fault_p50_us"), every("floor", "bulk_bytes_per_second")
    felt = {size: every(name, "felt_ms") for size, name in ((small, "downtime_small"), (large, "downtime_large"))}
    resting = every("downtime_small", "before_ms") + every("downtime_large", "before_ms")
    growth = statistics.median(felt[large]) / statistics.median(felt[small])
    judgements = [
        at_most(f"downtime felt, {small} MiB", felt[small], "ms", DOWNTIME_MS),
        at_most("  as reported", every("downtime_small", "reported_ms"), "ms", None),
        at_most(f"downtime felt, {large} MiB", felt[large], "ms", DOWNTIME_MS),
        at_most("  as reported", every("downtime_large", "reported_ms"), "ms", None),
        at_most("  ratio of the medians", [growth], "x", GROWTH),
        at_most("  largest gap at rest", resting, "ms", None),
        at_most("fault, floor", floor_fault, "us", None),
        at_most("fault, link idle", faults("idle"), "us", None),
        at_most("  the floor's in turns with it", every("idle", "floor_p50_us"), "us", None),
        at_most("  ratio to the floor", ratios(faults("idle"), every("idle", "floor_p50_us")), "x", IDLE_FAULT),
        at_most("fault while bulk runs", faults("bulk_faulting"), "us", None),
        at_most("  ratio to the floor", ratios(faults("bulk_faulting"), floor_fault), "x", BUSY_FAULT),
        at_most("  the floor's while its bulk runs", every("floor", "busy_fault_p50_us"), "us", None),
        at_most("bulk, floor", [rate / 2**20 for rate in floor_bulk], "MiB/s", None),
    ]
    for title, name in (("bulk, process quiet", "bulk"), ("bulk, faults at full rate", "bulk_faulting")):
        rates = every(name, "bytes_per_second")
        judgements.append(at_most(title, [rate / 2**20 for rate in rates], "MiB/s", None))
        judgements.append(at_least("  ratio to the floor", ratios(rates, floor_bulk), "x", BULK))
    busy_bulk = every("floor", "busy_bulk_bytes_per_second")
    judgements.append(at_most("  the floor's with its faults", [rate / 2**20 for rate in busy_bulk], "MiB/s", None))
    for title, name in (("lm-serve", "serve_bytes"), ("lm-restore", "restore_bytes")):
        sizes = [size / 2**20 for size in every("memory", name)]
        judgements.append(at_most(f"memory of {title}, {large} MiB moved", sizes, "MiB", MEMORY_MIB))
    return judgements + bench_tls.judge(samples) + bench_rounds.judge(samples)


def show(console: Console, facts: dict[str, Any], judgements: Sequence[Judgement]) -> None:
    """The table, for human eyes."""
    console.print(
        f"Linux {facts['kernel']}, {facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"Python {facts['python']}, load {facts['load'][0]}; two network namespaces, a veth pair, post-copy"
    )
    table = Table()
    table.add_column("measure", no_wrap=True)
    for name in ("runs", "median", "min", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("asked for", no_wrap=True)
    table.add_column("judgement", no_wrap=True)
    for line in judgements:
        digits = 2 if line.unit in ("ms", "x") else 0
        numbers = [f"{value:.{digits}f}" for value in (line.median, line.least, line.most)]
        numbers[0] += f" {line.unit}"
        judgement = "" if line.holds is None else "[green]holds[/green]" if line.holds else "[red]does not hold[/red]"
        table.add_row(line.measure, str(line.runs), *numbers, line.bound, judgement)
    console.print(table)


def show_account(console: Console, plan: Plan, samples: dict[str, list[Samples]]) -> None:
    """Where the downtime goes, for human eyes: the medians of the steps. A median of sums is no sum of medians, so the
    last line says what the steps of one move add up to."""
    table = Table(title="where the downtime goes, as reported, us")
    table.add_column("step", no_wrap=True)
    columns = []
    for size, name in zip(plan.downtime_sizes, ("downtime_small", "downtime_large"), strict=True):
        table.add_column(f"{size} MiB", justify="right", no_wrap=True)
        columns.append([one["account_us"] for one in samples[name]])
    for step in dict.fromkeys(step for column in columns for account in column for step in account):
        medians = [statistics.median(account.get(step, 0) for account in column) for column in columns]
        table.add_row(step, *(f"{us:.0f}" for us in medians))
    sums = [statistics.median(sum(account.values()) for account in column) for column in columns]
    table.add_row("all of them", *(f"{us:.0f}" for us in sums), end_section=True)
    console.print(table)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """The result; the file is complete when it appears."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller processes")
    parser.add_argument("--runs", type=int, metavar="N", help="how often everything is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw samples and judgements")
    given = parser.parse_args(words)
    if given.runs is not None and given.runs < 1:
        parser.error("--runs: at least one")
    if given.json and not os.access(given.json.absolute().parent, os.W_OK):
        parser.error(f"--json: the folder of {given.json} does not exist or cannot be written to; name another one")
    return given


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, write. Returns 0 if every bound holds, 1 if one does not, 2 if something failed."""
    given = parse(words)
    if os.geteuid() != 0:
        print("bench: network namespaces need root; run it as root", file=sys.stderr)
        return 2
    leave_on_signals()
    plan = QUICK if given.quick else FULL
    if given.runs:
        plan = Plan(**(asdict(plan) | {"runs": given.runs}))
    console, facts = Console(), machine_facts()
    if not console.is_terminal:
        console.width = WIDTH
    progress = Console(stderr=True, highlight=False)
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="lm-bench-") as folder, two_machines() as (source, destination):
            laboratory = Laboratory(source, destination, Path(folder))
            samples = collect(laboratory, plan, lambda text: progress.print(text, style="dim"))
    except (ExperimentError, RuntimeError, TimeoutError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        kill_descendants()
    judgements = judge(plan, samples)
    show(console, facts, judgements)
    show_account(console, plan, samples)
    if given.json:
        judged = [asdict(judgement) for judgement in judgements]
        result = {"machine": facts, "plan": asdict(plan), "verdicts": judged, "samples": samples}
        write_json(given.json, result)
    return 0 if all(judgement.holds is not False for judgement in judgements) else 1


if __name__ == "__main__":
    sys.exit(main())
