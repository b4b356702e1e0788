"""The husk: a process of ours, emptied, and filled with what the source described, while the source still runs.

Everything is done by programs of system calls in the husk's one thread. `memory_rows` and its like compose; `run` runs.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from linux.address_gap import free_range
from linux.maps import maps
from linux.program import (
    Outcome,
    Program,
    ProgramArea,
    call_in_husk,
    make_program_area,
    run_in_husk,
)
from linux.syscall_numbers import SYS_mprotect, SYS_mremap, SYS_munmap
from process.mappings import (
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    AddressSpace,
    Change,
    Kind,
    Mapping,
    advise_rows,
    map_rows,
    mapping_of,
    shared_more_than_once,
    unmap_row,
)

AREA_SIZE = 1 << 20
ROOM_PER_MAPPING = 1024


@dataclass
class Husk:
    """A process under construction. `pid` is its id for this host; `numbers` the descriptors it holds by now."""

    pid: int
    area: ProgramArea
    pidfd_of_worker: int
    threads: dict[int, int] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)


def run(husk: Husk, program: Program, tid: int | None = None) -> Outcome:
    """Run a program in one of the husk's threads, the first by default. Raises SyscallFailed, ProcessGone."""
    return run_in_husk(husk.pid if tid is None else tid, husk.area, program)


def make_area(pid: int, wanted: Sequence[AddressSpace]) -> ProgramArea:
    """The memory for programs, at an address that is free in the husk and in the layouts it is to have."""
    taken = [(entry.start, entry.end) for entry in maps(pid)]
    taken += [(mapping.start, mapping.end) for space in wanted for mapping in space.mappings]
    size = AREA_SIZE + ROOM_PER_MAPPING * max(len(space.mappings) for space in wanted)
    return make_program_area(pid, size, free_range(taken, 3 * size))


def empty_rows(program: Program, pid: int, area: ProgramArea, space: AddressSpace) -> None:
    """Rows that unmap all that exec has mapped, and move the kernel's own mappings to where the source has them."""
    kernel: dict[str, Mapping] = {}
    for entry in maps(pid):
        mapping = mapping_of(entry)
        if mapping.kind is Kind.KERNEL:
            kernel[mapping.path] = mapping
        elif entry.path != "[vsyscall]" and not area.address <= entry.start < area.address + area.size:
            unmap_row(program, entry.start, entry.end)
    wanted = space.kernel_mappings()
    # An old place that overlaps any new one is left by a detour, since mremap(2) refuses overlaps.
    aside = area.address + 2 * area.size
    for special in wanted:
        old = kernel.pop(special.name)
        start = old.start
        if start == special.start:
            continue
        if any(start < other.start + other.length and other.start < start + old.length for other in wanted):
            _move(program, special.name, start, old.length, aside)
            start, aside = aside, aside + old.length + mmap.PAGESIZE
        _move(program, special.name, start, old.length, special.start)
    for left in kernel.values():
        unmap_row(program, left.start, left.end)


def _move(program: Program, name: str, start: int, length: int, to: int) -> None:
    program.call(f"move {name}", SYS_mremap, start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to)


def layout_rows(
    program: Program,
    change: Change,
    space: AddressSpace,
    map_path: Callable[[str], str],
    memfds: Callable[[int], int],
) -> None:
    """Rows that turn the staged layout into the final one; from nothing, when `change` makes everything.

    `memfds` gives the number, in the husk, of a descriptor for a memfd's inode."""
    twice = shared_more_than_once(space.mappings)
    first: dict[tuple[str, int, int], int] = {}
    for start, end in change.unmap:
        unmap_row(program, start, end)
    for mapping in change.make:
        if mapping.kind is Kind.KERNEL:
            continue
        identity = (mapping.device, mapping.inode, mapping.offset)
        place = first.get(identity) if (mapping.device, mapping.inode) in twice else None
        map_rows(
            program,
            mapping,
            path=map_path(mapping.path),
            descriptor=memfds(mapping.inode) if mapping.kind is Kind.BY_DESCRIPTOR else None,
            first_place=place,
        )
        first.setdefault(identity, mapping.start)
        advise_rows(program, mapping)
    for mapping in change.protect:
        program.call(
            f"protect {mapping.start:x}-{mapping.end:x}",
            SYS_mprotect,
            mapping.start,
            mapping.length,
            mapping.protection,
        )
        advise_rows(program, mapping)


def drop_area(husk: Husk) -> None:
    """Unmap the programs' own memory: the last thing, by a system call instruction of the vdso. Raises OSError."""
    call_in_husk(husk.pid, SYS_munmap, husk.area.address, husk.area.size)
