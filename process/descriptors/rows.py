"""What only the process itself can do to its descriptors: rows that run inside it when all of them are at their
numbers.

Entries of epoll instances are pairs of number and file, POSIX locks belong to the process, and the receiver of a signal
is named by an id as the process sees it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Container

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_fcntl
from live_migration.process.descriptors.file_locks import lock_rows
from live_migration.process.descriptors.kind import RowsContext
from live_migration.process.descriptors.open_file import OpenFile, Owner
from live_migration.process.descriptors.registry import AnyObject, kind_of
from live_migration.process.descriptors.table import DescriptorTable

SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME | os.O_ASYNC


def descriptor_rows(program: Program, table: DescriptorTable) -> None:
    """Append every row that the descriptors of `table` need, except those of `last_rows`."""
    context = rows_context(table, ())
    for one in table.open_files:
        if one.standard is not None:
            continue
        kind_of(one.object).rows(program, one, context)
        lock_rows(program, one.number, one.locks)
        if one.owner is not None or one.flags & os.O_ASYNC:
            owner_rows(program, one, one.owner)


def last_rows(program: Program, table: DescriptorTable, handed_over: Container[int]) -> None:
    """The rows that the process runs with its own credentials."""
    context = rows_context(table, handed_over)
    for one in table.open_files:
        kind_of(one.object).last_rows(program, one, context)


def rows_context(table: DescriptorTable, handed_over: Container[int]) -> RowsContext:
    """What matters to the rows of all kinds."""
    replaced = {one.identity for one in table.open_files if one.standard is not None}
    return RowsContext(
        numbers={each.number: each.close_on_exec for each in table.descriptors},
        unsure={each.number for each in table.descriptors if each.open_file in replaced},
        handed_over=handed_over,
    )


def owner_rows(program: Program, one: OpenFile[AnyObject], owner: Owner | None) -> None:
    """Rows that set who gets a signal when a descriptor is ready, which signal, and that it is sent at all, be it that
    nobody gets it yet."""
    label = f"owner of descriptor {one.number}"
    if owner is not None and owner.signal:
        program.call(label, SYS_fcntl, one.number, lib.F_SETSIG, owner.signal)
    if owner is not None and owner.id:
        room = ffi.new("char[16]")
        argument = bytes(ffi.buffer(room, lib.lm_pack_owner(owner.type, owner.id, room)))
        program.call(label, SYS_fcntl, one.number, lib.F_SETOWN_EX, program.data(argument))
    if one.flags & os.O_ASYNC:
        program.call(label, SYS_fcntl, one.number, fcntl.F_SETFL, one.flags & SETTABLE)
