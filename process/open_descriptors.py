"""The destination's side of descriptors: opening them in the worker, and bringing them up to date after the
freeze.

What is slow happens while the source still runs. Its descriptors are opened from the staged table; from the
final one only offsets, flags, counters and the content of pipes are taken, and what is new or gone since.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from linux.pidfd import open_pidfd
from process.descriptor_options import DescriptorOptions
from process.descriptor_table import Description, Descriptor, Place, Refused, Table
from process.files import Device, Directory, File, is_writable, open_file, open_path
from process.open_files import OpenContext, close_all, set_flags
from process.pipes import Pipe, fill_pipe, open_pipe
from process.stdio import Terminal, open_standard


@dataclass
class OpenedDescriptors:
    """Descriptors of this process, by the identity of the description, that stand for the moved process's.

    Close them (`close`) once the husk has them: a pipe whose ends are kept here never ends.
    """

    context: OpenContext
    numbers: dict[int, int] = field(default_factory=dict)

    @property
    def content_wanted(self) -> dict[tuple[int, int], int]:
        """Files whose content has to be written: device and inode on the source, and a descriptor here."""
        return self.context.content_wanted

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
    install = [
        d for d in after.values() if d.number not in before or before[d.number].description != d.description
    ]
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


def source_in_reach(place: Place) -> int | None:
    """A descriptor for the source process if it lives on this machine, in this PID namespace; else None."""
    if not is_same_machine(place) or place.pid_namespace != os.stat("/proc/self/ns/pid").st_ino:
        return None
    try:
        pidfd = open_pidfd(place.pid)
    except OSError:
        return None
    try:
        after_name = Path(f"/proc/{place.pid}/stat").read_text().rpartition(")")[2].split()
        if int(after_name[19]) == place.start_time:
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def is_same_machine(place: Place) -> bool:
    """Does the source run on this machine? The boot id is made anew at every boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() == place.boot


def is_same_network(place: Place) -> bool:
    """Does the source live in this process's network namespace?"""
    return is_same_machine(place) and place.network_namespace == os.stat("/proc/self/ns/net").st_ino


def open_descriptors(
    table: Table,
    options: DescriptorOptions,
    *,
    source_access: bool = True,
    standard: tuple[int, int, int] = (0, 1, 2),
) -> OpenedDescriptors:
    """Open everything in `table`, here.

    With `source_access`, what cannot exist twice on one machine (bound sockets, unlinked files) is the
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
        opened.close()
        raise
    return opened


def open_missing(opened: OpenedDescriptors, table: Table) -> None:
    """Open the descriptions of `table` that are not open yet."""
    for one in table.descriptions:
        if one.identity in opened.numbers:
            continue
        try:
            opened.numbers[one.identity] = open_one(one, table, opened.context)
        except OSError as error:
            raise OSError(error.errno, f"{one.name}: {error.strerror}") from error


def open_one(one: Description, table: Table, context: OpenContext) -> int:
    """Open one description; the descriptor is this process's and close-on-exec."""
    kind = one.kind
    if one.standard is not None:
        return open_standard(one.standard, one.flags, context)
    if isinstance(kind, File):
        return open_file(kind, one.flags, context, one.number)
    if isinstance(kind, Directory | Device):
        return open_path(kind.path, one.flags, context)
    if isinstance(kind, Pipe):
        return open_pipe(kind, one.flags, table.pipe_bodies()[kind.pipe], context)
    assert isinstance(kind, Terminal | Refused)
    raise OSError(22, "it cannot be moved")


def update_descriptors(opened: OpenedDescriptors, final: Table) -> None:
    """Bring what is open to the state that the frozen source has: what is new, gone, moved on.

    Content of pipes is written once: call it once, with the final table. Raises OSError, naming the
    descriptor.
    """
    by_identity = final.by_identity()
    for identity in opened.numbers.keys() - by_identity.keys():
        close_all([opened.numbers.pop(identity)])
    open_missing(opened, final)
    for one in final.descriptions:
        if one.standard is None:
            try:
                update_one(opened.numbers[one.identity], one)
            except OSError as error:
                raise OSError(error.errno, f"{one.name}: {error.strerror}") from error
    packets = {
        one.kind.pipe for one in final.descriptions if isinstance(one.kind, Pipe) and one.flags & os.O_DIRECT
    }
    replaced = {
        one.kind.pipe for one in final.descriptions if isinstance(one.kind, Pipe) and one.standard is not None
    }
    for body in final.pipes:
        if body.content and body.pipe not in replaced:
            fill_pipe(body, body.pipe in packets or len(body.content) > 1, opened.context)


def update_one(number: int, one: Description) -> None:
    """Bring one open description up to date."""
    if one.flags & os.O_PATH:
        return
    if isinstance(one.kind, File | Directory) and os.lseek(number, 0, os.SEEK_CUR) != one.offset:
        os.lseek(number, one.offset, os.SEEK_SET)
    set_flags(number, one.flags)


def flush_written_files(table: Table, duplicates: dict[int, int]) -> None:
    """On the source: write what is still in memory of the files open for writing to their storage, so that
    the other host sees it. `duplicates` are those of the frozen look. Raises OSError.
    """
    flushed: set[tuple[int, int]] = set()
    for one in table.descriptions:
        kind = one.kind
        if not isinstance(kind, File) or not kind.linked or not is_writable(one.flags):
            continue
        if one.identity in duplicates and (kind.device, kind.inode) not in flushed:
            os.fsync(duplicates[one.identity])
            flushed.add((kind.device, kind.inode))
