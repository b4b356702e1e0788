"""Which mappings a process has touched since a given moment, by the accessed bits of its page tables.

The kernel tells them only per mapping (proc_pid_smaps(5), Referenced), after they were cleared
(proc_pid_clear_refs(5)). Clearing them changes nothing for the process; only when memory is short, the kernel takes its
pages for older than they are.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass

from live_migration.kernel.errors import ProcessGone

PAGE_SIZE = mmap.PAGESIZE
ALL_PAGES = "1"
"""What clear_refs takes for the accessed bits of all pages; soft-dirty bits stay as they are."""
# Each mapping has one line of each kind, in this order.
LINES = re.compile(rb"^(?:([0-9a-f]+)-([0-9a-f]+) |Rss: +(\d+) kB|Referenced: +(\d+) kB)", re.MULTILINE)


@dataclass(frozen=True)
class Touched:
    """A mapping, [start, end); how much of it is in memory, and how much of that was touched, all in bytes."""

    start: int
    end: int
    resident: int
    referenced: int


def clear_referenced(pid: int) -> None:
    """From now on count what is touched. Raises ProcessGone, OSError."""
    try:
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write(ALL_PAGES)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def snapshot_touched(pid: int) -> list[Touched]:
    """The mappings of which something was touched since `clear_referenced`. Raises ProcessGone, OSError.

    The kernel walks the memory for it: 13 ms per GiB of small pages."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            found = parse_touched(file.read())
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    return [one for one in found if one.referenced]


def resident_bytes(pid: int) -> int:
    """How many bytes of its memory are present (proc_pid_statm(5)). Raises ProcessGone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE_SIZE
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None


def parse_touched(text: bytes) -> list[Touched]:
    """All mappings of a text of /proc/PID/smaps."""
    lines = list(LINES.finditer(text))
    return [
        Touched(int(head[1], 16), int(head[2], 16), int(resident[3]) << 10, int(referenced[4]) << 10)
        for head, resident, referenced in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    ]
