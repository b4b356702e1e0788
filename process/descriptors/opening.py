"""The destination's side of descriptors: opening them in the worker, and bringing them up to date after the freeze.

Slow work is done while the source still runs. The worker opens descriptors from the staged table. From the final one it
takes only offsets, flags, counters and the content of pipes, and what has come or gone since.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from live_migration.process.descriptors.kind import Kind
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, close_all, set_flags
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import is_same_machine, is_same_network, source_in_reach
from live_migration.process.descriptors.registry import AnyObject, kind_of
from live_migration.process.descriptors.stdio import open_standard
from live_migration.process.descriptors.table import Descriptor, DescriptorTable


@dataclass
class OpenedDescriptors:
    """Descriptors of this process, by the identity of the open file, that stand for the moved process's.

    Close them (`close`) once the husk has them: a pipe whose ends are kept here never ends.
    """

    context: OpenContext
    numbers: dict[int, int] = field(default_factory=dict)
    known: dict[int, AnyObject] = field(default_factory=dict)

    def part_of(self, table: DescriptorTable) -> DescriptorTable:
        """The table without what could not be opened while staging, because it was removed meanwhile."""
        return replace(
            table,
            descriptors=[each for each in table.descriptors if each.open_file in self.numbers],
            open_files=[each for each in table.open_files if each.identity in self.numbers],
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


def descriptor_changes(staged: DescriptorTable | None, final: DescriptorTable) -> DescriptorChanges:
    """How the numbers of `final` differ from those of `staged`; without a staged table all are to be installed.
    """
    before = {d.number: d for d in staged.descriptors} if staged else {}
    after = {d.number: d for d in final.descriptors}
    install = [d for d in after.values() if d.number not in before or before[d.number].open_file != d.open_file]
    return DescriptorChanges(
        close=sorted(before.keys() - after.keys()),
        install=install,
        close_on_exec=[
            d
            for d in after.values()
            if d.number in before
            and before[d.number].open_file == d.open_file
            and before[d.number].close_on_exec != d.close_on_exec
        ],
    )


def open_descriptors(
    table: DescriptorTable,
    options: DescriptorOptions,
    *,
    source_access: bool = True,
    process: int = 0,
    standard: tuple[int, int, int] = (0, 1, 2),
) -> OpenedDescriptors:
    """Open everything in `table`, here.

    With `source_access`, what cannot exist twice on one machine (bound sockets) is the source's own, if that can be
    reached. `process` is the husk's id here. `standard` are lm-restore's own descriptors. Raises OSError, naming the
    descriptor.
    """
    context = OpenContext(
        options=options,
        standard=standard,
        source_pidfd=source_in_reach(table.place) if source_access else None,
        same_network=is_same_network(table.place),
        same_machine=is_same_machine(table.place),
        process=process,
        root=root_of(process),
    )
    opened = OpenedDescriptors(context)
    try:
        open_missing(opened, table)
    except BaseException:
        opened.undo()
        raise
    return opened


def root_of(process: int) -> str:
    """Where the root directory of a husk's mounts is found, "" if it has those of this process."""
    with contextlib.suppress(OSError):
        if process and os.readlink(f"/proc/{process}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return f"/proc/{process}/root"
    return ""


def open_missing(opened: OpenedDescriptors, table: DescriptorTable) -> None:
    """Open the files of `table` that are not open yet; those that connect to others of the process come last.
    """
    opened.context.shared = table.shared_by_inode()
    for one in sorted(table.open_files, key=lambda each: kind_of(each.object).connects(each.object)):
        if one.identity in opened.numbers:
            continue
        try:
            opened.numbers[one.identity] = open_one(one, opened.context)
        except OSError as error:
            if error.errno == errno.ENOENT and kind_of(one.object).may_vanish and not table.frozen:
                # The process has removed a temporary file since: the frozen snapshot tells what is there then.
                continue
            raise OSError(error.errno, f"{one.name}: {error.strerror}") from error
        opened.known[one.identity] = one.object


def open_one(one: OpenFile[AnyObject], context: OpenContext) -> int:
    """Open one file; the descriptor is this process's and close-on-exec."""
    if one.standard is not None:
        return open_standard(one.standard, one.flags, context)
    return kind_of(one.object).open(one, context)


def update_descriptors(opened: OpenedDescriptors, final: DescriptorTable) -> None:
    """Bring the open files to the state that the frozen source has.

    Counters, queues and the content of pipes are written once: call it once, with the final table. Memfds get their
    seals from `seal_descriptors`, later. Raises OSError, naming the descriptor.
    """
    by_identity = final.by_identity()
    for identity in opened.numbers.keys() - by_identity.keys():
        close_all([opened.numbers.pop(identity)])
    open_missing(opened, final)
    own = [one for one in final.open_files if one.standard is None]
    for kind, all_of_it in by_kind(own).items():
        kind.fill(all_of_it, opened.context)
    for one in own:
        try:
            update_one(opened, one)
        except OSError as error:
            raise OSError(error.errno, f"{one.name}: {error.strerror}") from error


def update_one(opened: OpenedDescriptors, one: OpenFile[AnyObject]) -> None:
    """Bring one open file up to date."""
    if one.flags & os.O_PATH:
        return
    number, before = opened.numbers[one.identity], opened.known[one.identity]
    kind_of(one.object).update(number, one, before, opened.context)
    opened.known[one.identity] = one.object
    set_flags(number, one.flags)


def seal_descriptors(opened: OpenedDescriptors, final: DescriptorTable) -> None:
    """Take the last step, when contents are in place and everything is mapped. Raises OSError."""
    for kind, all_of_it in by_kind(one for one in final.open_files if one.standard is None).items():
        kind.seal(all_of_it, opened.context)


def by_kind(open_files: Iterable[OpenFile[AnyObject]]) -> dict[Kind[Any], list[OpenFile[AnyObject]]]:
    """The open_files of each kind."""
    found: dict[Kind[Any], list[OpenFile[AnyObject]]] = {}
    for one in open_files:
        found.setdefault(kind_of(one.object), []).append(one)
    return found
