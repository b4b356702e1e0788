"""Measure the floor: what the kernel and this machine allow over a link, with nothing of ours in between.

A bare C pager (fault round trip, bulk pull) and the freeze and resume of an empty process. Appended to DIR/floor.jsonl,
so that the report can show the limit beside each figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.links import PRESETS, parse_link
from live_migration.experiments.machine_facts import machine_facts
from live_migration.experiments.measured_links import measure_link
from live_migration.experiments.network import Network, check_root, network
from live_migration.experiments.programs import program
from live_migration.experiments.results import FLOORS, Floor, Link
from live_migration.experiments.run import keep_line, link_said, make_folder
from live_migration.experiments.self_check import measuring_cost, turns
from live_migration.experiments.trial import nothing_left

PAGES, FAULTS = 65536, 1500
"""Of 256 MiB a third is touched, a third pulled, and a third pulled beside faults."""
ROUNDS = 15
BULK_SECONDS = 6.0
"""How long the pulls may take together on a slow link."""
FAULT_SECONDS = 6.0
LEAST_PAGES = 3 * 256 * 8
PATIENCE = 120.0


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb's options."""
    parser = verbs.add_parser("floor", help=(__doc__ or "").partition("\n")[0], description=__doc__)
    parser.add_argument(
        "--link",
        action="append",
        metavar="L",
        help=f"{', '.join(PRESETS)} or as rtt=1ms,rate=1gbit (default: loopback)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.set_defaults(verb=floor_verb)


def floor_verb(given: argparse.Namespace) -> Status:
    """`lm-bench floor`. Raises ExperimentError."""
    links = [parse_link(text) for text in given.link or ["loopback"]]
    check_root()
    console = Console(stderr=True, highlight=False)
    measure_floors(links, given.output, lambda text: console.print(text, markup=False))
    return Status.OK


def measure_floors(links: list[Link], folder: Path, say: Callable[[str], None]) -> None:
    """Append the floor of each link to folder/floor.jsonl. Raises ExperimentError."""
    make_folder(folder)
    taken: list[tuple[float, float]] = []
    for link in links:
        with network(link) as built, nothing_left():
            measured = replace(built, link=measure_link(built))
            say(link_said(measured.link))
            found = measure_floor(measured)
            # The same for every link.
            taken = taken or turns(measured)
            found.samples["measuring"] = {"cost": measuring_cost(taken), "operations_per_second": taken}
            keep_line(folder / FLOORS, found)
            say(
                f"floor of {link.name}: fault {found.fault_p50_us:.0f} us (p99 {found.fault_p99_us:.0f}), "
                f"bulk {found.bulk_rate / 2**20:.0f} MiB/s, downtime {found.downtime_ms:.2f} ms"
            )
    cost = f"measuring costs the toucher {measuring_cost(taken):.1%} of its speed"
    say(f"{cost}, by {len(taken)} turns with and without it")


def measure_floor(built: Network) -> Floor:
    """The floor of a network's link. Raises ExperimentError."""
    pages, faults = sizes(built.link)
    bare = _run(built, "floor", "--pages", str(pages), "--faults", str(faults))
    handed = _run(built, "freeze_resume", "--rounds", str(ROUNDS))
    return Floor(
        link=built.link,
        machine=machine_facts({}),
        fault_p50_us=bare["fault_p50_us"],
        fault_p99_us=bare["fault_p99_us"],
        bulk_rate=bare["bulk_bytes_per_second"],
        downtime_ms=statistics.median(handed["gaps_us"]) / 1000,
        samples={"pager": bare, "downtime_us": handed["gaps_us"]},
    )


def sizes(link: Link) -> tuple[int, int]:
    """Pages of memory and faults that a link carries in reasonable time."""
    pages, faults = PAGES, FAULTS
    if link.measured_rate:
        pages = min(pages, int(link.measured_rate * BULK_SECONDS / 4096))
    if link.measured_rtt_ms:
        faults = min(faults, int(FAULT_SECONDS * 1000 / link.measured_rtt_ms))
    pages = max(pages, LEAST_PAGES)
    # A third holds the faults, at most each fourth page of it.
    return pages, max(10, min(faults, pages // 3 // 4 - 64))


def _run(built: Network, name: str, *more: str) -> dict[str, Any]:
    source = built.source
    words = [program(name), *more, "--address", source.address]
    words += ["--source-netns", f"/run/netns/{source.namespace}"]
    try:
        done = subprocess.run(built.destination.command(*words), capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ExperimentError(
            f"{name}: it did not end within {PATIENCE:g} s over the link {built.link.name}; ask for a faster link"
        ) from None
    if done.returncode:
        raise ExperimentError(f"{name}: it ended with {done.returncode}; {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
