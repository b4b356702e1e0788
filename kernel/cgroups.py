"""How much room the control groups of this process leave: cgroups(7), both versions.

A limit of any ancestor counts, as far as it is mounted here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOT_LIMITED = 1 << 60
"""What version 1 shows for "no limit" is the largest number of pages, in bytes."""


@dataclass(frozen=True)
class Room:
    """What one control group leaves: `left` of `limit`, which its file `name` sets."""

    name: Path
    limit: int
    left: int


def _mounts() -> Iterator[tuple[str, list[str], str, Path]]:
    """The mounted hierarchies: type, options, the part of it that is mounted, and where (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields, _, rest = os.fsdecode(line).rstrip("\n").partition(" - ")
            words, kind = fields.split(" "), rest.split(" ")
            if kind[0] in ("cgroup", "cgroup2"):
                yield kind[0], kind[2].split(","), _unescaped(words[3]), Path(_unescaped(words[4]))


def _unescaped(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _own() -> list[tuple[str, str]]:
    """The controllers and the control group of this process in each hierarchy (proc_pid_cgroup(5))."""
    with open("/proc/self/cgroup", "rb") as lines:
        words = [os.fsdecode(line).rstrip("\n").split(":", 2) for line in lines]
    return [(controllers, path) for _, controllers, path in words]


def groups(controller: str) -> list[tuple[int, Path]]:
    """The control groups of this process and their ancestors that may have this controller, the nearest first: the
    version and the folder. Raises OSError."""
    found = []
    for kind, options, root, mount in _mounts():
        for controllers, path in _own():
            unified = kind == "cgroup2" and controllers == ""
            of_controller = kind == "cgroup" and controller in options and controller in controllers.split(",")
            inside = os.path.relpath(path, root)
            if not (unified or of_controller) or inside.startswith(".."):
                continue
            place = mount / inside
            while place != mount.parent:
                found.append((2 if unified else 1, place))
                place = place.parent
    return found


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no limit, or no such file."""
    with contextlib.suppress(OSError, ValueError):
        number = int(path.read_text())
        return number if number < NOT_LIMITED else None
    return None


def _reclaimable(place: Path, version: int) -> int:
    """Bytes of file pages that the kernel takes away before anything is killed."""
    beginning = "" if version == 2 else "total_"
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
        return sum(int(told.get(f"{beginning}{name}_file", 0)) for name in ("active", "inactive"))
    return 0


def _room(place: Path, limit_name: str, used_name: str) -> Room | None:
    limit, used = _number(place / limit_name), _number(place / used_name)
    return None if limit is None else Room(place / limit_name, limit, limit - (used or 0))


def memory_rooms(free_swap: int) -> list[Room]:
    """How much memory and swap each control group that limits it leaves; the host has `free_swap` bytes. Raises
    OSError."""
    found = []
    for version, place in groups("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        memory = _room(place, *names)
        if memory is None:
            continue
        reclaimable = _reclaimable(place, version)
        left = memory.left + reclaimable
        if version == 2:
            swap = _room(place, "memory.swap.max", "memory.swap.current")
            left += free_swap if swap is None else min(free_swap, max(0, swap.left))
        else:
            both = _room(place, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")
            left = left + free_swap if both is None else min(left + free_swap, both.left + reclaimable)
        found.append(Room(memory.name, memory.limit, left))
    return found


def task_rooms() -> list[Room]:
    """How many more threads each control group that limits them allows. Raises OSError."""
    rooms = (_room(place, "pids.max", "pids.current") for _, place in groups("pids"))
    return [room for room in rooms if room is not None]
