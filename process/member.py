"""One process of a migration in the form that travels: what is its own, and references to what it may share."""

from __future__ import annotations

import msgspec

from live_migration.process.descriptors.reach import Place
from live_migration.process.descriptors.table import Descriptor
from live_migration.process.memory.mapped_files import MappedFile
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.task import TaskDescription


class Runs(msgspec.Struct, frozen=True, array_like=True):
    """Pages from `address` on, `pages` of them."""

    address: int
    pages: int


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One process. `space` is the number of its memory in the page stream, and distinguishes the member from others.

    `place` is where it runs, `executable` the path of its program, `session` the id of its session; `descriptors` name
    open files of the migration by their identity, the mappings of `memory` its files by path and inode.
    `resident` is roughly how many bytes of its own memory exist: the destination needs room for them.
    `changed` are the pages of private file mappings that differ from the file, `dropped` those that did when they were
    pushed first and do not any more. `as_staged`: its memory has not changed since the live description, and does not
    travel again."""

    space: int
    place: Place
    executable: str
    memory: AddressSpace
    task: TaskDescription
    session: int
    descriptors: list[Descriptor]
    changed: list[Runs] = []
    dropped: list[Runs] = []
    resident: int = 0
    as_staged: bool = False


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a running member whose layout has changed since it was described, and the files behind it."""

    space: int
    memory: AddressSpace
    files: list[MappedFile]
