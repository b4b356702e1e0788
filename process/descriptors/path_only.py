"""Descriptors opened with O_PATH (open(2)): they name a symbolic link, a FIFO, the file of a socket or a device, and no
more. Files and directories that are opened this way are of the kinds of files and directories.
"""

from __future__ import annotations

import os
import stat

import msgspec

from live_migration.process.descriptors.files import DELETED, names, process_blockers
from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker


class PathOnly(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="path-only"):
    """What is named: its type (S_IFMT), for a device node its number, and whether the path still names it."""

    path: str
    file_type: int
    device: int
    linked: bool


def is_path_only(seen: Seen) -> bool:
    """Is it opened by O_PATH, and by a path? /proc/PID/fd/NUMBER leads to pipes and sockets that have none."""
    return bool(seen.flags & os.O_PATH) and seen.link.startswith("/")


def snapshot_path_only(seen: Seen, _: SnapshotContext) -> PathOnly:
    """Describe it from outside."""
    return PathOnly(
        path=seen.link.removesuffix(DELETED),
        file_type=stat.S_IFMT(seen.status.st_mode),
        device=seen.status.st_rdev,
        linked=names(seen.pid, seen.link, seen.status),
    )


def is_same(old: PathOnly, new: PathOnly) -> bool:
    """Does it name the same thing? Nothing of it can be updated."""
    return old == new


def path_only_blockers(one: OpenFile[PathOnly], _: BlockerContext) -> list[Blocker]:
    """Blockers: what it names has been removed, or belongs to a process."""
    if one.object.linked:
        return process_blockers(one.name, one.object.path)
    return [Blocker(one.name, "what it names has been removed", "let the process close it before the move")]


def preflight_path_only(one: OpenFile[PathOnly], context: PreflightContext) -> list[Blocker]:
    """Is the same thing there on the destination?"""
    path = context.options.map_path(one.object.path)
    try:
        found = os.lstat(path)
    except OSError as error:
        return [Blocker(one.name, f"{path}: {error.strerror}", "create it here or point to it with --map-path OLD=NEW")]
    if (stat.S_IFMT(found.st_mode), found.st_rdev) == (one.object.file_type, one.object.device):
        return []
    return [
        Blocker(one.name, f"{path} is something else here", "create it here or point to it with --map-path OLD=NEW")
    ]


def open_path_only(one: OpenFile[PathOnly], context: OpenContext) -> int:
    """Name it again. If the last part of the path is a symbolic link, the flags say O_NOFOLLOW."""
    flags = os.O_PATH | os.O_CLOEXEC | (one.flags & os.O_NOFOLLOW)
    return os.open(context.place(one.object.path), flags)


PATH_ONLY = Kind(
    object=PathOnly,
    file_types=(stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
    recognise=is_path_only,
    snapshot=snapshot_path_only,
    same=is_same,
    holders=Holders.BY_ANYBODY,
    blockers=path_only_blockers,
    preflight=preflight_path_only,
    open=open_path_only,
)
