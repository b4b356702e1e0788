"""Mappings: the layout of an address space, what is mapped where, and how its memory travels.

A mapping's kind says how its pages come to the destination:

| kind | pages |
|---|---|
| ANONYMOUS (heap and stacks too) | on demand, through userfaultfd |
| SHARED_ANONYMOUS, mapped once | on demand |
| SHARED_ANONYMOUS, mapped more than once | eagerly, before COMMIT |
| PRIVATE_FILE | from the file; changed pages eagerly |
| SHARED_FILE | from the file, which the destination sees too |
| BY_DESCRIPTOR (memfds, unlinked files) | through the process's own descriptor, eagerly |
| KERNEL ([vdso], [vvar] ...) | the destination's own, moved to the old address, or a bridge (bridge.py) |
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache

import msgspec

from live_migration.kernel.memory.maps import NO_FLAGS, MapEntry, parse_maps, smaps
from live_migration.process.memory.vdso import NAME, read_code
from live_migration.wire.blockers import Blocker

PAGE = mmap.PAGESIZE
FORBIDDEN = {
    "io": ("maps a device's memory", "close the device before the move"),
    "pf": ("maps a device's memory", "close the device before the move"),
    "ht": ("uses hugetlb pages", "use transparent huge pages (madvise MADV_HUGEPAGE) instead"),
    "um": ("is registered with a userfaultfd of the process", "move the process before it pages itself"),
    "uw": ("is registered with a userfaultfd of the process", "move the process before it pages itself"),
    "ui": ("is registered with a userfaultfd of the process", "move the process before it pages itself"),
    "sl": ("is sealed by mseal, which no later process can undo", "run the program without mseal"),
    "gu": ("has guard regions (MADV_GUARD_INSTALL)", "run the program without guard regions"),
    "ss": ("is a shadow stack", "run the program with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"),
}


class MappingKind(enum.IntEnum):
    """How a mapping's pages travel; see the table at the top."""

    ANONYMOUS = 1
    SHARED_ANONYMOUS = 2
    PRIVATE_FILE = 3
    SHARED_FILE = 4
    BY_DESCRIPTOR = 5
    KERNEL = 6


class Mapping(msgspec.Struct, frozen=True, array_like=True):
    """One mapping. Addresses and the offset in bytes; `protection` in PROT_ bits; `flags` are smaps' VmFlags."""

    start: int
    end: int
    kind: MappingKind
    protection: int
    offset: int
    device: str
    inode: int
    path: str
    shared: bool
    flags: frozenset[str] = NO_FLAGS

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


class KernelMapping(msgspec.Struct, frozen=True, array_like=True):
    """A mapping that the kernel puts into every process, by name, with its size in bytes."""

    name: str
    start: int
    length: int


class NamedMemory(msgspec.Struct, frozen=True, array_like=True):
    """A file in memory that is mapped by a name that has been removed since, and has another one, `path`."""

    device: str
    inode: int
    path: str


class AddressSpace(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All mappings of a space in the order of their addresses; in a live snapshot also the code in [vdso]. `named` are
    the files in memory whose names are not those that the kernel tells.

    What follows from the mappings is found once: the freeze goes on with what was found before it."""

    mappings: list[Mapping]
    vdso: bytes = b""
    named: tuple[NamedMemory, ...] = ()

    @cached_property
    def extents(self) -> Sequence[tuple[int, int]]:
        """Where the mappings begin and end."""
        return [(mapping.start, mapping.end) for mapping in self.mappings]

    @cached_property
    def locked_bytes(self) -> int:
        """How long the mappings are that are locked (mlock(2))."""
        return sum(mapping.length for mapping in self.mappings if "lo" in mapping.flags)

    @cached_property
    def paged_on_demand(self) -> Sequence[Mapping]:
        """The mappings whose missing pages userfaultfd can wait for."""
        twice = shared_more_than_once(self.mappings)
        return [
            mapping
            for mapping in self.mappings
            if mapping.kind is MappingKind.ANONYMOUS
            or (mapping.kind is MappingKind.SHARED_ANONYMOUS and (mapping.device, mapping.inode) not in twice)
        ]

    @cached_property
    def private_files(self) -> Sequence[Mapping]:
        """The mappings that have pages of their own beside those of their file."""
        return [mapping for mapping in self.mappings if is_private_file(mapping)]

    @cached_property
    def eager(self) -> Sequence[Mapping]:
        """The mappings whose (changed) pages travel before COMMIT, in the order of their addresses.

        Of memory that is mapped at several places, the widest mapping of those that show a part of it."""
        twice = shared_more_than_once(self.mappings)
        eager = list(self.private_files)
        shown: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for mapping in sorted(self.mappings, key=lambda one: -one.length) if twice else ():
            identity = (mapping.device, mapping.inode)
            if mapping.kind is not MappingKind.SHARED_ANONYMOUS or identity not in twice:
                continue
            start, end = mapping.offset, mapping.offset + mapping.length
            parts = shown.setdefault(identity, [])
            if not any(first <= start and end <= last for first, last in parts):
                parts.append((start, end))
                eager.append(mapping)
        return sorted(eager, key=lambda one: one.start)

    def kernel_mappings(self) -> list[KernelMapping]:
        """[vvar], [vdso] and their like, in the order of their addresses."""
        return [
            KernelMapping(mapping.path, mapping.start, mapping.length)
            for mapping in self.mappings
            if mapping.kind is MappingKind.KERNEL
        ]


DELETED = " (deleted)"
MCL_FUTURE, MCL_ONFAULT = 2, 4  # mlockall(2)
KERNEL_NAMES = (NAME, "[vvar]", "[vvar_vclock]")
IGNORED_NAMES = ("[vsyscall]",)


# There are few words of four letters, and there may be tens of thousands of mappings.
@lru_cache(maxsize=64)
def _protection(permissions: str) -> int:
    return sum(bit for letter, bit in zip("rwx", (1, 2, 4), strict=True) if letter in permissions)


def is_unlinked_memory(path: str) -> bool:
    """Does the path of a mapping say that it was made of a file in memory whose name has been removed? Mapped shared,
    that is what shared anonymous memory is (shmem_zero_setup in the kernel's mm/shmem.c): named semaphores are made so.
    """
    return path.startswith("/dev/shm/") and path.endswith(DELETED)


def named_memory(pid: int, entries: Iterable[MapEntry]) -> tuple[NamedMemory, ...]:
    """The unlinked memory among shared mappings that has another name in the same directory: sem_open(3) makes a
    semaphore under one that it removes. Of a mapping that has gone nothing is found."""
    found = {}
    for entry in entries:
        if entry.permissions[3] != "s" or not is_unlinked_memory(entry.path):
            continue
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}")
            path = name_in(os.path.dirname(entry.path), status) if status.st_nlink else None
            if path is not None:
                found[entry.device, entry.inode] = NamedMemory(entry.device, entry.inode, path)
    return tuple(found.values())


def name_in(directory: str, status: os.stat_result) -> str | None:
    """The path of a file with that status in a directory. Raises OSError."""
    with os.scandir(directory) as files:
        for file in files:
            if file.inode() == status.st_ino and os.path.samestat(file.stat(follow_symlinks=False), status):
                return file.path
    return None


def _kind(path: str, shared: bool, inode: int, by_descriptor: Collection[int]) -> MappingKind:
    if path in KERNEL_NAMES:
        return MappingKind.KERNEL
    if path.endswith(DELETED) and (inode in by_descriptor or path.startswith("/memfd:")):
        return MappingKind.BY_DESCRIPTOR
    if shared and (path.startswith("/dev/zero") or is_unlinked_memory(path)):
        return MappingKind.SHARED_ANONYMOUS
    if inode == 0:
        return MappingKind.ANONYMOUS
    return MappingKind.SHARED_FILE if shared else MappingKind.PRIVATE_FILE


def mapping_of(
    entry: MapEntry,
    flags: Iterable[str] = (),
    by_descriptor: Collection[int] = (),
    named: Iterable[NamedMemory] = (),
) -> Mapping:
    """The wire form of one line of /proc/PID/maps, with its VmFlags where they are known.

    `by_descriptor`: inodes of files without a path that the process has a descriptor of; `named`: those that have a
    path although their mappings do not tell it."""
    shared, path = entry.permissions[3] == "s", entry.path
    for one in named:
        if (one.device, one.inode) == (entry.device, entry.inode) and shared:
            path = one.path
    return Mapping(
        entry.start,
        entry.end,
        _kind(path, shared, entry.inode, by_descriptor),
        _protection(entry.permissions),
        entry.offset,
        entry.device,
        entry.inode,
        path,
        shared,
        frozenset(flags),
    )


def snapshot_address_space(
    pid: int, by_descriptor: Collection[int] = (), ours: frozenset[str] = frozenset()
) -> AddressSpace:
    """The layout with all flags except `ours`, which this migration has set: it reads smaps, which walks the memory
    (13 ms per GiB of small pages). Live.

    Raises ProcessGone."""
    entries = [entry for entry in smaps(pid) if entry.path not in IGNORED_NAMES]
    named = named_memory(pid, entries)
    mappings = [mapping_of(entry, entry.flags - ours, by_descriptor, named) for entry in entries]
    return AddressSpace(mappings=mappings, vdso=read_code(pid, entries), named=named)


def reread(
    pid: int,
    listed: Iterable[MapEntry],
    earlier: AddressSpace,
    by_descriptor: Collection[int] = (),
    ours: frozenset[str] = frozenset(),
) -> AddressSpace:
    """The layout that maps has just `listed`, cheaply: with the flags that `earlier` had at the address. It is
    `earlier` itself where nothing has changed.

    A range that has come since gets the flags that smaps tells, so that only a process that maps memory meanwhile pays
    for a walk."""
    entries = [entry for entry in listed if entry.path not in IGNORED_NAMES]
    known = {(mapping.start, mapping.end): mapping for mapping in earlier.mappings}
    mappings = []
    for entry in entries:
        before = known.get((entry.start, entry.end))
        plain = mapping_of(entry, (), by_descriptor, earlier.named)
        if before is None or not same_object(before, plain):
            anew = snapshot_address_space(pid, by_descriptor, ours)
            return msgspec.structs.replace(earlier, mappings=anew.mappings, named=anew.named)
        mappings.append(before if before.protection == plain.protection else _with_flags(plain, before.flags))
    return earlier if mappings == earlier.mappings else msgspec.structs.replace(earlier, mappings=mappings)


def layout_text(text: bytes, space: AddressSpace, by_descriptor: Collection[int] = ()) -> bytes:
    """A `text` of /proc/PID/maps if it lists exactly the mappings of `space`; else b"", which no process's text is.

    The two are read at different moments, and a running process maps and unmaps in between. If they differ, an equal
    text later would not mean that its mappings are those of `space`."""
    entries = (entry for entry in parse_maps(text) if entry.path not in IGNORED_NAMES)
    listed = [mapping_of(entry, (), by_descriptor, space.named) for entry in entries]
    return text if listed == [_with_flags(mapping, NO_FLAGS) for mapping in space.mappings] else b""


def _with_flags(mapping: Mapping, flags: frozenset[str]) -> Mapping:
    return msgspec.structs.replace(mapping, flags=flags)


def same_object(one: Mapping, other: Mapping) -> bool:
    """Whether two mappings show the same thing at the same place, whichever part of it."""
    return (
        one.kind == other.kind
        and one.shared == other.shared
        and one.device == other.device
        and one.inode == other.inode
        and one.path == other.path
        and (one.inode == 0 or one.offset - one.start == other.offset - other.start)
    )


def shared_more_than_once(mappings: Iterable[Mapping]) -> frozenset[tuple[str, int]]:
    """The shared anonymous memories, as (device, inode), that are mapped at more than one place."""
    count = Counter((m.device, m.inode) for m in mappings if m.kind is MappingKind.SHARED_ANONYMOUS)
    return frozenset(identity for identity, times in count.items() if times > 1)


def future_flags(space: AddressSpace) -> int:
    """The flags of mlockall(2) for mappings to come, of a process that has said that they are to be locked: on fault if
    all that it has locked is."""
    on_fault = all("lf" in mapping.flags for mapping in space.mappings if "lo" in mapping.flags)
    return MCL_FUTURE | (MCL_ONFAULT if on_fault else 0)


def travelling_bytes(space: AddressSpace) -> int:
    """How long the mappings of shared memory are that travels with the process."""
    kinds = (MappingKind.SHARED_ANONYMOUS, MappingKind.BY_DESCRIPTOR)
    return sum(mapping.length for mapping in space.mappings if mapping.kind in kinds)


def is_private_file(mapping: Mapping) -> bool:
    """Whether the mapping has pages of its own beside those of its file."""
    return mapping.kind is MappingKind.PRIVATE_FILE or (
        mapping.kind is MappingKind.BY_DESCRIPTOR and not mapping.shared
    )


def mapping_blockers(space: AddressSpace, by_descriptor: Collection[int] = ()) -> list[Blocker]:
    """The blockers of the layout. `by_descriptor`: see `mapping_of`."""
    found: dict[tuple[str, str], Blocker] = {}
    for mapping in space.mappings:
        name = f"mapping {mapping.start:x}-{mapping.end:x} {mapping.path}".rstrip()
        for flag in sorted(mapping.flags & FORBIDDEN.keys()):
            if mapping.kind is not MappingKind.KERNEL:
                cause, remedy = FORBIDDEN[flag]
                found.setdefault((mapping.path, flag), Blocker(name, cause, remedy))
        if mapping.path.startswith("/SYSV"):
            found.setdefault(
                (mapping.path, "sysv"),
                Blocker(name, "is System V shared memory", "detach it (shmdt) before the move"),
            )
        elif mapping.path.startswith("[aio]") or mapping.path.startswith("/[aio]"):
            found.setdefault(
                (mapping.path, "aio"),
                Blocker(name, "belongs to POSIX AIO of the kernel", "destroy the io context before the move"),
            )
        elif mapping.path.startswith("anon_inode:"):
            found.setdefault(
                (mapping.path, "anon"),
                Blocker(name, "belongs to a kernel object that does not travel", "close it before the move"),
            )
        elif mapping.kind is MappingKind.BY_DESCRIPTOR and mapping.inode not in by_descriptor:
            found.setdefault(
                (mapping.path, "memfd"),
                Blocker(name, "is a memfd without a descriptor", "keep its descriptor open until the move"),
            )
        elif mapping.kind in (MappingKind.PRIVATE_FILE, MappingKind.SHARED_FILE) and mapping.path.endswith(DELETED):
            found.setdefault(
                (mapping.path, "deleted"),
                Blocker(
                    name,
                    "maps a file that has been deleted or replaced",
                    "restart the program so that it maps the file as it is now",
                ),
            )
    return list(found.values())
