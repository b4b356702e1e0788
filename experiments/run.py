"""Measure: every strategy on the same workloads over the same links.

Each run starts a workload, lets it work, moves it, lets it recover, and compares all its data; a run whose data is not
right has failed. Results are appended to DIR/results.jsonl at once, and a sweep that was interrupted goes on where it
was when the same command is given again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from live_migration.experiments import criu
from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.links import PRESETS, parse_link
from live_migration.experiments.machine_facts import machine_facts
from live_migration.experiments.measured_links import measure_link
from live_migration.experiments.moves import STRATEGIES, move
from live_migration.experiments.network import check_root, network
from live_migration.experiments.plans import (
    PEERS,
    WORKLOADS,
    Plan,
    choose,
    done_already,
    parse_memory,
    parse_peers,
    parse_rates,
)
from live_migration.experiments.results import NAME, Cell, Floor, Link, Result, append
from live_migration.experiments.trial import Bench, run_cell
from live_migration.experiments.workload_toucher import LOCALITIES
from live_migration.experiments.workloads import KEYS, Toucher

MEMORY_NEEDED = 2.2
"""Source and destination are one machine: how often a process's memory has to be free."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb's options."""
    parser = verbs.add_parser("run", help=(__doc__ or "").partition("\n")[0], description=__doc__)
    add = parser.add_argument
    add("--workload", action="append", metavar="W[,W]", help=f"all, or of {', '.join(WORKLOADS)} (default: toucher)")
    add("--strategy", action="append", metavar="S[,S]", help=f"all (default), or of {', '.join(STRATEGIES)}")
    add("--link", action="append", metavar="L", help=f"{', '.join(PRESETS)} or as rtt=1ms,rate=1gbit,loss=0.1%%; "
        "several times for several links (default: loopback)")  # fmt: skip
    add("--memory", action="append", metavar="N[,N]", help="of the process, as 64MiB,2GiB (default: 64MiB)")
    add("--dirty-rate", action="append", metavar="R[,R]", help="what it writes, as 0,10MiB/s; own: as it likes "
        "(default)")  # fmt: skip
    add("--runs", type=int, default=1, metavar="N", help="how often each cell is measured (default: 1)")
    add("--seconds", type=float, default=2.0, help="of work after the last page is there, half as long before the "
        "migration (default: 2)")  # fmt: skip
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    add("--peer", action="append", default=[], metavar="NAME=PATH", help=f"the same by {', '.join(PEERS)} too")
    toucher = parser.add_argument_group("the workload toucher")
    usual = Toucher()
    toucher.add_argument("--working-set", type=float, default=usual.working_set, help="share of its memory, 0 to 1")
    toucher.add_argument("--locality", default=usual.locality, help=f"one of {', '.join(LOCALITIES)}")
    toucher.add_argument("--write-share", type=float, default=usual.write_share, help="of operations, 0 to 1")
    toucher.add_argument("--compressible", type=float, default=usual.compressible, help="share of each page, 0 to 1")
    toucher.add_argument("--threads", type=int, default=usual.threads, help="how many work")
    served = parser.add_argument_group("the workloads redis, node and sqlite")
    served.add_argument("--keys", choices=KEYS, default=KEYS[0], help="which entries are asked for: all alike, "
        "or few of them most of the time (default: uniform)")  # fmt: skip
    parser.set_defaults(verb=run_verb)


def joined(words: list[str] | None, usual: str) -> str:
    """An option that takes a list with commas, given several times or not at all."""
    return ",".join(words) if words else usual


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan that a command line describes. ExperimentError (USAGE)."""
    if given.runs < 1 or not 0.2 <= given.seconds <= 600:
        raise ExperimentError("--runs is at least 1, and --seconds between 0.2 and 600", Status.USAGE)
    for name in ("working_set", "write_share", "compressible"):
        if not 0 <= getattr(given, name) <= 1:
            raise ExperimentError(f"--{name.replace('_', '-')}: a share is between 0 and 1", Status.USAGE)
    if not 1 <= given.threads <= 64:
        raise ExperimentError("--threads: between 1 and 64", Status.USAGE)
    toucher = Toucher(
        given.working_set, choose(given.locality, "locality", LOCALITIES)[0], given.write_share, given.compressible,
        given.threads,
    )  # fmt: skip
    return Plan(
        workloads=choose(joined(given.workload, "toucher"), "workload", WORKLOADS),
        strategies=choose(joined(given.strategy, "all"), "strategy", STRATEGIES),
        links=tuple({link.name: link for link in map(parse_link, given.link or ["loopback"])}.values()),
        memory=parse_memory(joined(given.memory, "64MiB")),
        dirty_rates=parse_rates(joined(given.dirty_rate, "own")),
        runs=given.runs,
        peers=parse_peers(given.peer),
        toucher=toucher,
        keys=given.keys,
    )


def run_verb(given: argparse.Namespace) -> Status:
    """`lm-bench run`. Raises ExperimentError."""
    plan = plan_of(given)
    check_root()
    check_memory(plan)
    return run_plans([plan], given.output, given.seconds, Console(stderr=True, highlight=False))


def check_memory(plan: Plan) -> None:
    """ExperimentError (SYSTEM) where the machine cannot hold a workload twice, as it must."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    if (needed := int(max(plan.memory) * MEMORY_NEEDED)) > free:
        raise ExperimentError(
            f"--memory {max(plan.memory) // 2**20}MiB: source and destination are both here and need "
            f"{needed // 2**20} MiB, {free // 2**20} MiB are free; ask for less"
        )


@dataclass
class Sweep:
    """A sweep under way."""

    folder: Path
    progress: Progress
    failed: int = 0
    begun: float = field(default_factory=time.monotonic)

    def keep(self, result: Result) -> None:
        """Append a result and say it in a line. ExperimentError (NO_SPACE)."""
        keep_line(self.folder / NAME, result)
        self.failed += not result.verified
        self.progress.console.print(f"{title(result.cell)}: {said(result)}", markup=False)


def keep_line(path: Path, result: Result | Floor) -> None:
    """Append a result to its file. ExperimentError (NO_SPACE)."""
    try:
        append(path, result)
    except OSError as error:
        raise ExperimentError(
            f"{path}: the result cannot be written ({error.strerror}); make room and give the same command again, it "
            "goes on from here",
            Status.NO_SPACE,
        ) from None


def title(cell: Cell) -> str:
    """A cell in a few words."""
    rate = "" if cell.dirty_rate is None else f" {cell.dirty_rate / 2**20:g} MiB/s dirty"
    memory = f"{cell.memory / 2**20:g} MiB"
    return f"{cell.link} {cell.workload} {memory}{rate} {cell.peer or 'lm'} {cell.strategy} run {cell.run + 1}"


def said(result: Result) -> str:
    """A result in a few words."""
    if not result.verified:
        return f"failed: {result.error}"
    felt = [("felt by the process", result.downtime_ms), ("by the client", result.client_downtime_ms)]
    parts = [f"{value:.1f} ms {whom}" for whom, value in felt if value is not None]
    total = f", complete after {result.total_ms / 1000:.2f} s" if result.total_ms is not None else ""
    return f"down {', '.join(parts) or 'unknown'}{total}, data right"


def link_said(link: Link) -> str:
    """A link as it was asked for and as it is."""
    rate = f"{link.asked_rate * 8 / 1e6:g} Mbit/s" if link.asked_rate else "no limit"
    loss = f", {link.loss:.2%} lost" if link.loss else ""
    return (
        f"link {link.name} by {link.by}: asked for {link.asked_rtt_ms:g} ms, {rate}{loss}; measured "
        f"{link.measured_rtt_ms:.3f} ms, half of all within {link.measured_jitter_ms:.3f} ms of that, "
        f"{link.measured_rate * 8 / 1e6:.0f} Mbit/s"
    )


def make_folder(folder: Path) -> None:
    """The folder of the results. ExperimentError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ExperimentError(
            f"{folder}: cannot be written to ({error.strerror}); name another folder with -o", Status.NO_SPACE
        ) from None


def run_plans(plans: list[Plan], folder: Path, seconds: float, console: Console) -> Status:
    """Measure what is not done yet, link by link. Raises ExperimentError."""
    make_folder(folder)
    done = done_already(folder)
    left = [
        (plan, link, [cell for cell in plan.cells(link) if cell.key() not in done])
        for plan in plans for link in plan.links
    ]  # fmt: skip
    count = sum(len(cells) for _, _, cells in left)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        sweep = Sweep(folder, progress)
        task = progress.add_task("beginning", total=count)
        for plan, link, cells in left:
            if not cells:
                continue
            progress.update(task, description=f"measuring the link {link.name}")
            with network(link) as built:
                built = replace(built, link=measure_link(built))
                progress.console.print(link_said(built.link), markup=False)
                bench = Bench(
                    built, machine_facts(plan.peers), before=seconds / 2, after=seconds,
                    toucher=plan.toucher, keys=plan.keys,
                    movers={"": move, **{name: criu.mover(path) for name, path in plan.peers.items()}},
                )  # fmt: skip
                for cell in cells:
                    progress.update(task, description=title(cell))
                    sweep.keep(run_cell(replace(bench, machine=machine_facts(plan.peers)), cell))
                    progress.advance(task)
    total = sum(1 for plan in plans for link in plan.links for _ in plan.cells(link))
    console.print(f"{count} of {total} runs measured now, {sweep.failed} failed; in {folder / NAME}", markup=False)
    return Status.RUNS_FAILED if sweep.failed else Status.OK
