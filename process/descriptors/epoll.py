"""epoll(7): what an epoll instance watches.

The kernel tells each entry by the number under which it was registered and by the file. The number may stand for
something else by now, while the file lives on under another one; kcmp(2) tells. The process itself registers entries
again, because an entry is a pair of number and file.
"""

from __future__ import annotations

import fcntl
import os
import re
import select

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_close, SYS_dup3, SYS_epoll_ctl
from live_migration.kernel.kcmp import same_epoll_target
from live_migration.process.descriptors.kind import BlockerContext, Kind, RowsContext, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker

EPOLL_CTL_ADD = 1  # linux/eventpoll.h
PARAMETERS_SIZE = 8
SET_PARAMETERS, GET_PARAMETERS = 0x40088A01, 0x80088A02  # EPIOCSPARAMS, EPIOCGPARAMS
ENTRY = re.compile(r"^tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)", re.MULTILINE)


class Watched(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """An entry: the number under which it was registered, the events, the caller's data, and the number by which the
    file can be reached now, or None if no descriptor of the process stands for it any more.
    """

    target: int
    events: int
    data: int
    holder: int | None


class Epoll(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="epoll"):
    """An epoll instance. `busy_polling` is how it polls devices itself (struct epoll_params, EPIOCGPARAMS of
    ioctl_eventpoll(2)); empty for one that does not."""

    entries: list[Watched]
    busy_polling: bytes = b""


def snapshot_epoll(seen: Seen, _: SnapshotContext) -> Epoll:
    """Describe an epoll instance from outside, through /proc/PID/fdinfo and kcmp(2) with KCMP_EPOLL_TFD."""
    entries = []
    earlier: dict[int, int] = {}
    for target, events, data in ENTRY.findall(seen.information):
        number = int(target)
        offset = earlier.get(number, 0)
        earlier[number] = offset + 1
        entries.append(
            Watched(target=number, events=int(events, 16), data=int(data, 16), holder=find_holder(seen, number, offset))
        )
    return Epoll(entries=entries, busy_polling=snapshot_polling(seen.duplicate))


def snapshot_polling(number: int) -> bytes:
    """How an epoll instance polls devices. Kernels before Linux 6.9 do not."""
    try:
        return fcntl.ioctl(number, GET_PARAMETERS, bytes(PARAMETERS_SIZE)).rstrip(b"\0")
    except OSError:
        return b""


def find_holder(seen: Seen, target: int, offset: int) -> int | None:
    """The process's descriptor for the file of an entry: nearly always the number of the entry itself."""
    if is_target(seen, target, target, offset):
        return target
    for name in os.listdir(f"/proc/{seen.pid}/fd"):
        if is_target(seen, int(name), target, offset):
            return int(name)
    return None


def is_target(seen: Seen, number: int, target: int, offset: int) -> bool:
    """Does `number` stand for the file of the entry? A descriptor that was closed meanwhile does not."""
    try:
        return same_epoll_target(seen.pid, number, seen.number, target, offset)
    except OSError:
        return False


def epoll_blockers(one: OpenFile[Epoll], _: BlockerContext) -> list[Blocker]:
    """Blockers: entries whose file no descriptor of the process stands for; a process that stays keeps it open."""
    return [
        Blocker(
            one.name,
            f"it watches a file registered as {entry.target}, which the process has closed and another keeps open",
            "let the process remove the entry, or end the other process",
        )
        for entry in one.object.entries
        if entry.holder is None
    ]


def open_epoll(one: OpenFile[Epoll], _: OpenContext) -> int:
    """An epoll instance that watches nothing yet."""
    with select.epoll() as made:
        restore_polling(made.fileno(), one.object)
        return os.dup(made.fileno())


def update_epoll(number: int, one: OpenFile[Epoll], before: Epoll, _: OpenContext) -> None:
    """How it polls devices, if that has changed. Raises OSError."""
    if one.object.busy_polling != before.busy_polling:
        restore_polling(number, one.object)


def restore_polling(number: int, one: Epoll) -> None:
    """How it polls devices. Raises OSError: this kernel cannot, or not with so much at once (CAP_NET_ADMIN)."""
    wanted = one.busy_polling.ljust(PARAMETERS_SIZE, b"\0")
    if len(wanted) == PARAMETERS_SIZE and wanted.rstrip(b"\0") != snapshot_polling(number):
        fcntl.ioctl(number, SET_PARAMETERS, wanted)


def epoll_rows(program: Program, one: OpenFile[Epoll], context: RowsContext) -> None:
    """Rows that register every entry. A descriptor that stands for something else than on the source may refuse to be
    watched."""
    number, numbers, unsure = one.number, context.numbers, context.unsure
    for entry in one.object.entries:
        if entry.holder is None:
            continue
        label = f"epoll {number} watching {entry.target}"
        event = program.data(event_bytes(entry))
        add = (SYS_epoll_ctl, number, EPOLL_CTL_ADD, entry.target, event)
        if entry.holder == entry.target:
            program.call(label, *add, check=entry.holder not in unsure)
            continue
        # The number stands for something else by now: the entry's file borrows it.
        spare = max(numbers) + 1
        if entry.target in numbers:
            program.call(label, SYS_dup3, entry.target, spare, 0)
        program.call(label, SYS_dup3, entry.holder, entry.target, 0)
        program.call(label, *add, check=entry.holder not in unsure)
        if entry.target in numbers:
            program.call(label, SYS_dup3, spare, entry.target, os.O_CLOEXEC if numbers[entry.target] else 0)
            program.call(label, SYS_close, spare)
        else:
            program.call(label, SYS_close, entry.target)


def event_bytes(entry: Watched) -> bytes:
    """The entry as epoll_ctl(2) takes it."""
    room = ffi.new("char[16]")
    return bytes(ffi.buffer(room, lib.lm_pack_epoll_event(entry.events, entry.data, room)))


EPOLL = Kind(
    object=Epoll,
    links=("anon_inode:[eventpoll]",),
    snapshot=snapshot_epoll,
    blockers=epoll_blockers,
    open=open_epoll,
    update=update_epoll,
    rows=epoll_rows,
)
