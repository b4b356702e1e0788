"""CLOCK_MONOTONIC and CLOCK_BOOTTIME, which a process must never see going back.

Both count from a host's start. A process that comes to another host gets a time namespace whose clocks are the
destination's plus an offset (time_namespaces(7)). The offset is an upper bound: the destination requests the source's
clock, and counts as if it had been read at the moment of the request. So the moved process's clock is at most one round
trip ahead, never behind.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.process_snapshot import ProcessSnapshot

SECOND = 1_000_000_000
# Half of what ktime_t holds: the kernel refuses offsets that leave less room (KTIME_SEC_MAX / 2).
HIGHEST = 1 << 62
LONGEST_WAIT = SECOND // 10


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    """A reading of the clocks as the process sees them, in nanoseconds, and the start of the host that they
    belong to.

    `in_namespace`: the process has a time namespace of its own, other than that of lm-serve.
    """

    boot: str
    monotonic: int
    boottime: int
    in_namespace: bool = False


class Offsets(msgspec.Struct, frozen=True, kw_only=True):
    """What to write to /proc/PID/timens_offsets, in nanoseconds against the host's clocks."""

    monotonic: int
    boottime: int

    def text(self) -> str:
        """The file's content: a line for each clock, seconds and nanoseconds, the latter never negative."""
        return "".join(
            f"{name} {value // SECOND} {value % SECOND}\n"
            for name, value in (("monotonic", self.monotonic), ("boottime", self.boottime))
        )


def read_offsets(pid: int | str = "self") -> Offsets:
    """The offsets of a process's time namespace against the host's clocks; zeros where the kernel has none."""
    found = {"monotonic": 0, "boottime": 0}
    try:
        text = Path(f"/proc/{pid}/timens_offsets").read_text()
    except FileNotFoundError:
        text = ""
    for line in text.splitlines():
        name, seconds, nanoseconds = line.split()
        found[name] = int(seconds) * SECOND + int(nanoseconds)
    return Offsets(monotonic=found["monotonic"], boottime=found["boottime"])


def own_namespace(process: ProcessSnapshot) -> bool:
    """Whether the process counts time in another namespace than this one."""
    try:
        return not process.in_our_namespace("time")
    except (ProcessGone, FileNotFoundError):
        return False


def monotonic_offset(pid: int) -> int:
    """Nanoseconds by which CLOCK_MONOTONIC of the process is ahead of this one's."""
    try:
        elsewhere = os.stat(f"/proc/{pid}/ns/time").st_ino != os.stat("/proc/self/ns/time").st_ino
    except FileNotFoundError:
        return 0
    return read_offsets(pid).monotonic - read_offsets().monotonic if elsewhere else 0


def monotonic_since(described: Clocks, offsets: Offsets | None) -> Callable[[], int]:
    """CLOCK_MONOTONIC as the moved process is going to see it, as a function to be called later (`elapsed_since`)."""
    return lambda: described.monotonic + elapsed_since(described, offsets)


@functools.cache
def boot_identifier() -> str:
    """What distinguishes one start of one host from every other (random(4), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def snapshot_clocks(process: ProcessSnapshot | None = None) -> Clocks:
    """The clocks now, as the process sees them; without one, as this process does."""
    elsewhere = process is not None and own_namespace(process)
    theirs, ours = (read_offsets(process.pid), read_offsets()) if process and elsewhere else (None, None)
    monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if theirs is not None and ours is not None:
        monotonic += theirs.monotonic - ours.monotonic
        boottime += theirs.boottime - ours.boottime
    return Clocks(boot=boot_identifier(), monotonic=monotonic, boottime=boottime, in_namespace=elsewhere)


def offsets_for(source: Clocks, asked: Clocks, present: Offsets) -> Offsets | None:
    """The offsets of the namespace that the moved process needs, None when this one's clocks are its clocks.

    `source` is the source's reading, `asked` this process's own reading from before it requested that one, `present`
    its own offsets. The kernel refuses negative clocks, so an offset never takes more than the host's clock has.
    """
    if source.boot == asked.boot and not source.in_namespace:
        return None

    def offset(wanted: int, now: int, own: int) -> int:
        return max(own - now, min(wanted - now + own, HIGHEST))

    return Offsets(
        monotonic=offset(source.monotonic, asked.monotonic, present.monotonic),
        boottime=offset(source.boottime, asked.boottime, present.boottime),
    )


def elapsed_since(described: Clocks, offsets: Offsets | None, present: Offsets | None = None) -> int:
    """Nanoseconds of the process's own time since it was described, by the clock it is going to see; never negative.

    The hosts' clocks may have run apart since the offsets were found; then the process waits for the moment of the
    description.
    """
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    if offsets is not None:
        now += offsets.monotonic - (present or read_offsets()).monotonic
    if now < described.monotonic:
        time.sleep(min(described.monotonic - now, LONGEST_WAIT) / SECOND)
        return 0
    return now - described.monotonic
