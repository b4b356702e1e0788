"""A whole process in the form that travels: what the source sees, live first and frozen in the end."""

from __future__ import annotations

import msgspec

from live_migration.process.descriptors.contents import Content
from live_migration.process.descriptors.table import Table
from live_migration.process.memory.mapped_files import MappedFile
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.task import TaskDescription


class Runs(msgspec.Struct, frozen=True, array_like=True):
    """Pages from `address` on, `pages` of them."""

    address: int
    pages: int


class ProcessDescription(msgspec.Struct, frozen=True, kw_only=True):
    """One process. `space` is the number of its memory in the page stream, `executable` the path of its program.

    `resident` are the bytes of its own memory that exist, roughly: what the destination needs room for.
    `corrected` numbers a push that says what is not true any more of what rounds have sent, and could not be told
    while this was put together; 0: there is none.
    `changed` are the pages of private file mappings that differ from the file, `dropped` those that did when they were
    pushed first and do not any more; `pushed` numbers the push on the bulk connection that carries the changed ones,
    with the pages that the process touches first. `as_staged`: the memory and the files behind it are as they were in
    the live description, and are not told again."""

    space: int
    executable: str
    memory: AddressSpace
    task: TaskDescription
    descriptors: Table
    files: list[MappedFile] = []
    contents: list[Content] = []
    changed: list[Runs] = []
    dropped: list[Runs] = []
    resident: int = 0
    pushed: int = 0
    corrected: int = 0
    as_staged: bool = False


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a running process whose layout has changed since it was described, and the files behind it."""

    memory: AddressSpace
    files: list[MappedFile]


class MigrationDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration moves: a list of processes, today always of one."""

    processes: list[ProcessDescription]
