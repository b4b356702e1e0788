"""A process moved by lm-serve and lm-restore over the link of an experiment, and what came of it in one form for
every peer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_migration.experiments.costs import Costs
from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.followed import Followed
from live_migration.experiments.machines import wait_for
from live_migration.experiments.network import Network

STRATEGIES = ("stop-and-copy", "pre-copy", "post-copy", "hybrid")
MOVE_SECONDS = 600.0
MAX_FREEZE = "600"
"""--max-freeze: how long everything takes is what is measured here, also where nobody would wait so long."""


@dataclass
class Moved:
    """What a migration was. Times in seconds since 1970; `pid` of the process at the destination, as this host sees it.

    `pages_sent` counts a page each time that it was sent."""

    pid: int
    command: float
    start: float
    frozen: float
    resumed: float
    complete: float
    reported_downtime_ms: float | None = None
    pages: int | None = None
    pages_sent: int | None = None
    pages_resent: int | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """What is to be moved, and how. `when_resumed` is called at once when the process runs at the destination."""

    network: Network
    folder: Path
    pid: int
    strategy: str
    costs: Costs
    when_resumed: Callable[[int], None]
    serve: Sequence[str] = ()
    restore: Sequence[str] = ()


def move(order: Order) -> Moved:
    """Move it with lm-serve and lm-restore, until the last page is there. ExperimentError with what they said."""
    source, destination, folder = order.network.source, order.network.destination, order.folder
    ticket = folder / "ticket"
    words = [sys.executable, "-m", "live_migration.cli.serve", str(order.pid), "--json"]
    words += ["--listen", f"{source.address}:0"]
    words += ["--ticket-file", str(ticket), "--report", str(folder / "lm-serve.json"), "--max-freeze", MAX_FREEZE]
    serve = Followed(source, [*words, *order.serve], folder, "lm-serve")
    order.costs.watch("serve", serve.process.pid)

    def poll() -> bool | None:
        if serve.process.poll() is not None:
            raise ExperimentError(f"lm-serve ended before there was a ticket: {serve.said()}")
        return ticket.exists() or None

    wait_for("the ticket", poll)
    words = [sys.executable, "-m", "live_migration.cli.restore", f"@{ticket}", "--strategy", order.strategy, "--json"]
    words += ["--report", str(folder / "lm-restore.json"), "--pid", "namespace", "--stdio", "null", "--tcp", "close"]
    # Both machines have the same files here, and the file that a workload's results go to changes all the time.
    words += ["--files", "size"]
    restore = Followed(destination, [*words, *order.restore], folder, "lm-restore")
    order.costs.watch("restore", restore.process.pid)
    try:
        resumed = restore.wait("resumed", MOVE_SECONDS)
    except ExperimentError as error:
        raise ExperimentError(f"{error} (lm-serve: {serve.said()})") from None
    pid = int(resumed["pid"])
    order.costs.spare(pid)
    order.when_resumed(pid)
    complete = restore.wait("complete", MOVE_SECONDS)
    order.costs.sample()
    serve.process.wait(MOVE_SECONDS)
    report = wait_for("lm-restore's report", lambda: restore.report() or None)
    frozen = serve.event("frozen") or restore.event("frozen") or resumed
    moved = Moved(
        pid=pid,
        command=serve.started,
        start=float(complete["time"]) - report["total_ms"] / 1000,
        # The event comes when the frozen process has been described; the report knows since when it stands still.
        frozen=min(float(frozen["time"]), float(resumed["time"]) - (report["downtime_ms"] or 0) / 1000),
        resumed=float(resumed["time"]),
        complete=float(complete["time"]),
        reported_downtime_ms=report["downtime_ms"],
        rounds=report["rounds"],
        reports={"serve": serve.report(), "restore": report},
    )
    count_pages(moved, report)
    return moved


def count_pages(moved: Moved, report: dict[str, Any]) -> None:
    """Pages of the process and how often they were sent, from lm-restore's report. Zero pages have no payload and are
    not sent."""
    pages = report["pages"]
    moved.pages, moved.pages_resent = pages["total"], pages["resent"]
    moved.pages_sent = pages["total"] - pages["zero"] + pages["resent"] + pages["late"]
