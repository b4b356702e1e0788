"""List: the workloads, strategies, links and peers that there are."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from live_migration.experiments.errors import Status
from live_migration.experiments.links import MEANINGS

STRATEGIES = {
    "stop-and-copy": "the process stands still while everything travels",
    "pre-copy": "rounds of copying while it runs, then the rest while it stands still",
    "post-copy": "it stands still for a moment, its pages follow",
    "hybrid": "rounds of copying while it runs, then a moment, and the rest follows",
}
WORKLOADS = {
    "toucher": "a C program that works on its memory and times every operation",
    "redis": "redis-server under a client that writes and reads",
    "python": "a numeric job in Python",
    "node": "an HTTP server in node under a client",
    "sqlite": "a database in memory that reads and writes rows",
}
PEERS = {
    "criu": "--peer criu=PATH: its page server (stop-and-copy) and lazy-pages (post-copy)",
    "floor": "lm-bench floor: a bare C pager, and the freeze and resume of an empty process",
}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verb takes no options."""
    parser = verbs.add_parser("list", help=(__doc__ or "").partition("\n")[0], description=__doc__)
    parser.set_defaults(verb=list_verb)


def list_verb(given: argparse.Namespace) -> Status:
    """`lm-bench list`."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    parts = {"workload": WORKLOADS, "strategy": STRATEGIES, "link": MEANINGS, "peer": PEERS}
    for kind, names in parts.items():
        for name, meaning in names.items():
            table.add_row(kind, name, meaning)
    table.add_row("link", "rtt=1ms,rate=1gbit,loss=0.1%", "any of the three, with other numbers")
    Console(highlight=False).print(table)
    return Status.OK
