"""A host with a real sshd, and a process here that counts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demo.far_host import FarHost, far_host
from live_migration.experiments.machines import (
    Command,
    Machine,
    adopt_orphans,
    descendants,
    kill_descendants,
    start,
    two_machines,
    wait_for,
)
from tests.conftest import skip
from tests.support import laws

PROGRAM = laws.ROOT / "demo" / "counter.c"
STORES = "/var/lib/live-migration/files"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """All tests of this folder are of make test-ssh."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ssh)


@dataclass
class Hosts:
    """This host (`near`, a network namespace of it) and the other one; `shared` is a folder of both."""

    near: Machine
    far: FarHost
    shared: Path
    counted: int = 0

    def count(self, mebibytes: int = 16, program: Path | None = None) -> Counting:
        """Start a process here that counts; its program is one that both hosts have, unless another one is given."""
        self.counted += 1
        log = self.shared / f"log-{self.counted}"
        words = self.near.command(str(program or self.shared / "counter"), str(log), str(mebibytes))
        null = subprocess.DEVNULL
        process = subprocess.Popen(words, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True)
        counting = Counting(process, log)
        counting.goes_on()
        return counting

    def words(self, *words: object, ssh: str | None = None) -> list[str]:
        """A command line of lm-migrate."""
        line = [sys.executable, "-m", "live_migration.cli.migrate", "--ssh", ssh or self.far.ssh]
        return self.near.command(*line, *map(str, words))

    def migrate(self, *words: object, ssh: str | None = None, status: int = 0) -> str:
        """Run lm-migrate to its end; what it says."""
        done = subprocess.run(
            self.words(*words, ssh=ssh), cwd=laws.ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr + done.stdout

    def begin(self, folder: Path, *words: object) -> Command:
        """Start lm-migrate, which prints JSON."""
        line = self.words("--json", f"--report={folder / 'migrate.json'}", *words)
        return start(None, line, folder, "migrate", cwd=laws.ROOT)


def cut(far: FarHost) -> None:
    """End every connection of ssh, as a network that is gone for long would."""
    for pid in descendants(far.init):
        with contextlib.suppress(OSError):
            if pid not in far.lasting and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd"):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def instead_of(far: FarHost, tool: str, script: str) -> Iterator[None]:
    """Within, a tool there does something else."""
    path = far.path(f"/usr/local/bin/{tool}")
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


@dataclass
class Counting:
    """A process that counts in a file."""

    process: subprocess.Popen[bytes]
    log: Path
    begin: int = field(default=0)

    @property
    def pid(self) -> int:
        """Its id here."""
        return self.process.pid

    def numbers(self) -> list[str]:
        """What it has written, without a line that is not whole."""
        return [line.rstrip("\n") for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def goes_on(self) -> None:
        """It counts, wherever it runs, and has never left anything out or found wrong memory."""
        begin = len(self.numbers()) if self.log.exists() else 0
        wait_for("the counter", lambda: (self.log.exists() and len(self.numbers()) > begin + 10) or None, 60)
        found = self.numbers()
        assert found == [str(number) for number in range(len(found))]

    def runs_here(self) -> bool:
        """Is it a process of this host, that has not ended?"""
        return self.process.poll() is None

    def end(self) -> None:
        """End it here."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Both hosts."""
    if os.geteuid() != 0:
        skip("namespaces need root")
    folder, shared = tmp_path_factory.mktemp("far"), tmp_path_factory.mktemp("shared")
    for path in (folder.parent, shared):
        path.chmod(0o755)
    subprocess.run(["gcc", "-static", "-O1", str(PROGRAM), "-o", str(shared / "counter")], check=True)
    with two_machines() as (near, there), far_host(there, folder, [shared]) as far:
        yield Hosts(near, far, shared)


@pytest.fixture
def ended(hosts: Hosts) -> Iterator[None]:
    """Every process that the test leaves behind is ended after it, on both hosts."""
    adopt_orphans()
    yield
    kill_descendants(hosts.far.lasting)
    adopt_orphans(False)


@pytest.fixture
def only_here(hosts: Hosts, ended: None, tmp_path: Path) -> Iterator[Path]:
    """A folder that only the source has; afterwards nothing is left at the destination."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    yield tmp_path
    assert not hosts.far.path(str(tmp_path)).exists()


def stores(hosts: Hosts) -> list[str]:
    """The stores of the other host."""
    folder = hosts.far.path(STORES)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def resumed_pid(command: Command) -> int:
    """The id of the moved process at the destination."""
    return int(command.event("resumed")["pid"])


def busy(hosts: Hosts) -> list[str]:
    """What of ours runs there."""
    return [words for words in hosts.far.processes() if "lm-" in words or "/lm " in words]


def nothing_there(hosts: Hosts) -> None:
    """Nothing is left there but the cache."""
    wait_for("the end there", lambda: not busy(hosts) or None, 60)
    assert [path.name for path in hosts.far.path("/tmp").iterdir() if "lm-" in path.name] == []
    assert json.dumps(sorted(path.name for path in hosts.far.path("/root/.cache").iterdir())) == '["live-migration"]'
