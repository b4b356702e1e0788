"""What only the process itself can do to its descriptors: rows, run inside it when all of them are at their
numbers.

Entries of epoll instances are pairs of number and file, POSIX locks belong to the process, and the receiver
of a signal is named by an id as the process sees it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Container

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_fcntl, SYS_listen
from live_migration.process.descriptors.epoll import Epoll, epoll_rows
from live_migration.process.descriptors.file_locks import lock_rows
from live_migration.process.descriptors.open_file import Owner
from live_migration.process.descriptors.table import OpenFile, Table
from live_migration.process.descriptors.unix_sockets import LISTENING, UnixSocket

SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME | os.O_ASYNC


def descriptor_rows(program: Program, table: Table) -> None:
    """Append every row that the descriptors of `table` need, but for those of `listen_rows`."""
    numbers = {each.number: each.close_on_exec for each in table.descriptors}
    replaced = {one.identity for one in table.descriptions if one.standard is not None}
    unsure = {each.number for each in table.descriptors if each.description in replaced}
    locked: set[tuple[int, int]] = set()
    for one in table.descriptions:
        if one.standard is not None:
            continue
        kind = one.kind
        if isinstance(kind, Epoll):
            epoll_rows(program, one.number, kind, numbers, unsure)
        if one.locks:
            file = (getattr(kind, "device", 0), getattr(kind, "inode", 0))
            if file not in locked:
                lock_rows(program, one.number, one.locks)
            locked.add(file)
        if one.owner is not None:
            owner_rows(program, one, one.owner)


def listen_rows(program: Program, table: Table, handed_over: Container[int]) -> None:
    """Rows, for the process with its own credentials, that make it the owner of its unix listeners.

    Whoever connects is told by SO_PEERCRED who called listen(2) last (unix(7)), which was the one that
    bound it.
    """
    for one in table.descriptions:
        kind = one.kind
        if isinstance(kind, UnixSocket) and kind.state == LISTENING and kind.inode not in handed_over:
            program.call(f"listen on descriptor {one.number}", SYS_listen, one.number, kind.backlog)


def owner_rows(program: Program, one: OpenFile, owner: Owner) -> None:
    """Rows that say who is told that a descriptor is ready, by which signal, and that it is to be told."""
    label = f"owner of descriptor {one.number}"
    if owner.signal:
        program.call(label, SYS_fcntl, one.number, lib.F_SETSIG, owner.signal)
    if owner.id:
        room = ffi.new("char[16]")
        argument = bytes(ffi.buffer(room, lib.lm_pack_owner(owner.type, owner.id, room)))
        program.call(label, SYS_fcntl, one.number, lib.F_SETOWN_EX, program.data(argument))
    if one.flags & os.O_ASYNC:
        program.call(label, SYS_fcntl, one.number, fcntl.F_SETFL, one.flags & SETTABLE)
