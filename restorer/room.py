"""Whether this host has room for a process: memory, threads, descriptors and mappings, before anything is frozen."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live_migration.kernel import cgroups
from live_migration.process.member import Member
from live_migration.process.task_restore import present_credentials
from live_migration.wire.blockers import Blocker
from live_migration.wire.report import show_bytes

CAP_SYS_RESOURCE = 24
PAGE = resource.getpagesize()
OWN_MAPPINGS = 16
"""What the husk has beside the process's mappings while it is being restored."""
OWN_DESCRIPTORS = 128
"""What lm-restore has open beside the process's files."""
ALREADY_FAR = 16 << 20
"""Growth in bytes from which it is worth it to look again while the process stands still."""


@dataclass(frozen=True)
class Available:
    """What the host, and each control group that limits it, can give."""

    memory: int
    memory_rooms: Sequence[cgroups.Room]


def available() -> Available:
    """What this host can give now, in bytes of memory and swap (proc_meminfo(5)). Raises OSError."""
    with open("/proc/meminfo") as meminfo:
        known = dict(line.split(":", 1) for line in meminfo)
    free = {name: int(known.get(name, "0").split()[0]) * 1024 for name in ("MemAvailable", "SwapFree")}
    return Available(sum(free.values()), cgroups.memory_rooms(free["SwapFree"]))


def memory_blockers(needed: int, there_is: Available) -> list[Blocker]:
    """Whether there is room for so many bytes."""
    found = []
    if needed > there_is.memory:
        found.append(
            Blocker(
                "this host's memory",
                f"has room for {show_bytes(there_is.memory)}, the process needs {show_bytes(needed)}",
                "end something here, add swap, or choose another host",
            )
        )
    for room in there_is.memory_rooms:
        if needed > room.left:
            found.append(
                Blocker(
                    f"control group {room.name.parent}",
                    f"{room.name.name} allows {show_bytes(room.limit)}, of which {show_bytes(max(0, room.left))} are "
                    f"left, and the process needs {show_bytes(needed)}",
                    "raise the limit, or run lm-restore in another control group",
                )
            )
    return found


def most_memory_blockers(needed: int, most: int | None) -> list[Blocker]:
    """Whether it is more than --max-memory allows."""
    if most is None or needed <= most:
        return []
    cause = f"allows {show_bytes(most)}, the process has {show_bytes(needed)}"
    return [Blocker("--max-memory", cause, "raise it, or leave the process where it is")]


def bytes_in_memory(pid: int) -> int:
    """What a process has in memory (proc_pid_statm(5)); 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def arrived_blockers(pid: int, most: int | None) -> list[Blocker]:
    """Whether more has arrived in the husk `pid` than --max-memory allows, whatever the source has told."""
    return [] if most is None else most_memory_blockers(bytes_in_memory(pid), most)


def grown_blockers(member: Member, staged: Member, pid: int, most: int | None) -> list[Blocker]:
    """The same for a process that has grown since it was staged in the husk `pid`. Raises OSError."""
    if member.resident < staged.resident + ALREADY_FAR:
        return []
    needed = max(0, member.resident - bytes_in_memory(pid))
    return [*most_memory_blockers(member.resident, most), *memory_blockers(needed, available())]


def _limit(path: str) -> int:
    return int(Path(path).read_text())


def mapping_blockers(count: int) -> list[Blocker]:
    """Whether a process here may have so many mappings. Raises OSError."""
    most = _limit("/proc/sys/vm/max_map_count")
    if count + OWN_MAPPINGS <= most:
        return []
    cause = f"allows {most} mappings of a process, {count + OWN_MAPPINGS} are needed"
    return [Blocker("vm.max_map_count of this host", cause, "raise it: sysctl vm.max_map_count=...")]


def thread_blockers(count: int) -> list[Blocker]:
    """Whether so many threads can be made here. Raises OSError."""
    found = []
    for name in ("threads-max", "pid_max"):
        most = _limit(f"/proc/sys/kernel/{name}")
        if count >= most:
            cause = f"is {most}, and the process has {count} threads"
            found.append(Blocker(f"kernel.{name} of this host", cause, f"raise it: sysctl kernel.{name}=..."))
    for room in cgroups.task_rooms():
        if count > room.left:
            cause = f"{room.name.name} allows {room.limit} threads, of which {max(0, room.left)} are left, and the "
            remedy = "raise the limit, or run lm-restore in another control group"
            found.append(Blocker(f"control group {room.name.parent}", f"{cause}process has {count}", remedy))
    return found


def descriptor_blockers(highest: int, open_files: int, *, may_raise: bool) -> list[Blocker]:
    """Whether lm-restore can open so many files, and the process have a descriptor of this number; lm-restore's own
    limit is raised for that, with `may_raise` beyond the hard one. Raises OSError."""
    # The husk begins with lm-restore's limits, and keeps a descriptor of its own above the process's.
    needed = max(highest + 3, open_files + OWN_DESCRIPTORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most, name, remedy = _limit("/proc/sys/fs/nr_open"), "fs.nr_open of this host", "raise it: sysctl fs.nr_open=..."
    if not may_raise and hard < most:
        most, name, remedy = hard, "RLIMIT_NOFILE of lm-restore", "raise it: ulimit -Hn ..."
    if needed > most:
        cause = f"is {most}, and the process has {open_files} open files and descriptors up to {highest}"
        return [Blocker(name, cause, remedy)]
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(needed, hard)))
    return []


def count_blockers(member: Member, open_files: int) -> list[Blocker]:
    """Blockers: more mappings, threads or descriptors than a process may have here. Raises OSError."""
    may_raise = bool(present_credentials().effective >> CAP_SYS_RESOURCE & 1)
    highest = max((one.number for one in member.descriptors), default=0)
    return [
        *mapping_blockers(len(member.memory.mappings)),
        *thread_blockers(len(member.task.threads)),
        *descriptor_blockers(highest, open_files, may_raise=may_raise),
    ]
