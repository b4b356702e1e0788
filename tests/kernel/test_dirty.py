"""Writes told by the kernel: what was written to, what is gone, and what is another mapping since."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.dirty_tracking import FLAGS, Tracking, find_tracking
from live_migration.kernel.injection.syscall_numbers import SYS_userfaultfd
from tests.conftest import skip

PAGE = mmap.PAGESIZE
PAGES = 4096
MADV_DONTNEED, MADV_NOHUGEPAGE = 4, 15
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_FIXED = 0x10


@dataclass
class Area:
    """Anonymous memory of this process that is tracked."""

    tracker: object
    address: int
    shared: bool

    def write(self, page: int) -> None:
        ctypes.memset(self.address + page * PAGE, 7, 1)

    def discard(self, first: int, count: int) -> None:
        assert not LIBC.madvise(ctypes.c_void_p(self.address + first * PAGE), count * PAGE, MADV_DONTNEED)

    def _runs(self, look: object, *more: object) -> set[int]:
        runs, count, looked = ffi.new("struct lm_page_run[]", 512), ffi.new("size_t *"), ffi.new("uint64_t *")
        at, end, found = self.address, self.address + PAGES * PAGE, set()
        while at < end:
            error = look(self.tracker, at, end, *more, runs, 512, count, looked)  # type: ignore[operator]
            if error:
                raise OSError(-error, os.strerror(-error))
            for i in range(count[0]):
                found |= set(range((runs[i].start - self.address) // PAGE, (runs[i].end - self.address) // PAGE))
            assert looked[0] > at
            at = looked[0]
        return found

    def write_all(self) -> None:
        """Write to every page."""
        for page in range(PAGES):
            self.write(page)

    def written(self, arm: bool = True) -> set[int]:
        return self._runs(lib.lm_dirty_written, self.shared, arm)

    def absent(self) -> set[int]:
        return self._runs(lib.lm_dirty_absent)

    def changed(self, capacity: int = 512) -> tuple[set[int], set[int]]:
        """What was written to, and what is absent, by one look for so many runs after the other."""
        changes = ffi.new("struct lm_page_change[]", capacity)
        count, looked = ffi.new("size_t *"), ffi.new("uint64_t *")
        at, end = self.address, self.address + PAGES * PAGE
        found: tuple[set[int], set[int]] = (set(), set())
        while at < end:
            assert lib.lm_dirty_changed(self.tracker, at, end, changes, capacity, count, looked) == 0
            for one in changes[0 : count[0]]:
                pages = set(range((one.start - self.address) // PAGE, (one.end - self.address) // PAGE))
                assert not pages & (found[0] | found[1]), "told twice"
                found[one.absent].update(pages)
            at = looked[0]
        return found


@pytest.fixture(params=[False, True], ids=["private", "shared"])
def area(request: pytest.FixtureRequest) -> Iterator[Area]:
    if find_tracking() is not Tracking.USERFAULTFD:
        skip("this kernel tracks no writes by userfaultfd")
    shared = bool(request.param)
    kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    address = LIBC.mmap(None, PAGES * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, kind | mmap.MAP_ANONYMOUS, -1, 0)
    LIBC.madvise(ctypes.c_void_p(address), PAGES * PAGE, MADV_NOHUGEPAGE)
    ctypes.memset(address, 1, PAGES // 2 * PAGE)
    userfaultfd = LIBC.syscall(SYS_userfaultfd, FLAGS)
    assert lib.lm_dirty_handshake(userfaultfd) == 0
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    told = {"kind": int(Tracking.USERFAULTFD), "pagemap": pagemap, "control": userfaultfd}
    tracker = ffi.new("struct lm_dirty_tracker *", told)
    assert lib.lm_dirty_watch(tracker, address, address + PAGES * PAGE) == 0
    yield Area(tracker, address, shared)
    os.close(userfaultfd)
    os.close(pagemap)
    LIBC.munmap(ctypes.c_void_p(address), PAGES * PAGE)


def test_a_write_is_told_once(area: Area) -> None:
    first = area.written()
    assert first >= set(range(PAGES // 2))
    assert area.written() == set()
    area.write(3)
    area.write(PAGES - 1)
    assert area.written(arm=False) == {3, PAGES - 1}
    assert area.written() == {3, PAGES - 1}
    assert area.written() == set()
    area.write(3)
    assert area.written() == {3}


def test_every_single_page(area: Area) -> None:
    area.written()
    odd = set(range(1, PAGES // 2, 2))
    for page in odd:
        area.write(page)
    assert area.written() == odd


def test_discarded_pages_are_absent(area: Area) -> None:
    area.written()
    area.discard(10, 2)
    # A whole page table, which the kernel may free.
    area.discard(0, PAGES // 2)
    if area.shared:
        assert area.written() == set()
    else:
        assert area.absent() == set(range(PAGES))


def test_another_mapping_at_the_place_is_noticed(area: Area) -> None:
    area.written()
    kind = (mmap.MAP_SHARED if area.shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS | MAP_FIXED
    place = area.address + 20 * PAGE
    assert LIBC.mmap(place, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0) == place
    area.write(21)
    for arm in (False, True):
        with pytest.raises(OSError, match="not permitted") as error:
            area.written(arm)
        assert error.value.errno == errno.EPERM
    assert lib.lm_dirty_watch(area.tracker, area.address, area.address + PAGES * PAGE) == 0
    assert 21 in area.written()


def test_entries_and_scan_agree_on_what_is_absent(area: Area) -> None:
    area.written()
    area.discard(10, 2)
    runs, count, looked = ffi.new("struct lm_page_run[]", 512), ffi.new("size_t *"), ffi.new("uint64_t *")
    at, end, found = area.address, area.address + PAGES * PAGE, set()
    while at < end:
        pagemap = area.tracker.pagemap  # type: ignore[attr-defined]
        assert lib.lm_pagemap_entries(pagemap, at, end, lib.LM_PAGES_ABSENT, runs, 512, count, looked) == 0
        for i in range(count[0]):
            found |= set(range((runs[i].start - area.address) // PAGE, (runs[i].end - area.address) // PAGE))
        at = looked[0]
    assert found == area.absent()


@pytest.mark.parametrize("area", [False], indirect=True, ids=["private"])
def test_one_look_tells_what_was_written_to_and_what_is_absent(area: Area) -> None:
    area.written()
    for page in (3, 4, 9, PAGES - 2):
        area.write(page)
    area.discard(20, 5)
    area.discard(4, 1)
    written, absent = area.changed()
    assert written == area.written(arm=False)
    assert {3, 9, PAGES - 2} <= written
    assert absent == area.absent()
    assert absent >= {4, *range(20, 25)}
    assert not written & absent


@pytest.mark.parametrize("area", [False], indirect=True, ids=["private"])
@pytest.mark.parametrize("capacity", [1, 2, 7, 512])
def test_one_look_for_few_runs_at_a_time_misses_none(area: Area, capacity: int) -> None:
    area.written()
    chosen = random.Random(capacity)
    for density in (3, 400):
        for _ in range(PAGES // density):
            area.write(chosen.randrange(PAGES))
            area.discard(chosen.randrange(PAGES), 1)
        written, absent = area.changed(capacity)
        assert written == area.written(arm=False)
        assert absent == area.absent()
        area.written()


@pytest.mark.parametrize("area", [False], indirect=True, ids=["private"])
def test_one_look_tells_of_dropped_pages_whose_page_table_is_gone(area: Area) -> None:
    area.write_all()
    area.written()
    assert area.changed() == (set(), set())
    area.discard(0, PAGES)
    written, absent = area.changed()
    assert written == set()
    assert absent == set(range(PAGES))
