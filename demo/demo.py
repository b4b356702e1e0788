"""make demo: moves a real server between two machines while a client talks to it, and shows what came of it.

The machines are network namespaces of this one, on one LAN. The service address moves with the process
(--take-address), and so does the client's connection: the client never learns that its server changed machines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.network import SERVICE, TAKEN, Network, demo_network
from live_migration.experiments.machines import (
    Command,
    Move,
    adopt_orphans,
    begin_move,
    kill_descendants,
    leave_on_signals,
    start,
    wait_for,
)
from live_migration.experiments.resp import Connection, key_of, value_of

PORT = 6379
BATCH = 500
CLIENT_SECONDS = 1.0


@dataclass
class Demo:
    """Everything that runs."""

    network: Network
    folder: Path
    entries: int
    console: Console


def server_command(folder: Path) -> tuple[str, list[str]]:
    """The server: redis-server where it is installed. Without persistence, which would fork to save."""
    redis = shutil.which("redis-server")
    if redis:
        return "redis-server", [
            redis, "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "",
            "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
    return "a Python service (redis-server is not installed)", [sys.executable, "-m", "demo.service", str(PORT)]


def query_service(demo: Demo, what: str) -> dict[str, Any]:
    """Run one step of this file where the client is: only there does the service address lead to the server."""
    words = [sys.executable, "-m", "demo.demo", "--step", what, "--entries", str(demo.entries)]
    done = subprocess.run(demo.network.client.command(*words), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def step_fill(entries: int) -> dict[str, Any]:
    """Wait for the server, and fill it."""

    def connect() -> Connection | None:
        try:
            return Connection(SERVICE, PORT, 60)
        except OSError:
            return None

    connection = wait_for("the server", connect, 60)
    for first in range(0, entries, BATCH):
        numbers = range(first, min(first + BATCH, entries))
        connection.query_all([(b"SET", key_of(number), value_of(number)) for number in numbers])
    return {"size": connection.query(b"DBSIZE")}


def step_check(entries: int) -> dict[str, Any]:
    """Read every entry back and compare it."""
    connection = Connection(SERVICE, PORT, 60)
    wrong = 0
    for first in range(0, entries, BATCH):
        numbers = range(first, min(first + BATCH, entries))
        found = connection.query(b"MGET", *(key_of(number) for number in numbers))
        assert isinstance(found, list)
        wrong += sum(value != value_of(number) for number, value in zip(numbers, found, strict=True))
    counter = connection.query(b"GET", b"counter")
    assert isinstance(counter, bytes)
    return {"wrong": wrong, "size": connection.query(b"DBSIZE"), "counter": int(counter)}


def memory_of(pid: int) -> int:
    """A process's resident memory, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def run(demo: Demo) -> bool:
    """The demo itself; whether all is well."""
    say, network = demo.console.print, demo.network
    name, words = server_command(demo.folder)
    server = start(network.source, words, demo.folder, "server", start_new_session=True)
    say(f"source machine       [bold]{name}[/bold] is process {server.process.pid}, at {SERVICE}:{PORT}")
    size = query_service(demo, "fill")["size"]
    say(f"                     holds {size:,} entries, {memory_of(server.process.pid) / 2**20:.0f} MiB of memory")
    client = start_client(demo)
    time.sleep(CLIENT_SECONDS)
    say(f"client machine       counts up and reads without a pause\n\n[bold]moving[/bold] process {server.process.pid}")
    move = begin_move(
        server.process.pid,
        (network.source, network.destination),
        demo.folder,
        restore=["--take-address", TAKEN, "--stdio", "null", "--pid", "namespace"],
    )
    try:
        pid = move.resumed()
        say(f"destination machine  it runs, here as process {pid}; its memory follows")
        move.complete(300)
    except (RuntimeError, TimeoutError) as error:
        say(f"[red]{error}[/red]\n{move.said()}", markup=False)
        return False
    say(f"source machine       every page has left; lm-serve has ended, process {server.process.pid} is gone")
    time.sleep(CLIENT_SECONDS)
    seen = end_client(client)
    checked = query_service(demo, "check")
    return show(demo, move, seen, checked)


def start_client(demo: Demo) -> tuple[Command, int]:
    """Start the client; it ends when the returned descriptor is closed."""
    reading, writing = os.pipe()
    words = [sys.executable, "-m", "demo.client", SERVICE, str(PORT), str(demo.entries)]
    with (demo.folder / "client.out").open("wb") as out, (demo.folder / "client.err").open("wb") as err:
        process = subprocess.Popen(demo.network.client.command(*words), stdin=reading, stdout=out, stderr=err)
    os.close(reading)
    return Command("client", process, demo.folder), writing


def end_client(client: tuple[Command, int]) -> dict[str, Any]:
    """End the client; what it has seen."""
    command, writing = client
    os.close(writing)
    command.process.wait(30)
    seen: dict[str, Any] = json.loads((command.folder / "client.out").read_text())
    return seen


def show(demo: Demo, move: Move, seen: dict[str, Any], checked: dict[str, Any]) -> bool:
    """The result, as a table; whether all is well."""
    report = move.restore.report()
    faults, pages, amount = report["faults"], report["pages"], report["bytes"]
    resumed = float(move.restore.event("resumed")["time"])
    around = [wait["seconds"] for wait in seen["waits"] if resumed - 1 < wait["until"] < resumed + 3]
    intact = not checked["wrong"] and not seen["wrong"] and checked["counter"] >= seen["counter"] and not seen["lost"]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("downtime", f"[bold]{report['downtime_ms']:.1f} ms[/bold]", "freeze to resume, as lm reports it")
    table.add_row(
        "longest wait", f"[bold]{max(around, default=0) * 1000:.1f} ms[/bold]", "for an answer, as the client felt it"
    )
    table.add_row("memory", f"{amount['memory'] / 2**20:.0f} MiB", f"complete after {report['total_ms'] / 1000:.2f} s")
    table.add_row("on the wire", f"{amount['wire'] / 2**20:.0f} MiB", "in both directions, after compression")
    median, tail = faults["p50_us"], faults["p99_us"]
    table.add_row("faults", f"{faults['count']:,}", f"median {median:.0f} us, 99 of 100 within {tail:.0f} us")
    table.add_row("pages", f"{pages['total']:,}", f"{pages['faulted']:,} by faults, {pages['prefetched']:,} in bulk")
    table.add_row("client", f"{seen['answers']:,} answers", f"{seen['wrong']} wrong, {seen['lost']} connections lost")
    table.add_row(
        "state",
        "[bold green]intact[/bold green]" if intact else "[bold red]damaged[/bold red]",
        f"all {demo.entries:,} entries read back, {checked['wrong']} wrong",
    )
    table.add_row("counter", f"{checked['counter']:,}", f"the client was last told {seen['counter']:,}")
    demo.console.print()
    demo.console.print(table)
    return intact


def main() -> int:
    """The demo, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=250_000, help="of 1 KiB each")
    parser.add_argument("--step", choices=("fill", "check"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps({"fill": step_fill, "check": step_check}[given.step](given.entries)))
        return 0
    if os.geteuid() != 0:
        print("demo: network namespaces need root; run it as root, or with sudo make demo", file=sys.stderr)
        return 1
    adopt_orphans()
    leave_on_signals()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with demo_network() as network, tempfile.TemporaryDirectory(prefix="lm-demo-") as folder:
        try:
            return 0 if run(Demo(network, Path(folder), given.entries, console)) else 1
        finally:
            kill_descendants()


if __name__ == "__main__":
    sys.exit(main())
