"""Which pages of a process exist (pagemap.h)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone, check

CAPACITY = 512
Range = tuple[int, int]


def present_runs(pid: int, ranges: Iterable[Range]) -> list[Range]:
    """The runs, [start, end) in bytes, of pages in memory or in swap. Raises ProcessGone, OSError."""
    return _runs(pid, ranges, lib.LM_PAGES_PRESENT)


def changed_runs(pid: int, ranges: Iterable[Range]) -> list[Range]:
    """In private file mappings, the runs of pages that differ from the file. Raises ProcessGone, OSError."""
    return _runs(pid, ranges, lib.LM_PAGES_CHANGED)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Neighbours as one: one call scans the mappings of a library."""
    first = last = 0
    for start, end in ranges:
        if start != last:
            if last:
                yield first, last
            first = start
        last = end
    if last:
        yield first, last


def _runs(pid: int, ranges: Iterable[Range], which: int) -> list[Range]:
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    runs = ffi.new("struct lm_page_run[]", CAPACITY)
    count = ffi.new("size_t *")
    looked = ffi.new("uint64_t *")
    found: list[Range] = []
    try:
        for start, end in _joined(ranges):
            place = start
            while place < end:
                error = lib.lm_pagemap_runs(pagemap, place, end, which, runs, CAPACITY, count, looked)
                if error == -errno.ENODATA:
                    raise ProcessGone(pid)
                check(error, pid)
                found += [(runs[i].start, runs[i].end) for i in range(count[0])]
                place = looked[0]
    finally:
        os.close(pagemap)
    return found
