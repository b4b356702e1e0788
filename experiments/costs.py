"""What commands use while they run: processor time and memory, with all their children, but without what they move."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field

from live_migration.experiments.results import Cost

PERIOD_SECONDS = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = 1 / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """A process's children (proc_pid_task(5)): far cheaper than reading every process's parent."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def family(pid: int) -> list[int]:
    """A process and everything that descends from it."""
    found, pending = [], [pid]
    while pending:
        one = pending.pop()
        found.append(one)
        pending += children(one)
    return found


def used(pid: int) -> tuple[float, int, int] | None:
    """Processor seconds of a process without its children, its private and its shared resident bytes."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/statm") as file:
            resident, shared = map(int, file.read().split()[1:3])
    except (OSError, ValueError):
        return None
    return (int(fields[11]) + int(fields[12])) * TICK, (resident - shared) * PAGE, shared * PAGE


def name_of(pid: int) -> str:
    """A process's name (proc_pid_comm(5)); "" if it has gone."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


@dataclass
class Costs:
    """Samples commands ten times a second. Processes that share pages count them once: the largest share.

    `memory`: of each sample, every process's private and shared resident bytes. What is moved is found out only when it
    runs again, and was a command's child long before."""

    roots: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    memory: dict[str, list[dict[int, tuple[int, int]]]] = field(default_factory=dict)
    spared: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Costs:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        assert self._thread
        self._thread.join()

    def watch(self, name: str, pid: int) -> None:
        """From now on sample a command."""
        with self._lock:
            self.roots[name] = pid
            self.seconds[name] = {}
            self.memory[name] = []

    def spare(self, pid: int) -> None:
        """A process that descends from a command but is the one that is moved: not a cost."""
        with self._lock:
            self.spared.add(pid)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Take a sample now."""
        with self._lock:
            for name, root in self.roots.items():
                looked: dict[int, tuple[int, int]] = {}
                for pid in family(root):
                    if pid not in self.spared and (found := used(pid)):
                        self.seconds[name][pid] = max(found[0], self.seconds[name].get(pid, 0.0))
                        looked[pid] = found[1:]
                self.memory[name].append(looked)

    def _peak(self, name: str) -> int:
        """The largest resident size, bytes."""
        peak = 0
        for looked in self.memory[name]:
            counted = [found for pid, found in looked.items() if pid not in self.spared]
            private, shared = sum(one[0] for one in counted), max((one[1] for one in counted), default=0)
            peak = max(peak, private + shared)
        return peak

    def found(self) -> dict[str, Cost]:
        """What each command has used so far."""
        with self._lock:
            return {
                name: Cost(
                    cpu_seconds=round(sum(s for pid, s in self.seconds[name].items() if pid not in self.spared), 3),
                    memory=self._peak(name),
                )
                for name in self.roots
            }
