"""Files without a path: memfds and unlinked files. Their content travels with the pages, each file as an object.

An object is a space of the page stream whose addresses are offsets (wire/page_stream.h). The source reads it through
a duplicate of the descriptor, the destination writes it through the descriptor that the worker has made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from live_migration.process.descriptors.registry import file_of
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.numbering import Numbering

PAGE = os.sysconf("SC_PAGESIZE")


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """An object: its `space` in the page stream, the file by device and inode on the source, and its size in bytes."""

    space: int
    device: int
    inode: int
    size: int


def snapshot_contents(table: DescriptorTable, numbering: Numbering) -> list[Content]:
    """The objects that the descriptors of a process lead to."""
    found: dict[tuple[int, int], Content] = {}
    for one in table.open_files:
        file = file_of(one.object)
        if file is None or file.linked or one.standard is not None:
            continue
        identity = (file.device, file.inode)
        if identity in found or not file.size:
            continue
        space = numbering.object_of(file.device, file.inode, file.size)
        found[identity] = Content(space=space, device=file.device, inode=file.inode, size=file.size)
    return list(found.values())


def number_of(table: DescriptorTable, content: Content) -> int:
    """A descriptor of the process that leads to the object. Raises LookupError."""
    return _description(table, content)[0]


def identity_of(table: DescriptorTable, content: Content) -> int:
    """The identity of an open file that leads to the object. Raises LookupError."""
    return _description(table, content)[1]


def _description(table: DescriptorTable, content: Content) -> tuple[int, int]:
    for one in table.open_files:
        file = file_of(one.object)
        if file is not None and (file.device, file.inode) == (content.device, content.inode):
            return one.number, one.identity
    raise LookupError(f"no descriptor leads to inode {content.inode}")


def number_of_inode(table: DescriptorTable, inode: int) -> int:
    """A descriptor of the process that leads to the file without a path with this inode. Raises LookupError."""
    for one in table.open_files:
        file = file_of(one.object)
        if file is not None and file.inode == inode and not file.linked and one.standard is None:
            return one.number
    raise LookupError(f"no descriptor leads to inode {inode}")


def inodes_without_path(table: DescriptorTable) -> frozenset[int]:
    """The inodes that only a descriptor leads to."""
    files = (file_of(one.object) for one in table.open_files)
    return frozenset(file.inode for file in files if file is not None and not file.linked)


def new_contents(contents: Iterable[Content], before: Iterable[Content]) -> list[Content]:
    """Those of `contents` whose space is not in `before`."""
    spaces = frozenset(one.space for one in before)
    return [one for one in contents if one.space not in spaces]
