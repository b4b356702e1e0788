"""Mappings, pages and descriptors of real processes."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel import kcmp, pidfd
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import call_in_husk
from live_migration.kernel.injection.syscall_numbers import SYS_mmap, SYS_userfaultfd
from live_migration.kernel.injection.userfaultfd import by_device, take_userfaultfd
from live_migration.kernel.memory import pagemap
from live_migration.kernel.memory.maps import MapEntry, maps, parse_maps, smaps
from live_migration.kernel.tracing import tracee
from tests.conftest import skip
from tests.kernel.husks import stopped_husk

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


def address_of(area: mmap.mmap) -> int:
    """Where an area is mapped; it stays open only as long as nobody holds the address."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def test_maps_agree_with_their_text() -> None:
    text = Path("/proc/self/maps").read_bytes()
    entries = parse_maps(text)
    lines = text.decode().splitlines()
    assert len(entries) == len(lines)
    for entry, line in zip(entries, lines, strict=True):
        words = line.split(None, 5)
        assert words[0] == f"{entry.start:08x}-{entry.end:08x}"
        assert words[1:4] == [entry.permissions, f"{entry.offset:08x}", entry.device]
        assert int(words[4]) == entry.inode
        assert entry.path == (words[5] if len(words) > 5 else "")
        assert entry.flags == frozenset()
    assert any(entry.path == "[stack]" for entry in maps(os.getpid()))


def test_strange_paths_and_broken_texts() -> None:
    line = b"1000-2000 rw-s 00001000 00:1f 77      /tmp/a b\\012c\xff (deleted)\n"
    assert parse_maps(line) == [MapEntry(0x1000, 0x2000, "rw-s", 0x1000, "00:1f", 77, "/tmp/a b\nc\udcff (deleted)")]
    assert parse_maps(line + b"VmFlags: rd wr \n" + line[:-1])[0].flags == {"rd", "wr"}
    assert parse_maps(b"") == []
    for length in range(1, 29):
        with pytest.raises(ValueError, match="no text of"):
            parse_maps(line[:length])
    for text in (b"nonsense\n", b"VmFlags: rd\n", b"\n"):
        with pytest.raises(ValueError, match="no text of"):
            parse_maps(text)


def test_smaps_have_flags() -> None:
    area = mmap.mmap(-1, PAGE)
    area.madvise(mmap.MADV_DONTFORK)
    start = address_of(area)
    entry = next(entry for entry in smaps(os.getpid()) if entry.start <= start < entry.end)
    assert {"rd", "wr", "dc"} <= entry.flags
    with stopped_husk() as pid:
        assert [entry.start for entry in smaps(pid)] == [entry.start for entry in maps(pid)]


def test_ten_thousand_mappings_are_read_quickly() -> None:
    area = mmap.mmap(-1, 20_000 * PAGE)
    base = address_of(area)
    for page in range(0, 20_000, 2):
        LIBC.mprotect(ctypes.c_void_p(base + page * PAGE), PAGE, mmap.PROT_READ)
    started = time.perf_counter()
    entries = maps(os.getpid())
    assert time.perf_counter() - started < 10
    assert len(entries) > 20_000
    LIBC.mprotect(ctypes.c_void_p(base), 20_000 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


CHANGING = """
#include <stdlib.h>
#include <sys/mman.h>
int main(void) {
    char *base = mmap(0, 4096L * 20000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (long i = 0; i < 20000; i += 4)
        mprotect(base + 4096 * i, 4096, PROT_READ);
    for (;;)
        mprotect(base + 4096L * (rand() % 19000), 4096L * (1 + rand() % 30), rand() % 2 ? PROT_READ : PROT_NONE);
}
"""


def test_mappings_that_change_while_they_are_read_do_not_overlap(tmp_path: Path) -> None:
    """A text takes several reads, between which a mapping may grow over what was listed already."""
    (tmp_path / "changing.c").write_text(CHANGING)
    subprocess.run(["cc", "-o", tmp_path / "changing", tmp_path / "changing.c"], check=True)
    child = subprocess.Popen([tmp_path / "changing"])
    try:
        for look in [maps] * 300 + [smaps] * 30:
            entries = look(child.pid)
            assert all(one.end <= other.start for one, other in pairwise(entries))
    finally:
        child.kill()
        child.wait()


def test_present_pages_come_in_runs() -> None:
    area = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(area)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in (3, 4, 5, 9, 63):
        area[page * PAGE] = 1
    expected = [(start + a * PAGE, start + b * PAGE) for a, b in ((3, 6), (9, 10), (63, 64))]
    whole = [(start, start + 64 * PAGE)]
    assert pagemap.present_runs(os.getpid(), whole) == expected
    assert pagemap.present_runs(os.getpid(), [(start, start + 4 * PAGE)]) == [(start + 3 * PAGE, start + 4 * PAGE)]
    assert pagemap.present_runs(os.getpid(), [(start, start)]) == []
    area.madvise(mmap.MADV_DONTNEED)
    assert pagemap.present_runs(os.getpid(), whole) == []


def test_more_runs_than_one_batch_holds() -> None:
    pages = 4 * pagemap.CAPACITY
    area = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(area)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, pages, 2):
        area[page * PAGE] = 1
    runs = pagemap.present_runs(os.getpid(), [(start, start + pages * PAGE)])
    assert runs == [(start + page * PAGE, start + (page + 1) * PAGE) for page in range(0, pages, 2)]


def test_changed_pages_of_a_private_file_mapping(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8 * PAGE))
    with file.open("r+b") as opened:
        area = mmap.mmap(opened.fileno(), 8 * PAGE, mmap.MAP_PRIVATE)
    start = address_of(area)
    assert area[0] == area[PAGE] == 0
    area[2 * PAGE] = 1
    area[3 * PAGE] = 1
    assert pagemap.changed_runs(os.getpid(), [(start, start + 8 * PAGE)]) == [(start + 2 * PAGE, start + 4 * PAGE)]
    assert pagemap.present_runs(os.getpid(), [(start, start + PAGE)]) == [(start, start + PAGE)]


def test_unaligned_ranges_are_refused() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        pagemap.present_runs(os.getpid(), [(1, PAGE)])
    with stopped_husk() as pid:
        pass
    with pytest.raises(ProcessGone):
        pagemap.present_runs(pid, [(0, PAGE)])


def test_both_ways_of_reading_pages_agree() -> None:
    """A kernel without PAGEMAP_SCAN takes the other way; here both are there."""
    area = mmap.mmap(-1, 3000 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(area)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, 3000, 7):
        area[page * PAGE : (page + page % 3 + 1) * PAGE] = bytes([1]) * ((page % 3 + 1) * PAGE)
    expected = pagemap.present_runs(os.getpid(), [(start, start + 3000 * PAGE)])
    runs = ffi.new("struct lm_page_run[]", 5)
    count, looked = ffi.new("size_t *"), ffi.new("uint64_t *")
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    found: list[tuple[int, int]] = []
    place = start
    while place < start + 3000 * PAGE:
        assert lib.lm_pagemap_entries(descriptor, place, start + 3000 * PAGE, 1, runs, 5, count, looked) == 0
        for run in runs[0 : count[0]]:
            if found and found[-1][1] == run.start:
                found[-1] = (found[-1][0], run.end)
            else:
                found.append((run.start, run.end))
        assert looked[0] > place
        place = looked[0]
    os.close(descriptor)
    assert found == expected


@pytest.mark.parametrize("way", ["system call", "device"])
def test_a_userfaultfd_of_another_process_is_held_here_alone(way: str) -> None:
    with stopped_husk() as pid:
        if way == "device":
            number = by_device(pid)
            if number < 0:
                skip(f"/dev/userfaultfd: {os.strerror(-number)}")
            opened = pidfd.open_pidfd(pid)
            userfaultfd = pidfd.fetch_descriptor(opened, number)
            os.close(opened)
            assert lib.lm_userfaultfd_handshake(userfaultfd) == 0
        else:
            userfaultfd = take_userfaultfd(pid)
            held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
            assert "anon_inode:[userfaultfd]" not in held
        assert os.readlink(f"/proc/self/fd/{userfaultfd}") == "anon_inode:[userfaultfd]"
        assert not select.select([userfaultfd], [], [], 0)[0]
        with pytest.raises(BlockingIOError):
            os.read(userfaultfd, 32)
        os.close(userfaultfd)
        assert call_in_husk(pid, SYS_userfaultfd, os.O_CLOEXEC) >= 0
        assert call_in_husk(pid, SYS_mmap, 0, PAGE, 3, 0x22, -1, 0) > 0


def test_a_pidfd_stands_for_a_process() -> None:
    with stopped_husk() as pid:
        opened = pidfd.open_pidfd(pid)
        taken = pidfd.fetch_descriptor(opened, 1)
        assert kcmp.same_open_file(os.getpid(), taken, pid, 1)
        assert not kcmp.same_address_space(os.getpid(), pid)
        assert kcmp.same_address_space(pid, pid)
        pidfd.send_signal(opened, signal.SIGKILL)
        with pytest.raises(ProcessGone, match="SIGKILL"):
            tracee.wait(pid)
        assert select.select([opened], [], [], 60)[0]
        with pytest.raises(ProcessLookupError):
            pidfd.send_signal(opened, 0)
        with pytest.raises(OSError, match="descriptor 1"):
            pidfd.fetch_descriptor(opened, 1)
        os.close(opened)
        os.close(taken)


def test_open_file_descriptions_have_an_order() -> None:
    first, second = os.pipe()
    third = os.dup(first)
    own = os.getpid()
    assert kcmp.same_open_file(own, first, own, third)
    assert not kcmp.same_open_file(own, first, own, second)
    one, other, same = kcmp.number_open_files([first, second, third])
    assert one == same != other
    # In the order that the kernel has, or the other way round.
    for ascending in (True, False):
        ordered = [first, third, second] if (one < other) is ascending else [second, first, third]
        places = dict(zip(ordered, kcmp.number_open_files(ordered), strict=True))
        assert places == {first: one, third: one, second: other}
    epoll = select.epoll()
    epoll.register(first)
    assert kcmp.same_epoll_target(own, third, epoll.fileno(), first)
    with pytest.raises(FileNotFoundError):
        kcmp.same_epoll_target(own, first, epoll.fileno(), second)
    epoll.close()
    for number in (first, second, third):
        os.close(number)


def test_vector_state_of_another_length_is_taken_as_far_as_it_is_zeros() -> None:
    with stopped_husk() as pid:
        whole = tracee.get_xstate(pid)
        tracee.set_xstate(pid, whole[:-64])
        tracee.set_xstate(pid, whole + bytes(64))
        assert tracee.get_xstate(pid) == whole
        with pytest.raises(OSError, match=r"Bad address|Invalid argument"):
            tracee.set_xstate(pid, whole + b"x")
