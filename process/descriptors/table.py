"""The table of a process's descriptors, in the form that travels."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.reach import Place
from live_migration.process.descriptors.registry import AnyObject, AnyShared


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A number of the process and the identity of the open file that it stands for."""

    number: int
    open_file: int
    close_on_exec: bool


class DescriptorTable(msgspec.Struct, frozen=True, kw_only=True):
    """All descriptors of a process, the open files that they stand for, and what those share."""

    place: Place
    descriptors: list[Descriptor]
    open_files: list[OpenFile[AnyObject]]
    shared: list[AnyShared] = []
    frozen: bool = False

    def own_links(self) -> set[str]:
        """What /proc/PID/fd says of all that the process can use; paths that are only named (O_PATH) do not count."""
        return {each.link for each in self.open_files if not each.flags & os.O_PATH}

    def by_identity(self) -> dict[int, OpenFile[AnyObject]]:
        """The open files by their identity."""
        return {description.identity: description for description in self.open_files}

    def shared_by_inode(self) -> dict[tuple[type, int], Any]:
        """What open files share, by its type and inode."""
        return {(type(each), each.inode): each for each in self.shared}
