"""The files behind mappings: what they were on the source, and whether the destination has the same ones.

Program text, libraries and data that a process maps are not sent: the destination maps its own copies. These have to be
the same, byte for byte; size and modification time decide that (--files says how strictly).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Collection, Iterable

import msgspec

from live_migration.kernel.opening import open_as
from live_migration.process.descriptors.files import DELETED, File, names, preflight_file
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.memory.mappings import AddressSpace, Mapping, MappingKind, is_unlinked_memory
from live_migration.wire.blockers import Blocker

# A private mapping of /dev/zero is anonymous memory with a name (zero(4)).
ZERO_DEVICE = os.makedev(1, 5)
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs")
FILE_KINDS = (MappingKind.PRIVATE_FILE, MappingKind.SHARED_FILE)


class MappedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is mapped; `written`: through a shared mapping that may write to it."""

    file: File
    written: bool


def is_written(mapping: Mapping) -> bool:
    """Whether stores into the mapping reach the file."""
    return mapping.kind is MappingKind.SHARED_FILE and "mw" in mapping.flags


def snapshot_mapped_files(pid: int, mappings: Iterable[Mapping]) -> list[MappedFile]:
    """The files behind the mappings of `pid`, each once. Raises OSError if they may not be read, and FileNotFoundError
    if one of the mappings has gone."""
    found: dict[tuple[str, int], MappedFile] = {}
    for mapping in mappings:
        _add_file(found, pid, mapping)
    return list(found.values())


def snapshot_mapped_files_live(pid: int, space: AddressSpace) -> tuple[AddressSpace, list[MappedFile]]:
    """The files behind the mappings of a running process, and the layout without the mappings that went before their
    file was read. Raises OSError if they may not be read."""
    found: dict[tuple[str, int], MappedFile] = {}
    there = []
    for mapping in space.mappings:
        with contextlib.suppress(FileNotFoundError):
            _add_file(found, pid, mapping)
            there.append(mapping)
    gone = len(there) < len(space.mappings)
    return msgspec.structs.replace(space, mappings=there) if gone else space, list(found.values())


def _add_file(found: dict[tuple[str, int], MappedFile], pid: int, mapping: Mapping) -> None:
    """Add the file of a mapping to those found, by path and inode, if it has one that is not known yet as it is."""
    unlinked = mapping.kind is MappingKind.SHARED_ANONYMOUS and is_unlinked_memory(mapping.path)
    if mapping.kind not in FILE_KINDS and not unlinked:
        return
    known = found.get((mapping.path, mapping.inode))
    if known is not None and (known.written or not is_written(mapping)):
        return
    status = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == ZERO_DEVICE:
        return
    if unlinked and is_as_anonymous(mapping, status):
        return
    path = mapping.path.removesuffix(" (deleted)")
    found[mapping.path, mapping.inode] = MappedFile(
        file=File(
            path=path,
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            accessed=status.st_atime_ns,
            modified=status.st_mtime_ns,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            linked=names(pid, path, status),
            links=status.st_nlink,
        ),
        written=is_written(mapping),
    )


def is_as_anonymous(mapping: Mapping, status: os.stat_result) -> bool:
    """Is this shared mapping of a removed file like one of no file? That needs a file with no other name, in memory
    (tmpfs has no device), and a part of it behind every page."""
    pages = -(-status.st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = mapping.offset + mapping.length <= pages
    return status.st_nlink == 0 and os.major(status.st_dev) == 0 and whole


def snapshot_written_again(pid: int, files: list[MappedFile], mappings: Iterable[Mapping]) -> list[MappedFile]:
    """The files of an unchanged layout as they are now: a file that is written to has another modification time by now,
    and perhaps another size. The same list if none is written to. Raises OSError."""
    if not any(mapped.written for mapped in files):
        return files
    written = snapshot_mapped_files(pid, [mapping for mapping in mappings if is_written(mapping)])
    return [*written, *(mapped for mapped in files if not mapped.written)]


def flush_written_mappings(pid: int, mappings: Iterable[Mapping]) -> None:
    """On the source: write what is still in memory of the files that are mapped to be written to their storage, so that
    the other host sees it. Raises OSError, and FileNotFoundError if a mapping has gone."""
    flushed = set()
    for mapping in mappings:
        if is_written(mapping) and (mapping.device, mapping.inode) not in flushed:
            flushed.add((mapping.device, mapping.inode))
            number = os.open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def kept_in_memory(mountinfo: str) -> frozenset[int]:
    """The devices of file systems that are in memory alone, given the text of a /proc/PID/mountinfo (proc(5))."""
    found = set()
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in MEMORY_FILE_SYSTEMS:
            major, minor = before.split()[2].split(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def other_host_blockers(pid: int, files: Iterable[MappedFile]) -> list[Blocker]:
    """Blockers on the source, for a move to another host: files that are mapped to be written and that no other host
    can see. No modification time tells that the other host's copy is old, since stores leave none there. Raises
    OSError."""
    written = [mapped.file for mapped in files if mapped.written]
    if not written:
        return []
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as mountinfo:
        in_memory = kept_in_memory(mountinfo.read())
    return [
        Blocker(
            f"mapped file {file.path}",
            "is written to through a mapping and kept in this host's memory alone (tmpfs)",
            "let the process unmap it before the move, or map a file on storage that both hosts have",
        )
        for file in written
        if file.device in in_memory
    ]


def mapped_file_blockers(files: Iterable[MappedFile]) -> list[Blocker]:
    """Mapped files that no path leads to any more, or not the path by which they were mapped."""
    return [
        Blocker(
            f"mapped file {mapped.file.path}",
            "is memory that others can open by another name",
            "let the process remove that name before the move (sem_unlink(3), shm_unlink(3))",
        )
        if is_unlinked_memory(mapped.file.path + DELETED) and mapped.file.links
        else Blocker(
            f"mapped file {mapped.file.path}",
            "has been deleted or replaced since it was mapped",
            "restart the program so that it maps the file as it is now",
        )
        for mapped in files
        if not mapped.file.linked
    ]


def unnamed_blockers(
    mappings: Iterable[Mapping], files: Iterable[MappedFile], options: DescriptorOptions
) -> list[Blocker]:
    """Blockers on the destination: mappings of files that are not among `files`, for only those are compared. A private
    mapping of /dev/zero is no mapping of a file (zero(4))."""
    named = {mapped.file.path for mapped in files}
    found = {}
    for mapping in mappings:
        if mapping.kind in FILE_KINDS and mapping.path not in named and not is_zero_device(mapping, options):
            found[mapping.path] = Blocker(
                f"mapping {mapping.start:x}-{mapping.end:x} {mapping.path}",
                "its file is not among the mapped files that the source describes",
                "install the same version on both hosts",
            )
    return list(found.values())


def is_zero_device(mapping: Mapping, options: DescriptorOptions) -> bool:
    """Does the path of a mapping lead to /dev/zero here?"""
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(options.map_path(mapping.path))
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == ZERO_DEVICE
    return False


def open_mapped_file(path: str, flags: int) -> int:
    """Open, on the destination, the file of a mapping that the preflight has seen. Raises OSError."""
    try:
        return open_as(stat.S_IFREG, path, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            with contextlib.suppress(OSError):
                return open_as(stat.S_IFCHR, path, flags, ZERO_DEVICE)
        raise


def preflight_mapped_files(files: Collection[MappedFile], options: DescriptorOptions) -> list[Blocker]:
    """Blockers on the destination, unless every mapped file is there and, if it is not written to, the same."""
    return mapped_file_blockers(files) + [
        blocker
        for mapped in files
        for blocker in preflight_file(
            mapped.file,
            os.O_RDWR if mapped.written else os.O_RDONLY,
            f"mapped file {mapped.file.path}",
            options,
        )
    ]


def compare_written_mappings(
    files: Iterable[MappedFile], options: DescriptorOptions, same_machine: bool
) -> list[Blocker]:
    """Blockers before COMMIT, after the source has flushed its files: those mapped to be written that differ here."""
    return [
        blocker
        for mapped in files
        if mapped.written
        for blocker in preflight_file(
            mapped.file, os.O_RDONLY, f"mapped file {mapped.file.path}", options, same_machine
        )
    ]
