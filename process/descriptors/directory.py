"""Directories. Only the offset of an open file changes while it is open."""

from __future__ import annotations

import os
import stat

import msgspec

from live_migration.kernel.opening import open_as
from live_migration.process.descriptors.files import DELETED, names, process_blockers
from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import REOPEN_FLAGS, OpenContext, OpenFile, Seen, seek
from live_migration.wire.blockers import Blocker


class Directory(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="directory"):
    """A directory. Its offset is the position of getdents64(2)."""

    path: str
    linked: bool


def snapshot_directory(seen: Seen, _: SnapshotContext) -> Directory:
    """Describe a directory from outside."""
    linked = seen.status.st_nlink > 0 and names(seen.pid, seen.link, seen.status)
    return Directory(path=seen.link if linked else seen.link.removesuffix(DELETED), linked=linked)


def directory_blockers(one: OpenFile[Directory], _: BlockerContext) -> list[Blocker]:
    """What keeps a directory from being moved."""
    if one.object.linked:
        return process_blockers(one.name, one.object.path)
    return [
        Blocker(
            one.name,
            "the directory has been removed",
            f"create {one.object.path} again or let the process close it",
        )
    ]


def preflight_directory(one: OpenFile[Directory], context: PreflightContext) -> list[Blocker]:
    """Is there such a directory on the destination?"""
    path = context.options.map_path(one.object.path)
    if os.path.isdir(path):
        return []
    return [Blocker(one.name, f"{path} is not a directory here", "create it or point to it with --map-path OLD=NEW")]


def open_directory(one: OpenFile[Directory], context: OpenContext) -> int:
    """Open it by its path."""
    return open_as(stat.S_IFDIR, context.place(one.object.path), one.flags & REOPEN_FLAGS)


def update_directory(number: int, one: OpenFile[Directory], _: Directory, __: OpenContext) -> None:
    """Give the open file its offset."""
    seek(number, one.offset)


DIRECTORY = Kind(
    object=Directory,
    file_types=(stat.S_IFDIR,),
    snapshot=snapshot_directory,
    holders=Holders.BY_ANYBODY,
    blockers=directory_blockers,
    preflight=preflight_directory,
    open=open_directory,
    update=update_directory,
)
