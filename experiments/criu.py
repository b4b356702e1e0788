"""The same process moved by CRIU, with its own commands as its documentation says (criu(8)).

stop-and-copy: a page server at the destination takes the pages, the small images follow, the process is restored.
post-copy: lazy-pages; the dump keeps the pages and serves them, the process is restored in a PID namespace of its own,
since its id is still taken at the source. Images lie in memory.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from live_migration.experiments.costs import family, name_of
from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.machines import Machine, wait_for
from live_migration.experiments.moves import MOVE_SECONDS, Moved, Order

PORT = 7090
SCRIPT = """#!/bin/sh
echo "$CRTOOLS_SCRIPT_ACTION $(date +%s.%N)" >> {path}
"""
READY_SECONDS = 20.0
QUOTED = 3
"""How many of its errors are quoted: the last say most."""


@dataclass
class Commands:
    """CRIU's commands of one migration: their images and logs. `name`: of the process that they move."""

    path: str
    order: Order
    source: Path
    destination: Path
    moments: Path
    name: str

    def start(self, name: str, machine: Machine, images: Path, *words: str, wrap: Sequence[str] = ()) -> Command:
        """Start one of them. Its log is in its folder of images."""
        line = [*wrap, self.path, name, "--images-dir", str(images), "--work-dir", str(images), "-o", f"{name}.log"]
        with (images / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(
                machine.command(*line, "-v2", *words), stdin=subprocess.DEVNULL, stdout=err, stderr=err
            )
        self.order.costs.watch(f"criu {name}", process.pid)
        return Command(name, process, images)

    def moment(self, action: str) -> float | None:
        """When CRIU ran its script for an action, seconds since 1970."""
        with contextlib.suppress(OSError):
            for line in self.moments.read_text().splitlines():
                name, _, at = line.partition(" ")
                if name == action and at:
                    return float(at)
        return None

    def copy_images(self) -> None:
        """What is no page goes to the destination by whatever copies files: both are here."""
        for image in self.source.glob("*.img"):
            if not (self.destination / image.name).exists():
                shutil.copy(image, self.destination)


@dataclass
class Command:
    """One command of CRIU's."""

    name: str
    process: subprocess.Popen[bytes]
    images: Path

    def failed(self) -> ExperimentError:
        """Its own words."""
        text = ""
        for file in (f"{self.name}.err", f"{self.name}.log"):
            with contextlib.suppress(OSError):
                text += (self.images / file).read_text(errors="replace")
        lines = text.strip().splitlines()
        errors = [line.strip() for line in lines if "Error" in line] or lines or ["it said nothing"]
        quoted = "; ".join(errors[-QUOTED:])
        return ExperimentError(f"criu {self.name} ended with {self.process.poll()}: {quoted}")

    def end(self, seconds: float = MOVE_SECONDS) -> None:
        """Wait for its end. ExperimentError with its own words."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ExperimentError(f"criu {self.name}: it did not end within {seconds:g} s") from None
        if status:
            raise self.failed()


def mover(path: str) -> Callable[[Order], Moved]:
    """Moves by the criu at a path."""

    def move(order: Order) -> Moved:
        """Move by criu. ExperimentError with its own words."""
        folders = [order.folder / f"criu-{name}" for name in ("source", "destination")]
        for folder in folders:
            folder.mkdir()
        moments = order.folder / "criu-moments"
        commands = Commands(path, order, folders[0], folders[1], moments, name_of(order.pid))
        return {"stop-and-copy": stop_and_copy, "post-copy": lazy_pages}[order.strategy](commands)

    return move


def stop_and_copy(commands: Commands) -> Moved:
    """Dump into a page server, then restore."""
    order, network = commands.order, commands.order.network
    there = network.destination.address
    server = commands.start(
        "page-server", network.destination, commands.destination, "--address", there, "--port", str(PORT)
    )
    # It is ready when it listens; there is no other sign, and the dump connects at once.
    _wait_for_listener(server, network.destination)
    begun = time.time()
    words = ["--page-server", "--address", there, "--port", str(PORT), "--tcp-close", "-t", str(order.pid)]
    commands.start("dump", network.source, commands.source, *words).end()
    server.end()
    commands.copy_images()
    return _restore(commands, begun, [], [])


def lazy_pages(commands: Commands) -> Moved:
    """Dump all but the pages, and restore while the dump serves them."""
    order, network = commands.order, commands.order.network
    here = network.source.address
    begun = time.time()
    words = ["--lazy-pages", "--address", here, "--port", str(PORT), "--tcp-close", "-t", str(order.pid)]
    dump = commands.start("dump", network.source, commands.source, *words)
    _wait_for_listener(dump, network.source)
    commands.copy_images()
    words = ["--page-server", "--address", here, "--port", str(PORT)]
    daemon = commands.start("lazy-pages", network.destination, commands.destination, *words)
    socket = commands.destination / "lazy-pages.socket"
    wait_for("criu's lazy-pages.socket", lambda: _there(daemon, socket), READY_SECONDS, 0.001)
    return _restore(commands, begun, ["--lazy-pages"], [dump, daemon])


def _restore(commands: Commands, begun: float, words: list[str], until: list[Command]) -> Moved:
    """Restore, and wait until all these have ended: then every page is there."""
    order, script = commands.order, commands.order.folder / "criu-script"
    script.write_text(SCRIPT.format(path=commands.moments))
    script.chmod(0o700)
    # Not detached: its end would end the PID namespace whose first process it is.
    wrap = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    more = ["--tcp-close", "--action-script", str(script), *words]
    restore = commands.start("restore", order.network.destination, commands.destination, *more, wrap=wrap)

    def poll() -> float | None:
        if (moment := commands.moment("post-resume")) is None and restore.process.poll() is not None:
            raise restore.failed()
        return moment

    resumed = wait_for("criu's post-resume", poll, MOVE_SECONDS, 0.001)
    for pid in family(restore.process.pid):
        if name_of(pid) == commands.name:
            order.costs.spare(pid)
    order.when_resumed(0)
    for command in until:
        command.end()
    complete = time.time() if until else resumed
    order.costs.sample()
    return Moved(pid=0, command=begun, start=begun, frozen=begun, resumed=resumed, complete=complete)


def _there(command: Command, path: Path) -> bool | None:
    if command.process.poll() is not None:
        raise command.failed()
    return path.exists() or None


def _wait_for_listener(command: Command, machine: Machine) -> None:
    """Wait until something listens on the port. ExperimentError when the command ends before."""

    def poll() -> bool | None:
        if command.process.poll() is not None:
            raise command.failed()
        words = machine.command("cat", "/proc/net/tcp", "/proc/net/tcp6")
        lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
        # Local address and state are the second and fourth column (proc_net_tcp.rst); 0A: LISTEN.
        return any(f":{PORT:04X} " in line and " 0A " in line for line in lines) or None

    wait_for(f"criu {command.name}'s port", poll, MOVE_SECONDS, 0.005)
