"""What make bench measures: each function makes one move, or runs the floor, and returns its raw samples.

Everything that a measurement starts has ended when it returns, also when it fails.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import signal
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_migration.experiments import account
from live_migration.experiments.machines import (
    Command,
    Machine,
    Move,
    begin_move,
    descendants,
    kill_descendants,
    start,
    wait_for,
)
from live_migration.experiments.programs import program

SETTLE_SECONDS = 0.3
MOVE_SECONDS = 180.0
AROUND_SECONDS = 0.05
TURN_SECONDS = 0.05
"""Of each side where two are measured in turns."""
HELD_BACK = "64K"
"""--bandwidth-limit of lm-serve under which little comes in bulk (16 pages a second); faults are never held back."""
TABLE = 1 << 18
"""Faults of which toucher keeps the times: more than can come during a move."""

MADV_POPULATE_WRITE = 23  # of Linux 5.14, which Python 3.11's mmap does not name

Samples = dict[str, Any]


@dataclass(frozen=True)
class Laboratory:
    """Two machines, a folder for what the programs write, and options that both commands get."""

    source: Machine
    destination: Machine
    folder: Path
    options: tuple[str, ...] = ()


def floor_words(laboratory: Laboratory, mebibytes: int, faults: int) -> list[str]:
    """The command line of the bare C pager, for the destination."""
    words = [program("floor"), "--pages", str(mebibytes * 256), "--faults", str(faults)]
    source = laboratory.source
    return [*words, "--address", source.address, "--source-netns", f"/run/netns/{source.namespace}"]


def floor_samples(floor: Command) -> Samples:
    """What it printed, once it has ended. Raises RuntimeError with what it said where it failed."""
    if floor.process.wait(MOVE_SECONDS):
        raise RuntimeError(floor.said())
    samples: Samples = json.loads((floor.folder / f"{floor.name}.out").read_text())
    return samples


def run_floor(laboratory: Laboratory, mebibytes: int, faults: int) -> Samples:
    """The bare C pager over the same link: fault_p50_us, fault_p99_us and bulk_bytes_per_second, and what they are
    when both run at once (busy_...)."""
    with warm_memory(mebibytes):
        pass  # the source's; the destination's is held by the floor itself
    words = floor_words(laboratory, mebibytes, faults)
    try:
        return floor_samples(start(laboratory.destination, words, laboratory.folder, "floor"))
    finally:
        kill_descendants()


@dataclass
class Trial:
    """One process that is being moved, or has been."""

    move: Move
    program: Command
    numbers: Path
    pid: int
    """Of the process at the destination, as this machine sees it."""

    def told(self) -> None:
        """Send the process its SIGUSR1."""
        os.kill(self.pid, signal.SIGUSR1)

    def read_numbers(self) -> list[int]:
        """What the process has written; waited for."""
        wait_for(f"the numbers of {self.program.name}", lambda: self.numbers.exists() or None)
        data = self.numbers.read_bytes()
        return list(struct.unpack(f"={len(data) // 8}Q", data))

    def moment(self, event: str) -> float:
        """When lm-restore told of an event, seconds since 1970."""
        return float(self.move.restore.event(event, MOVE_SECONDS)["time"])

    def report(self) -> Samples:
        """lm-restore's report, once it is there."""
        wait_for("the report", lambda: (self.move.restore.folder / "restore.json").exists() or None)
        return self.move.restore.report()


@contextlib.contextmanager
def moving(
    laboratory: Laboratory,
    words: Sequence[str],
    *,
    serve: Sequence[str] = (),
    strategy: str = "post-copy",
    restore: Sequence[str] = (),
    memory: int = 0,
    held_until: str = "staged",
) -> Iterator[Trial]:
    """Start a program (words: its name and arguments without FILE), begin to move it, and end everything after.

    `memory`: so many MiB are given back when that event comes, for the process at the destination; see warm_memory.

    Raises RuntimeError and TimeoutError with what both commands printed.
    """
    name, folder = words[0], laboratory.folder
    numbers = folder / f"{name}.numbers"
    for old in ("ticket", "serve.json", "restore.json", numbers.name, f"{numbers.name}.ready"):
        (folder / old).unlink(missing_ok=True)
    move = None
    try:
        line = [program(name), *words[1:], str(numbers)]
        moved = start(laboratory.source, line, folder, name, start_new_session=True)
        wait_for(f"{name}'s memory", lambda: Path(f"{numbers}.ready").exists() or None)
        time.sleep(SETTLE_SECONDS)
        machines = (laboratory.source, laboratory.destination)
        options = ["--pid", "namespace", "--stdio", "null", *laboratory.options, *restore]
        serve = [*laboratory.options, *serve]
        with warm_memory(memory):
            move = begin_move(moved.process.pid, machines, folder, strategy=strategy, serve=serve, restore=options)
            move.restore.event(held_until, MOVE_SECONDS)
        yield Trial(move, moved, numbers, move.resumed(MOVE_SECONDS))
    except (RuntimeError, TimeoutError) as error:
        raise RuntimeError(f"{error}\n{move.said()}" if move else str(error)) from error
    finally:
        kill_descendants()


@contextlib.contextmanager
def warm_memory(mebibytes: int) -> Iterator[None]:
    """Hold so much touched memory within, and give it back at the end, for what takes memory then.

    A virtual machine gets its memory from the host page by page, some ten times slower than what it has already, and
    gives back what lies unused for a moment: without this the host would be measured."""
    area = mmap.mmap(-1, max(mebibytes, 1) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    with contextlib.closing(area):
        area.madvise(MADV_POPULATE_WRITE)
        yield


def largest_gap(beats: Sequence[int], begin: float, end: float) -> float:
    """The longest time between two beats (sorted, nanoseconds) of which some is in [begin, end] (seconds), ms."""
    pairs = itertools.pairwise(beats)
    return max((b - a for a, b in pairs if b >= begin * 1e9 and a <= end * 1e9), default=0) / 1e6


def measure_downtime(laboratory: Laboratory, mebibytes: int) -> Samples:
    """felt_ms: the heartbeat's largest gap around the move. other_ms: its largest one at any other time."""
    with moving(laboratory, ["heartbeat", str(mebibytes)], memory=mebibytes) as trial:
        trial.move.complete(MOVE_SECONDS)
        time.sleep(SETTLE_SECONDS)
        trial.told()
        beats = sorted(trial.read_numbers())
        report = trial.report()
        frozen = float(trial.move.serve.event("frozen")["time"])
        to_monotonic = time.monotonic() - time.time()
        begin = frozen + to_monotonic - AROUND_SECONDS
        end = trial.moment("resumed") + to_monotonic + AROUND_SECONDS
        before = [beat for beat in beats if beat < begin * 1e9]
        after = [beat for beat in beats if beat > end * 1e9]
        return {
            "felt_ms": largest_gap(beats, begin, end),
            "reported_ms": report["downtime_ms"],
            "before_ms": largest_gap(before, 0, begin),
            "after_ms": largest_gap(after, end, end + MOVE_SECONDS),
            "period_us": statistics.median(b - a for a, b in itertools.pairwise(before)) / 1000,
            "phases_ms": report["phases_ms"],
            "account_us": account.whole(
                trial.move.serve.report()["downtime_us"], report["downtime_us"], report["downtime_ms"] * 1000
            ),
        }


def take_turns(*sides: Callable[[], Sequence[int]]) -> None:
    """Let the processes of one side run at a time, the others stopped, until all have ended what they do.

    sides: each tells its processes, none when it is done."""
    end = time.monotonic() + MOVE_SECONDS
    for side in itertools.cycle(sides):
        if not any(each() for each in sides):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"what takes turns did not end within {MOVE_SECONDS:g} s")
        for other in sides:
            for pid in other():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT if other is side else signal.SIGSTOP)
        if side():
            time.sleep(TURN_SECONDS)


def measure_idle_faults(laboratory: Laboratory, mebibytes: int, count: int) -> Samples:
    """fault_us: what the process waited for random missing pages while nothing else used the link.

    floor_p50_us: the same of the floor, whose faults come in turns with the process's: how long an idle processor
    of a virtual machine takes to wake up changes from second to second."""
    with moving(laboratory, ["toucher", str(mebibytes), str(count)], serve=["--bandwidth-limit", HELD_BACK]) as trial:
        time.sleep(SETTLE_SECONDS)
        trial.told()
        floor = start(laboratory.destination, floor_words(laboratory, mebibytes, count), laboratory.folder, "floor")
        pid = floor.process.pid
        take_turns(
            lambda: [] if trial.numbers.exists() else [trial.pid],
            lambda: [] if floor.process.poll() is not None else [pid, *descendants(pid)],
        )
        faults = [number / 1000 for number in trial.read_numbers()]
        return {"fault_us": faults, "floor_p50_us": floor_samples(floor)["fault_p50_us"]}


def measure_bulk(laboratory: Laboratory, mebibytes: int, *, faulting: bool, watched: bool = False) -> Samples:
    """bytes_per_second from resume to complete, and fault_us, if the process touches its memory meanwhile.

    watched: serve_bytes and restore_bytes too, see Watch.
    """
    watch = Watch() if watched else None
    words = ["toucher", str(mebibytes), str(TABLE)]
    moved = moving(laboratory, words, memory=mebibytes, held_until="resumed")
    with watch or contextlib.nullcontext(), moved as trial:
        if faulting:
            trial.told()
        if watch:
            watch.snapshot_at(trial)
        trial.move.complete(MOVE_SECONDS)
        seconds = trial.moment("complete") - trial.moment("resumed")
        faults = []
        if faulting:
            trial.told()
            faults = [number / 1000 for number in trial.read_numbers()]
        report = trial.report()
        samples: Samples = {
            "bytes_per_second": mebibytes * 2**20 / seconds,
            "seconds": seconds,
            "fault_us": faults,
            "remote_faults": report["faults"],
            "wire_bytes": report["bytes"]["wire"],
        }
        return samples | (watch.peaks() if watch else {})


def memory_of(pid: int) -> tuple[int, int]:
    """A process's peak of resident memory and what of it can be its alone now (anonymous), bytes."""
    found = {"VmHWM": 0, "RssAnon": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found["VmHWM"], found["RssAnon"]


@dataclass
class Watch:
    """The memory of both commands with all their children, but not of the process that they move.

    Pages that parent and child share are counted for each of them, so the sum is an upper bound.
    """

    trial: Trial | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    most: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: {"serve": {}, "restore": {}})

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        if self.thread:
            self.thread.join()

    def snapshot_at(self, trial: Trial) -> None:
        """Begin to look, ten times a second."""
        self.trial = trial
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        assert self.trial
        while not self.ended.wait(0.1):
            self._sample(self.trial)

    def _sample(self, trial: Trial) -> None:
        for name, command in (("serve", trial.move.serve), ("restore", trial.move.restore)):
            first = command.process.pid
            for pid in {first, *descendants(first)} - {trial.pid}:
                peak, own = memory_of(pid)
                old = self.most[name].get(pid, (0, 0))
                self.most[name][pid] = (max(peak, old[0]), max(own, old[1]))

    def peaks(self) -> Samples:
        """The sums over the processes: their peaks, and their anonymous memory alone."""
        samples: Samples = {}
        for name, processes in self.most.items():
            samples[f"{name}_bytes"] = sum(peak for peak, own in processes.values())
            samples[f"{name}_anonymous_bytes"] = sum(own for peak, own in processes.values())
            samples[f"{name}_processes"] = len(processes)
        return samples
