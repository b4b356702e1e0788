"""The husk: a process of ours that is emptied and filled with what the source described, while the source still runs.

Programs of system calls in the husk's one thread do everything: `empty_rows` and `layout_rows` compose them, `run` runs
them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.injection.program import (
    Outcome,
    Program,
    ProgramArea,
    call_in_husk,
    make_program_area,
    run_in_husk,
)
from live_migration.kernel.injection.syscall_numbers import SYS_mmap, SYS_mprotect, SYS_munmap
from live_migration.kernel.memory.maps import maps
from live_migration.process.memory.bridge import Bridge
from live_migration.process.memory.layout_change import Change
from live_migration.process.memory.mapped_files import FILE_KINDS
from live_migration.process.memory.mappings import AddressSpace, Mapping, MappingKind, mapping_of, shared_more_than_once
from live_migration.process.memory.rows import (
    MAP_FIXED_NOREPLACE,
    Fetched,
    advise_rows,
    map_rows,
    retract_rows,
    unmap_row,
)
from live_migration.restorer.kernel_mappings import bridge_rows, move_row

AREA_SIZE = 1 << 20
ROOM_PER_MAPPING = 1024
# The area is chosen with a GiB of free room around it; shared memories mapped whole for a moment lie farther out.
SCRATCH_DISTANCE = 0x80_0000_0000


@dataclass
class Husk:
    """A process under construction. `pid` is its id for this host; `numbers` the descriptors it holds by now."""

    pid: int
    area: ProgramArea
    pidfd_of_worker: int
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


def empty_rows(
    program: Program, pid: int, area: ProgramArea, space: AddressSpace, bridge: Bridge | None = None
) -> None:
    """Rows that unmap all that exec has mapped, and move the kernel's own mappings to where the source has them, or
    where the `bridge` wants them."""
    kernel: dict[str, Mapping] = {}
    for entry in maps(pid):
        mapping = mapping_of(entry)
        if mapping.kind is MappingKind.KERNEL:
            kernel[mapping.path] = mapping
        elif entry.path != "[vsyscall]" and not area.address <= entry.start < area.address + area.size:
            unmap_row(program, entry.start, entry.end)
    if bridge is not None:
        bridge_rows(program, bridge)
        return
    wanted = space.kernel_mappings()
    # From an old place that overlaps a new one the way leads over a third, since mremap(2) refuses overlaps.
    aside = area.address + 2 * area.size
    for special in wanted:
        old = kernel.pop(special.name)
        start = old.start
        if start == special.start:
            continue
        if any(start < other.start + other.length and other.start < start + old.length for other in wanted):
            move_row(program, special.name, start, old.length, aside)
            start, aside = aside, aside + old.length + mmap.PAGESIZE
        move_row(program, special.name, start, old.length, special.start)
    for left in kernel.values():
        unmap_row(program, left.start, left.end)


def layout_rows(
    program: Program,
    husk: Husk,
    change: Change,
    layouts: tuple[AddressSpace, AddressSpace],
    file_of: Callable[[Mapping], Fetched],
    descriptor_of: Callable[[int], int],
) -> None:
    """Rows that turn one layout into another; from nothing, when `change` makes everything. `layouts` are the two.

    `file_of` gives the file of a mapping, `descriptor_of` the number, in the husk, of a descriptor for a file without a
    path, by its inode."""
    for start, end in change.unmap:
        unmap_row(program, start, end)
    layouts = (_kept(layouts, change), layouts[1])
    places = _places_of_shared_memory(program, husk, layouts)
    for mapping in change.make:
        if mapping.kind is MappingKind.KERNEL:
            continue
        map_rows(
            program,
            mapping,
            file=file_of(mapping) if mapping.kind in FILE_KINDS else None,
            descriptor=descriptor_of(mapping.inode) if mapping.kind is MappingKind.BY_DESCRIPTOR else None,
            other_place=places.get((mapping.device, mapping.inode)),
        )
        advise_rows(program, mapping)
    for start, length in _scratch_places(husk, layouts):
        program.call("drop the scratch mapping", SYS_munmap, start, length)
    for mapping, flags in change.lost:
        retract_rows(program, mapping, flags)
    for mapping in change.protect:
        program.call(
            f"protect {mapping.start:x}-{mapping.end:x}",
            SYS_mprotect,
            mapping.start,
            mapping.length,
            mapping.protection,
        )
        advise_rows(program, mapping)


def _kept(layouts: tuple[AddressSpace, AddressSpace], change: Change) -> AddressSpace:
    """The mappings of the layout before that stay, of memory that is mapped at several places afterwards."""
    before, after = layouts
    twice = shared_more_than_once(after.mappings)
    there = [mapping for mapping in before.mappings if (mapping.device, mapping.inode) in twice]
    kept = [one for one in there if not any(start < one.end and one.start < end for start, end in change.unmap)]
    return AddressSpace(mappings=kept)


def _new_shared_memories(layouts: tuple[AddressSpace, AddressSpace]) -> list[tuple[tuple[str, int], int]]:
    """Shared anonymous memories that will be mapped at several places and are mapped at none yet, with their sizes in
    bytes."""
    before, after = layouts
    there = {(mapping.device, mapping.inode) for mapping in before.mappings}
    sizes: dict[tuple[str, int], int] = {}
    twice = shared_more_than_once(after.mappings)
    for mapping in after.mappings:
        identity = (mapping.device, mapping.inode)
        if identity in twice and identity not in there:
            sizes[identity] = max(sizes.get(identity, 0), mapping.offset + mapping.length)
    return sorted(sizes.items())


def _scratch_places(husk: Husk, layouts: tuple[AddressSpace, AddressSpace]) -> list[tuple[int, int]]:
    """Where each of these is mapped whole for a moment: (address, length), far behind the programs' memory."""
    place = husk.area.address + SCRATCH_DISTANCE
    found = []
    for _, size in _new_shared_memories(layouts):
        found.append((place, size))
        place += size + mmap.PAGESIZE
    return found


def _places_of_shared_memory(
    program: Program, husk: Husk, layouts: tuple[AddressSpace, AddressSpace]
) -> dict[tuple[str, int], int]:
    """Where memory that is mapped at several places can be taken from, with rows that map new memory whole.

    The first mapping gives shared memory its size, so it cannot be one of the final ones, which may show a part."""
    before, after = layouts
    twice = shared_more_than_once(after.mappings)
    places = {
        (mapping.device, mapping.inode): mapping.start - mapping.offset
        for mapping in before.mappings
        if (mapping.device, mapping.inode) in twice
    }
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    for (identity, _), (place, size) in zip(_new_shared_memories(layouts), _scratch_places(husk, layouts), strict=True):
        program.call("map shared memory whole", SYS_mmap, place, size, mmap.PROT_READ, flags, -1, 0)
        places[identity] = place
    return places


def drop_area(husk: Husk) -> None:
    """Unmap the programs' own memory: the last thing, by a system call instruction of the vdso. Raises OSError."""
    call_in_husk(husk.pid, SYS_munmap, husk.area.address, husk.area.size)
