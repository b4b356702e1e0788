"""Rows that make mappings in the husk: what process/memory/mappings.py describes, restored."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import (
    SYS_close,
    SYS_madvise,
    SYS_mlock2,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_openat,
    SYS_pidfd_getfd,
)
from live_migration.process.memory.mappings import Mapping, MappingKind

AT_FDCWD = -100
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 0x01, 0x02, 0x20
MLOCK_ONFAULT = 1
MAP_GROWSDOWN, MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x100, 0x4000, 0x100000
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2

# VmFlags of /proc/PID/smaps (proc_pid_smaps(5)) that madvise(2) sets again, with its advice.
ADVICE = {"rr": 1, "sr": 2, "dc": 10, "mg": 12, "hg": 14, "nh": 15, "dd": 16, "wf": 18}
# What takes them away again. Huge pages are only ever asked for or refused.
OPPOSITE_ADVICE = {"rr": 0, "sr": 0, "dc": 11, "mg": 13, "dd": 17, "wf": 19}


@dataclass(frozen=True)
class Fetched:
    """A descriptor of another process, of which the husk has a pidfd: the file of a mapping, opened there."""

    pidfd: int
    number: int


def access_of(mapping: Mapping) -> int:
    """How its file has to be opened (open(2))."""
    return os.O_RDWR if mapping.shared and "mw" in mapping.flags else os.O_RDONLY


def map_rows(
    program: Program,
    mapping: Mapping,
    *,
    file: Fetched | None = None,
    descriptor: int | None = None,
    other_place: int | None = None,
) -> None:
    """Rows that make one mapping. `file`: its file; `descriptor`: the husk's own, of a file without a path;
    `other_place`: where the same shared anonymous memory, from its first byte on, is mapped already."""
    label = f"map {mapping.start:x}-{mapping.end:x} {mapping.path}".rstrip()
    flags = MAP_FIXED_NOREPLACE
    if mapping.kind is MappingKind.SHARED_ANONYMOUS and other_place is not None:
        # An old size of 0 makes another mapping of the same pages (mremap(2)).
        place = other_place + mapping.offset
        program.call(label, SYS_mremap, place, 0, mapping.length, MREMAP_MAYMOVE | MREMAP_FIXED, mapping.start)
        program.call(label, SYS_mprotect, mapping.start, mapping.length, mapping.protection)
        return
    if "nr" in mapping.flags:
        flags |= MAP_NORESERVE
    if "gd" in mapping.flags:
        flags |= MAP_GROWSDOWN
    if mapping.kind in (MappingKind.ANONYMOUS, MappingKind.SHARED_ANONYMOUS):
        flags |= MAP_ANONYMOUS | (MAP_PRIVATE if mapping.kind is MappingKind.ANONYMOUS else MAP_SHARED)
        program.call(label, SYS_mmap, mapping.start, mapping.length, mapping.protection, flags, -1, 0)
        return
    flags |= MAP_SHARED if mapping.shared else MAP_PRIVATE
    if file is not None:
        opened = program.call(f"fetch {mapping.path}", SYS_pidfd_getfd, file.pidfd, file.number, 0)
    else:
        # Opened anew through /proc, for what the mapping needs: the descriptor itself may be of another mode, and a
        # seal against writing forbids mappings that might.
        path = f"/proc/self/fd/{descriptor}"
        how = access_of(mapping) | os.O_NONBLOCK | os.O_CLOEXEC
        opened = program.call(f"open {path}", SYS_openat, AT_FDCWD, program.string(path), how, 0)
    program.call(label, SYS_mmap, mapping.start, mapping.length, mapping.protection, flags, opened, mapping.offset)
    program.call(f"close {mapping.path}", SYS_close, opened)


def advise_rows(program: Program, mapping: Mapping) -> None:
    """Rows that give a mapping its madvise(2) flags."""
    for flag, advice in ADVICE.items():
        if flag in mapping.flags:
            # KSM and huge pages may be compiled out: advice that this kernel does not know loses nothing.
            program.call(
                f"madvise {flag} {mapping.start:x}",
                SYS_madvise,
                mapping.start,
                mapping.length,
                advice,
                check=flag not in ("mg", "hg", "nh"),
            )


def retract_rows(program: Program, mapping: Mapping, flags: frozenset[str]) -> None:
    """Rows that take madvise(2) flags from a mapping."""
    for flag in flags & OPPOSITE_ADVICE.keys():
        label = f"madvise, no {flag} any more, {mapping.start:x}"
        program.call(label, SYS_madvise, mapping.start, mapping.length, OPPOSITE_ADVICE[flag], check=flag != "mg")


def unmergeable_rows(program: Program, mappings: Iterable[Mapping]) -> None:
    """Rows for a process whose memory is to be merged (PR_SET_MEMORY_MERGE): all of it is then, and these were not."""
    for mapping in mappings:
        if "mg" not in mapping.flags and not mapping.shared and mapping.kind is not MappingKind.KERNEL:
            label = f"madvise, no mg, {mapping.start:x}"
            program.call(label, SYS_madvise, mapping.start, mapping.length, OPPOSITE_ADVICE["mg"], check=False)


def lock_rows(program: Program, mapping: Mapping) -> None:
    """Rows that lock a mapping's pages as they arrive. After registering: a plain mlock would fill it with zeros."""
    if "lo" in mapping.flags:
        program.call(f"mlock {mapping.start:x}", SYS_mlock2, mapping.start, mapping.length, MLOCK_ONFAULT, check=False)


def unmap_row(program: Program, start: int, end: int) -> None:
    """A row that unmaps [start, end)."""
    program.call(f"unmap {start:x}-{end:x}", SYS_munmap, start, end - start)
