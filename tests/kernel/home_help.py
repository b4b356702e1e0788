"""For tests of threads that get home by themselves: a tracer that can die, and what a remote syscall needs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from live_migration.kernel.injection.sigreturn_path import Gadgets, find_gadgets, place_frame
from live_migration.kernel.memory.maps import maps
from tests.kernel.husks import kill_and_reap, wait_until

KILLS = 210


class Target:
    """A running program of `count` threads, started with a file that becomes their counters and its handler's."""

    def __init__(self, binary: Path, folder: Path, count: int, *arguments: str) -> None:
        self.path = folder / "counters"
        self.count = count
        self.process = subprocess.Popen([binary, self.path, *arguments], stderr=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.signals = 0
        wait_until(lambda: self.path.exists() and self.path.stat().st_size and all(self.counters()))

    def counters(self) -> list[int]:
        """How often each thread has been round."""
        return self._numbers()[: self.count]

    def handled(self) -> int:
        """How often the leader's handler ran."""
        return self._numbers()[self.count]

    def _numbers(self) -> list[int]:
        content = self.path.read_bytes()
        return [int.from_bytes(content[at : at + 8], "little") for at in range(0, 8 * (self.count + 1), 8)]

    def check_runs(self) -> None:
        """Every thread goes round twice more: what it began before now, and a whole round."""
        before = self.counters()

        def all_went_on() -> bool:
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                raise AssertionError(f"it ended with {self.process.returncode}: {self.process.stderr.read()}")
            return all(now >= then + 2 for now, then in zip(self.counters(), before, strict=True))

        wait_until(all_went_on)

    def end(self) -> None:
        """Kill it."""
        kill_and_reap(self.pid)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.process.returncode = 0

    def disturb(self) -> None:
        """A signal that the leader's handler counts; realtime, so that none is lost."""
        os.kill(self.pid, signal.SIGRTMIN)
        self.signals += 1


def in_a_child(work: Callable[[], None], said: int) -> int:
    """Start a tracer that does the work until it is killed; it says on `said` that it begins, and what went wrong."""
    child = os.fork()
    if child:
        return child
    try:
        os.write(said, b"+")
        work()
    except BaseException as error:
        os.write(said, f"{error!r}".encode())
    finally:
        os._exit(1)


def kill_at_random(target: Target, work: Callable[[], None], disturbed: bool, times: int = KILLS) -> None:
    """Kill tracers at random instants of their work, so many times; the target notices nothing of it."""
    chance = random.Random(1)
    for _ in range(times):
        reader, writer = os.pipe()
        child = in_a_child(work, writer)
        os.close(writer)
        with open(reader, "rb", buffering=0) as words:
            assert words.read(1) == b"+"
            time.sleep(chance.uniform(0.0, 0.008))
            if disturbed:
                target.disturb()
                time.sleep(chance.choice((0, 0, 0.0002)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = words.read(200)
            assert not said, said.decode()
        target.check_runs()
    # None is lost; the last one may still be on its way to its handler.
    wait_until(lambda: target.handled() >= target.signals)
    assert target.handled() == target.signals


def gadgets_of(pid: int) -> Gadgets:
    found = find_gadgets(pid, maps(pid))
    assert found is not None
    return found


def stack_of(pid: int) -> tuple[int, int]:
    return next((one.start, one.end) for one in maps(pid) if one.path == "[stack]")


def frame_on_stack(pid: int, gadgets: Gadgets) -> int:
    place = place_frame(pid, gadgets, stack_of(pid))
    assert place is not None
    return place
