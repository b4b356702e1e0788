"""What was touched is told by the accessed bits of the page tables, per mapping."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess

import pytest

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.memory.referenced import (
    Touched,
    clear_referenced,
    parse_touched,
    resident_bytes,
    snapshot_touched,
)

PAGE = mmap.PAGESIZE
# Far more pages than the processor keeps translations of, which it would use without setting a bit.
PAGES = 16384
MADV_NOHUGEPAGE = 15
TEXT = b"""00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
Size:                328 kB
Rss:                 200 kB
Pss:                  10 kB
Referenced:          100 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
Referenced:            0 kB
VmFlags: rd wr mr mw me ac
"""


def written_area(kind: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    """Anonymous memory, all of it there; one of each kind, so that they are no one mapping."""
    area = mmap.mmap(-1, PAGES * PAGE, kind | mmap.MAP_ANONYMOUS)
    area.madvise(MADV_NOHUGEPAGE)
    for page in range(PAGES):
        area[page * PAGE] = 1
    return area


def share(area: mmap.mmap, found: list[Touched]) -> float:
    """Which part of the area was touched."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    parts = [one for one in found if one.start <= start < one.end]
    return parts[0].referenced / parts[0].resident if parts else 0.0


def test_a_text_of_smaps() -> None:
    assert parse_touched(TEXT) == [
        Touched(0x400000, 0x452000, 200 << 10, 100 << 10),
        Touched(0x7F0000000000, 0x7F0000001000, 0, 0),
    ]


def test_what_is_read_is_told_and_what_is_not_is_not() -> None:
    read, rested = written_area(), written_area(mmap.MAP_SHARED)
    clear_referenced(os.getpid())
    assert sum(read[page * PAGE] for page in range(PAGES)) == PAGES
    found = snapshot_touched(os.getpid())
    assert share(read, found) > 0.5
    assert share(rested, found) < 0.1


def test_what_is_in_memory() -> None:
    area = written_area()
    assert resident_bytes(os.getpid()) >= len(area)


def test_a_process_that_has_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for look in (clear_referenced, snapshot_touched, resident_bytes):
        with pytest.raises(ProcessGone):
            look(gone.pid)
