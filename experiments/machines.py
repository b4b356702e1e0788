"""Two machines on one: network namespaces joined by a veth pair, and a process moved from one to the other.

Needs root. Whatever is started here is ended again, also when something fails: this process makes itself the
parent of every orphan, and at the end kills what descends from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from live_migration.experiments.changes import ARRIVED, WRITTEN, changes

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
SECONDS = 60.0
PAUSE = 0.005


@dataclass(frozen=True)
class Machine:
    """A network namespace: its name, its end of the link and the address there."""

    namespace: str
    link: str
    address: str

    def command(self, *words: str) -> list[str]:
        """The command line that runs words there; nsenter becomes the command, so the process id is its own."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *words]

    def ip(self, *words: str) -> None:
        """Run `ip` there. Raises RuntimeError with what ip said."""
        run_ip("-n", self.namespace, *words)


def run_ip(*words: str) -> None:
    """Run iproute2's ip. Raises RuntimeError with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def add_namespace(stack: contextlib.ExitStack, name: str) -> None:
    """Make a network namespace that goes with the stack. Raises RuntimeError with what ip said."""
    # Before it exists: a signal may come when it does and ip has not said so yet.
    stack.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True)
    run_ip("netns", "add", name)


@contextlib.contextmanager
def two_machines(names: Sequence[str] = ("source", "destination")) -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces with unique names, joined by a veth pair; removed on every way out."""
    remove_forsaken()
    unique = f"{os.getpid()}-{secrets.token_hex(2)}"
    machines = [Machine(f"lm-{name}-{unique}", "veth0", f"10.99.0.{i}") for i, name in enumerate(names, 1)]
    with contextlib.ExitStack() as stack:
        for machine in machines:
            add_namespace(stack, machine.namespace)
        first, second = machines
        first.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", second.namespace)
        for machine in machines:
            machine.ip("address", "add", f"{machine.address}/24", "dev", machine.link)
            machine.ip("link", "set", "lo", "up")
            machine.ip("link", "set", machine.link, "up")
        yield first, second


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_on_signals(
    numbers: Sequence[signal.Signals] = ENDING, leave: Callable[[int], BaseException] = lambda n: SystemExit(128 + n)
) -> None:
    """Let signals that end this process leave through every clean-up, by an exception; a second signal does not
    disturb that. A fork of this process, whose clean-ups are not its own, ends as it would without."""
    owner = os.getpid()

    def on_signal(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise leave(number)

    for number in numbers:
        signal.signal(number, on_signal)


def remove_forsaken(folder: Path = Path("/run/netns")) -> None:
    """Remove the namespaces of processes that were killed before they could do it. Their names tell whose they are."""
    for path in folder.glob("lm-*"):
        owner = re.fullmatch(r"lm-[a-z]+-([0-9]+)(-[0-9a-f]+)?", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True)


def adopt_orphans(adopt: bool = True) -> None:
    """Make this process the parent of every descendant whose parent ends (PR_SET_CHILD_SUBREAPER), or no more."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def parents() -> dict[int, int]:
    """Every process's parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            # Without pathlib, which takes longer than the kernel: tests ask for this again and again.
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                found[int(name)] = int(file.read().rpartition(b")")[2].split(None, 2)[1])
    return found


def descendants(pid: int) -> list[int]:
    """The processes that descend from one, nearest first."""
    known = parents()
    found, generation = [], [pid]
    while generation:
        generation = [child for child, parent in known.items() if parent in generation]
        found += generation
    return found


def kill_descendants(spared: Collection[int] = ()) -> None:
    """Kill and reap every process that descends from this one, those that are born meanwhile too, but the spared."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [pid for pid in descendants(os.getpid()) if pid not in spared]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if spared and not found:
            return
        time.sleep(0.01)


T = TypeVar("T")


def wait_for(what: str, poll: Callable[[], T | None], seconds: float = SECONDS, pause: float = PAUSE) -> T:
    """Ask until there is an answer. Raises TimeoutError naming what was waited for."""
    return _wait_for(what, poll, seconds, lambda _: time.sleep(pause))


def wait_for_change(
    what: str, poll: Callable[[], T | None], path: Path, mask: int = ARRIVED, seconds: float = SECONDS
) -> T:
    """As wait_for(), asking when `path` has changed, and otherwise seldom (changes.py)."""
    with changes(path, mask) as wait:
        return _wait_for(what, poll, seconds, wait)


def _wait_for(what: str, poll: Callable[[], T | None], seconds: float, wait: Callable[[float], None]) -> T:
    end = time.monotonic() + seconds
    while (found := poll()) is None:
        left = end - time.monotonic()
        if left < 0:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        wait(left)
    return found


class Process(Protocol):
    """What is used of a subprocess.Popen."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


@dataclass
class Command:
    """lm-serve or lm-restore while it runs, with its output in files."""

    name: str
    process: Process
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        """The events it has printed so far."""
        lines = (self.folder / f"{self.name}.out").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def event(self, name: str, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for an event. Raises TimeoutError, or RuntimeError when the command ends without it."""

        def poll() -> dict[str, Any] | None:
            ended = self.process.poll() is not None
            for event in self.events():
                if event["event"] == name:
                    return event
            if ended:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode} before {name!r}")
            return None

        return wait_for_change(f"{name!r} of {self.name}", poll, self.folder / f"{self.name}.out", WRITTEN, seconds)

    def report(self) -> dict[str, Any]:
        """Its report. Raises OSError where it has written none."""
        report: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text())
        return report

    def said(self) -> str:
        """Everything it printed, for a failure's message."""
        parts = [f"--- {self.name}: exit status {self.process.poll()}"]
        parts += [(self.folder / f"{self.name}.{kind}").read_text() for kind in ("out", "err")]
        return "\n".join(parts)


@dataclass
class Move:
    """A migration under way."""

    serve: Command
    restore: Command
    started: float = field(default_factory=time.monotonic)

    def resumed(self, seconds: float = SECONDS) -> int:
        """Wait until the process runs at the destination; its id there as the host sees it."""
        return int(self.restore.event("resumed", seconds)["pid"])

    def complete(self, seconds: float = SECONDS) -> None:
        """Wait until both sides have said goodbye. Raises RuntimeError if lm-serve failed."""
        self.restore.event("complete", seconds)
        if self.serve.process.wait(seconds):
            raise RuntimeError(f"lm-serve ended with {self.serve.process.returncode}")

    def said(self) -> str:
        """What both sides printed."""
        return f"{self.serve.said()}\n{self.restore.said()}"


def start(machine: Machine | None, words: Sequence[str], folder: Path, name: str, **more: Any) -> Command:
    """Start a command on a machine (None: here), its output in folder/name.out and .err."""
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        line = machine.command(*words) if machine else list(words)
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **more)
    return Command(name, process, folder)


def begin_move(
    pid: int,
    machines: tuple[Machine | None, Machine | None],
    folder: Path,
    *,
    strategy: str = "post-copy",
    serve: Sequence[str] = (),
    restore: Sequence[str] = (),
    number: int | None = None,
    inside: int | None = None,
    serving: Sequence[str] = ("-m", "live_migration.cli.serve"),
    starting: Callable[..., Command] = start,
) -> Move:
    """Start lm-serve for a process and lm-restore with its ticket. Raises as Command.event and TimeoutError.

    `inside`: run lm-serve in the mount and PID namespaces of this process, where `pid` is its id; `serving`: what
    Python runs as lm-serve; `starting`: starts both, as start() does."""
    suffix = "" if number is None else f"-{number}"
    source, destination = machines
    ticket = folder / f"ticket{suffix}"
    listen = f"{source.address if source else '127.0.0.1'}:0"
    words = [sys.executable, *serving, str(pid), "--listen", listen, "--json"]
    words += ["--ticket-file", str(ticket), "--report", str(folder / f"serve{suffix}.json"), *serve]
    if inside is not None:
        words = ["nsenter", f"--target={inside}", "--mount", "--pid", "--", *words]
    source_command = starting(source, words, folder, f"serve{suffix}")

    def poll() -> bool | None:
        if source_command.process.poll() is not None:
            raise RuntimeError(f"lm-serve ended before there was a ticket\n{source_command.said()}")
        return ticket.exists() or None

    wait_for_change("the ticket", poll, folder)
    words = [sys.executable, "-m", "live_migration.cli.restore", f"--{strategy}", f"@{ticket}", "--json"]
    words += ["--report", str(folder / f"restore{suffix}.json"), *restore]
    return Move(source_command, starting(destination, words, folder, f"restore{suffix}"))
