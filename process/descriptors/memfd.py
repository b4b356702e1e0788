"""memfd_create(2): a file in memory, without a path. Its content travels before the process runs again."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection

import msgspec

from live_migration.process.descriptors.files import give_rights, give_times, update_bytes
from live_migration.process.descriptors.kind import Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen, close_all, reopen

PREFIX = "/memfd:"
DELETED = " (deleted)"


class MemFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="memfd"):
    """A memfd. `huge_page` is the size of its pages in bytes, or 0 for ordinary ones."""

    name: str
    device: int
    inode: int
    size: int
    seals: int
    mode: int
    uid: int
    gid: int
    accessed: int
    modified: int
    huge_page: int

    @property
    def linked(self) -> bool:
        """It has no path."""
        return False


def is_memfd(seen: Seen) -> bool:
    """Is it a memfd, and not a file that is called so?"""
    return seen.link.startswith(PREFIX) and seen.link.endswith(DELETED) and seen.status.st_nlink == 0


def snapshot_memfd(seen: Seen, _: SnapshotContext) -> MemFd:
    """Describe a memfd from outside."""
    page = os.sysconf("SC_PAGESIZE")
    return MemFd(
        name=seen.link.removeprefix(PREFIX).removesuffix(DELETED),
        device=seen.status.st_dev,
        inode=seen.status.st_ino,
        size=seen.status.st_size,
        seals=fcntl.fcntl(seen.duplicate, fcntl.F_GET_SEALS),
        mode=stat.S_IMODE(seen.status.st_mode),
        uid=seen.status.st_uid,
        gid=seen.status.st_gid,
        accessed=seen.status.st_atime_ns,
        modified=seen.status.st_mtime_ns,
        huge_page=seen.status.st_blksize if seen.status.st_blksize >= 512 * page else 0,
    )


def is_same(old: MemFd, new: MemFd) -> bool:
    """Is it one memfd?"""
    return (old.device, old.inode) == (new.device, new.inode)


def open_memfd(one: OpenFile[MemFd], context: OpenContext) -> int:
    """An open file of a memfd of this name and size, which the first call makes, all of it a hole, without seals.
    """
    memory, flags = one.object, one.flags
    key = ("memfd", memory.device, memory.inode)
    if key in context.anchors:
        return reopen(context.anchors[key][0], flags)
    anchor = make_memfd(memory)
    context.anchors[key] = (anchor, anchor)
    context.close_later.append(anchor)
    context.content_wanted[memory.device, memory.inode] = anchor
    # The open file that memfd_create(2) makes can be read and written; opening it again only adds O_LARGEFILE.
    return os.dup(anchor) if flags & os.O_ACCMODE == os.O_RDWR else reopen(anchor, flags)


def make_memfd(memory: MemFd) -> int:
    """A memfd of this name, size and mode, which can still be sealed. Raises OSError."""
    kind = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if memory.huge_page:
        kind |= os.MFD_HUGETLB | (memory.huge_page.bit_length() - 1) << 26
    number = os.memfd_create(memory.name, kind)
    try:
        os.truncate(number, memory.size)
        give_rights(number, memory)
    except OSError:
        close_all([number])
        raise
    return number


def seal_memfds(all_of_them: Collection[OpenFile[MemFd]], context: OpenContext) -> None:
    """Give every memfd its times and seals. Raises OSError."""
    give_times(all_of_them, context)
    for memory in {one.object.inode: one.object for one in all_of_them}.values():
        seal_memfd(context.anchors["memfd", memory.device, memory.inode][0], memory)


def seal_memfd(number: int, memory: MemFd) -> None:
    """Give it its seals, when its content is in place. Raises OSError.

    The kernel refuses F_SEAL_WRITE with EBUSY while the memfd is mapped writable: shared mappings of a memfd with that
    seal are made without the right to write.
    """
    missing = memory.seals & ~fcntl.fcntl(number, fcntl.F_GET_SEALS)
    if missing:
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, missing)


def update_memfd(number: int, one: OpenFile[MemFd], _: MemFd, context: OpenContext) -> None:
    """Its size, locks and offset."""
    update_bytes(number, one, one.object, context)


MEMFD = Kind(
    object=MemFd,
    file_types=(stat.S_IFREG,),
    recognise=is_memfd,
    snapshot=snapshot_memfd,
    same=is_same,
    is_file=True,
    open=open_memfd,
    update=update_memfd,
    seal=seal_memfds,
)
