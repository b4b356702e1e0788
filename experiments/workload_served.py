"""The workloads redis and node: a server on the source, and a client that asks it by the service address."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.machines import Command, start
from live_migration.experiments.network import SERVICE
from live_migration.experiments.recorder import read_record
from live_migration.experiments.results import Cell
from live_migration.experiments.workloads import Observed, Place, observe

PORT = 7080
REDIS_ENTRY, NODE_ENTRY = 1400, 1200
"""Bytes of memory that an entry of 1 KiB takes, about."""
READY_SECONDS = 120.0
CHECK_SECONDS = 120.0
LONG_SECONDS = 0.001
"""Waits for an answer that are kept one by one."""


class RunningServer:
    """A server at work, and its client."""

    def __init__(self, server: Command, client: subprocess.Popen[str], record: Path, tells_gaps: bool) -> None:
        self.server, self.client, self.record, self.tells_gaps = server, client, record, tells_gaps
        self.pid = server.process.pid

    def resumed(self, pid: int) -> None:
        """Nothing changes for the client but where its packets go."""

    def finish(self, resumed: float) -> Observed:
        """See workloads.Running."""
        answers = read_record(self.record)
        seen = self._end_client()
        wrong, gaps = seen["wrong"], seen["gaps"] if self.tells_gaps else None
        error = f"{self.server.name}: {wrong} answers were not what the server must hold" if wrong else None
        return observe(answers, resumed, LONG_SECONDS, error=error, at_client=True, gaps=gaps)

    def _end_client(self) -> dict[str, Any]:
        try:
            out, err = self.client.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            raise ExperimentError(f"{self.server.name}: it does not answer its client any more") from None
        lines = out.strip().splitlines()
        if self.client.returncode or not lines:
            words = (err.strip().splitlines() or ["it said nothing"])[-1]
            raise ExperimentError(f"{self.server.name}: its client ended with {self.client.returncode}; {words}")
        seen: dict[str, Any] = json.loads(lines[-1])
        return seen


def program(name: str) -> str:
    """Where a program is. ExperimentError when it is not installed."""
    if found := shutil.which(name):
        return found
    raise ExperimentError(f"workload: {name} is not installed; install it, or choose another workload")


def start_redis(cell: Cell, place: Place) -> RunningServer:
    """See workloads.Starter. Without persistence, which would fork to save."""
    words = [program("redis-server"), "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]
    words += ["--appendonly", "no", "--dir", str(place.folder)]
    return _start(cell, place, words, "redis", cell.memory // REDIS_ENTRY)


def start_node(cell: Cell, place: Place) -> RunningServer:
    """See workloads.Starter."""
    entries = cell.memory // NODE_ENTRY
    script = Path(__file__).with_name("http_server.js")
    words = [program("node"), f"--max-old-space-size={cell.memory // 2**20 * 2 + 256}", str(script), str(PORT)]
    return _start(cell, place, [*words, str(entries), str(int(place.measured))], "http", entries)


def _start(cell: Cell, place: Place, words: Sequence[str], kind: str, entries: int) -> RunningServer:
    server = start(place.network.source, words, place.folder, cell.workload, start_new_session=True)
    record = place.folder / "answers"
    rate = -1 if cell.dirty_rate is None else cell.dirty_rate
    module = "live_migration.experiments.load_client"
    line = [sys.executable, "-m", module, kind, SERVICE, str(PORT), str(entries), str(rate), place.keys]
    client = subprocess.Popen(
        place.network.client.command(*line, str(record)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout
    if client.stdout.readline() != "ready\n":
        _, err = client.communicate()
        said = (err.strip().splitlines() or ["it said nothing"])[-1]
        raise ExperimentError(f"{cell.workload}: its client cannot fill it; {said}; {server.said()}")
    return RunningServer(server, client, record, tells_gaps=kind == "http")
