"""The destination's side of descriptors: opening them in the worker, and bringing them up to date after the
freeze.

What is slow happens while the source still runs. Its descriptors are opened from the staged table; from the
final one only offsets, flags, counters and the content of pipes are taken, and what is new or gone since.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

from msgspec.structs import replace

from live_migration.process.descriptors.epoll import Epoll, open_epoll
from live_migration.process.descriptors.eventfd import EventFd, open_eventfd, update_eventfd
from live_migration.process.descriptors.file_locks import held_locks, is_same_file, take_locks
from live_migration.process.descriptors.files import Device, Directory, File, is_writable, open_file, open_path
from live_migration.process.descriptors.inet_sockets import InetSocket, open_inet
from live_migration.process.descriptors.inotify import Inotify, open_inotify, update_inotify
from live_migration.process.descriptors.memfd import MemFd, open_memfd, seal_memfd
from live_migration.process.descriptors.open_file import OpenContext, close_all, set_flags
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.pipes import Pipe, fill_pipe, open_pipe
from live_migration.process.descriptors.reach import is_same_machine, is_same_network, source_in_reach
from live_migration.process.descriptors.signalfd import SignalFd, open_signalfd
from live_migration.process.descriptors.stdio import open_standard
from live_migration.process.descriptors.table import Descriptor, Kind, OpenFile, Table
from live_migration.process.descriptors.timerfd import TimerFd, open_timerfd, update_timerfd
from live_migration.process.descriptors.unix_sockets import UnixSocket, fill_unix, open_unix, shut_unix


@dataclass
class OpenedDescriptors:
    """Descriptors of this process, by the identity of the description, that stand for the moved process's.

    Close them (`close`) once the husk has them: a pipe whose ends are kept here never ends.
    """

    context: OpenContext
    numbers: dict[int, int] = field(default_factory=dict)
    known: dict[int, Kind] = field(default_factory=dict)

    def part_of(self, table: Table) -> Table:
        """The table without what could not be opened while staging, because it was removed meanwhile."""
        return replace(
            table,
            descriptors=[each for each in table.descriptors if each.description in self.numbers],
            descriptions=[each for each in table.descriptions if each.identity in self.numbers],
        )

    @property
    def handed_over(self) -> set[int]:
        """The inodes of sockets that are the source's own, not made here."""
        return self.context.handed_over

    @property
    def content_wanted(self) -> dict[tuple[int, int], int]:
        """Files whose content has to be written: device and inode on the source, and a descriptor here."""
        return self.context.content_wanted

    def undo(self) -> None:
        """Leave nothing behind: close everything, and remove the files of sockets that were bound."""
        self.close()
        for path in self.context.made_paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self.context.made_paths.clear()

    def close(self) -> None:
        """Close every descriptor of this process."""
        close_all(self.numbers.values())
        close_all(self.context.close_later)
        if self.context.source_pidfd is not None:
            close_all([self.context.source_pidfd])
            self.context.source_pidfd = None
        self.numbers.clear()
        self.context.close_later.clear()
        self.context.anchors.clear()
        self.context.content_wanted.clear()


@dataclass(frozen=True)
class DescriptorChanges:
    """What a husk with the staged descriptors has to do for the final ones.

    Numbers to close first, then descriptors to install, and numbers whose close-on-exec flag alone differs.
    """

    close: list[int]
    install: list[Descriptor]
    close_on_exec: list[Descriptor]


def descriptor_changes(staged: Table | None, final: Table) -> DescriptorChanges:
    """How the numbers of `final` differ from those of `staged`; without a staged table all are to be
    installed.
    """
    before = {d.number: d for d in staged.descriptors} if staged else {}
    after = {d.number: d for d in final.descriptors}
    install = [d for d in after.values() if d.number not in before or before[d.number].description != d.description]
    return DescriptorChanges(
        close=sorted(before.keys() - after.keys()),
        install=install,
        close_on_exec=[
            d
            for d in after.values()
            if d.number in before
            and before[d.number].description == d.description
            and before[d.number].close_on_exec != d.close_on_exec
        ],
    )


def open_descriptors(
    table: Table,
    options: DescriptorOptions,
    *,
    source_access: bool = True,
    standard: tuple[int, int, int] = (0, 1, 2),
) -> OpenedDescriptors:
    """Open everything in `table`, here.

    With `source_access`, what cannot exist twice on one machine (bound sockets) is the
    source's own, where that can be reached. `standard` are lm-restore's own descriptors. Raises OSError,
    naming the descriptor.
    """
    context = OpenContext(
        map_path=options.map_path,
        stdio=options.stdio,
        standard=standard,
        source_pidfd=source_in_reach(table.place) if source_access else None,
        same_network=is_same_network(table.place),
        same_machine=is_same_machine(table.place),
    )
    opened = OpenedDescriptors(context)
    try:
        open_missing(opened, table)
    except BaseException:
        opened.undo()
        raise
    return opened


def open_missing(opened: OpenedDescriptors, table: Table) -> None:
    """Open the descriptions of `table` that are not open yet; what connects to others of the process comes
    last.
    """
    for one in sorted(table.descriptions, key=lambda each: isinstance(each.kind, UnixSocket) and each.kind.has_peer):
        if one.identity in opened.numbers:
            continue
        try:
            opened.numbers[one.identity] = open_one(one, table, opened.context)
        except OSError as error:
            if is_transient(one, error) and not table.frozen:
                # A temporary file that the process has removed since: the frozen look tells what is there
                # then.
                continue
            raise OSError(error.errno, f"{one.name}: {error.strerror}") from error
        opened.known[one.identity] = one.kind


def is_transient(one: OpenFile, error: OSError) -> bool:
    """May the error be the trace of a file that has been removed since the live look?"""
    return isinstance(one.kind, File) and error.errno == errno.ENOENT


def open_one(one: OpenFile, table: Table, context: OpenContext) -> int:
    """Open one description; the descriptor is this process's and close-on-exec."""
    kind = one.kind
    if one.standard is not None:
        return open_standard(one.standard, one.flags, context)
    if isinstance(kind, File):
        locked = held_locks(one.locks)
        handed_over = context.fetch(one.number) if locked and is_same_file_here(kind, context) else None
        return handed_over if handed_over is not None else open_file(kind, one.flags, context)
    if isinstance(kind, Directory | Device):
        return open_path(kind.path, one.flags, context)
    if isinstance(kind, Pipe):
        return open_pipe(kind, one.flags, table.pipe_bodies()[kind.pipe], context)
    if isinstance(kind, MemFd):
        return open_memfd(kind, one.flags, context)
    if isinstance(kind, UnixSocket):
        return open_unix(kind, context, one.number)
    if isinstance(kind, InetSocket):
        return open_inet(kind, context, one.number)
    return open_anonymous(kind, context)


def open_anonymous(kind: Kind, context: OpenContext) -> int:
    """Open one of those that have no file."""
    if isinstance(kind, EventFd):
        return open_eventfd(kind)
    if isinstance(kind, TimerFd):
        return open_timerfd(kind)
    if isinstance(kind, SignalFd):
        return open_signalfd(kind)
    if isinstance(kind, Inotify):
        return open_inotify(kind, context.map_path)
    if isinstance(kind, Epoll):
        return open_epoll()
    raise OSError(errno.EINVAL, "it cannot be moved")


def is_same_file_here(file: File, context: OpenContext) -> bool:
    """Does the path lead to the source's own file, on one machine?"""
    return context.same_machine and is_same_file(context.map_path(file.path), file.device, file.inode)


def update_descriptors(opened: OpenedDescriptors, final: Table) -> None:
    """Bring what is open to the state that the frozen source has: what is new, gone, moved on.

    Counters, queues and the content of pipes are written once: call it once, with the final table. Memfds get
    their seals from `seal_descriptors`, later. Raises OSError, naming the descriptor.
    """
    by_identity = final.by_identity()
    for identity in opened.numbers.keys() - by_identity.keys():
        close_all([opened.numbers.pop(identity)])
    open_missing(opened, final)
    own = [one for one in final.descriptions if one.standard is None]
    fill_pipes(own, final, opened.context)
    for one in own:
        if isinstance(one.kind, UnixSocket):
            fill_unix(one.kind, opened.context)
    for one in own:
        try:
            update_one(opened, one)
        except OSError as error:
            raise OSError(error.errno, f"{one.name}: {error.strerror}") from error


def fill_pipes(own: list[OpenFile], final: Table, context: OpenContext) -> None:
    """Write the content of the pipes that are not replaced by standard descriptors."""
    ends = [(one.kind.pipe, one.flags) for one in own if isinstance(one.kind, Pipe)]
    for body in final.pipes:
        if body.content and any(pipe == body.pipe for pipe, _ in ends):
            packets = any(pipe == body.pipe and flags & os.O_DIRECT for pipe, flags in ends)
            fill_pipe(body, packets or len(body.content) > 1, context)


def update_one(opened: OpenedDescriptors, one: OpenFile) -> None:
    """Bring one open description up to date."""
    number, kind = opened.numbers[one.identity], one.kind
    if one.flags & os.O_PATH:
        return
    if isinstance(kind, File | MemFd):
        made = opened.content_wanted.get((kind.device, kind.inode))
        if made is not None and os.fstat(made).st_size != kind.size:
            os.truncate(made, kind.size)
        take_locks(number, one.locks)
    if isinstance(kind, File | Directory | MemFd) and os.lseek(number, 0, os.SEEK_CUR) != one.offset:
        os.lseek(number, one.offset, os.SEEK_SET)
    elif isinstance(kind, EventFd):
        update_eventfd(number, kind)
    elif isinstance(kind, TimerFd):
        update_timerfd(number, kind)
    elif isinstance(kind, Inotify):
        before = opened.known[one.identity]
        if isinstance(before, Inotify):
            update_inotify(number, before, kind, opened.context.map_path)
    elif isinstance(kind, UnixSocket):
        shut_unix(kind, opened.context)
    opened.known[one.identity] = kind
    set_flags(number, one.flags)


def seal_descriptors(opened: OpenedDescriptors, final: Table) -> None:
    """Give the memfds their seals, when their content is in place and everything is mapped. Raises OSError."""
    sealed: set[int] = set()
    for one in final.descriptions:
        if isinstance(one.kind, MemFd) and one.standard is None and one.kind.inode not in sealed:
            sealed.add(one.kind.inode)
            seal_memfd(opened.context.anchors["memfd", one.kind.device, one.kind.inode][0], one.kind)


def written_files(table: Table) -> list[OpenFile]:
    """The files open for writing that both hosts are to see, each once."""
    found: dict[tuple[int, int], OpenFile] = {}
    for one in table.descriptions:
        kind = one.kind
        if isinstance(kind, File) and kind.linked and is_writable(one.flags):
            found.setdefault((kind.device, kind.inode), one)
    return list(found.values())


def flush_written_files(table: Table, duplicates: dict[int, int]) -> None:
    """On the source: write what is still in memory of the files open for writing to their storage, so that
    the other host sees it. `duplicates` are those of the frozen look. Raises OSError.
    """
    for one in written_files(table):
        if one.identity in duplicates:
            os.fsync(duplicates[one.identity])


def flush_beforehand(pid: int, table: Table) -> None:
    """The same while process `pid` runs, so that little is left to be written when it is frozen."""
    for one in written_files(table):
        with contextlib.suppress(OSError):
            number = os.open(f"/proc/{pid}/fd/{one.number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)
