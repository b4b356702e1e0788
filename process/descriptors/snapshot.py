"""The source's snapshot of the descriptors of a process, live or frozen, from outside.

Live, every duplicate is closed at once: a duplicate of a socket or pipe that is kept for seconds would hide from its
peer that the process has closed it, and would keep entries in epoll instances (epoll(7), question 6). Frozen, they are
kept until the migration is over: files are flushed and contents read through them.
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from live_migration.kernel.kcmp import number_open_files
from live_migration.kernel.pidfd import open_pidfd
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.file_locks import held_locks, snapshot_locks
from live_migration.process.descriptors.kind import Holders, Kind, SnapshotContext
from live_migration.process.descriptors.open_file import (
    SET_AT_OPENING,
    OpenFile,
    Seen,
    close_all,
    owner_of,
)
from live_migration.process.descriptors.reach import Place
from live_migration.process.descriptors.registry import AnyObject, kind_of, recognise
from live_migration.process.descriptors.seen import see_each
from live_migration.process.descriptors.stdio import STANDARD
from live_migration.process.descriptors.table import Descriptor, DescriptorTable
from live_migration.process.numbering import Numbering
from live_migration.process.scope import DescriptorAt, HostScan, scope_of
from live_migration.wire.blockers import Blocker


@dataclass
class Snapshot:
    """A snapshot of the descriptors: the table, and for a frozen process a duplicate of each open file, by identity.

    `recent` is brought up to date by every later snapshot of the running process (`SnapshotContext.recent`). `order`
    is what the descriptors were numbered with, to tell which stand for one open file (kernel/kcmp.py). `shown` is what
    was read of those that say everything of themselves (`Kind.told`), by the lowest number of each.
    """

    table: DescriptorTable
    numbering: Numbering
    duplicates: dict[int, int] = field(default_factory=dict)
    recent: dict[str, bytes] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    shown: dict[int, tuple[object, ...]] = field(default_factory=dict)

    def close(self) -> None:
        """Close the duplicates."""
        close_all(self.duplicates.values())
        self.duplicates.clear()


def snapshot_descriptors(
    process: ProcessSnapshot,
    previous: Snapshot | None = None,
    *,
    frozen: bool = False,
    scan: HostScan | None = None,
    numbering: Numbering | None = None,
) -> Snapshot:
    """Describe all descriptors of a process.

    Open files that `previous` had already keep their identity; others get one of its `numbering`, or of this one. The
    `scan`, or a scan of its own, tells who else holds the same objects; it is not needed if the process is frozen and
    has nothing new. Raises OSError: the process has gone (ESRCH, ENOENT) or may not be read (EPERM, EACCES).
    """
    taken = see_and_describe(process, previous, frozen, numbering)
    if not frozen:
        taken.close()
    try:
        if not frozen or previous is None or is_anything_new(taken.table, previous.table):
            taken.table = with_outsiders(taken.table, scan or HostScan(scope_of(process.pid)), previous)
        taken.table = with_standard_apart(taken.table, previous.table if previous else None, taken.numbering)
    except BaseException:
        taken.close()
        raise
    return taken


def see_and_describe(
    process: ProcessSnapshot, previous: Snapshot | None, frozen: bool, numbering: Numbering | None = None
) -> Snapshot:
    """The snapshot of this process alone, with its duplicates. Raises OSError."""
    numbering = numbering or (previous.numbering if previous else Numbering())
    pidfd = open_pidfd(process.pid)
    seen: list[Seen] = []
    try:
        order = dict(previous.order) if previous else {}
        seen = see_open_files(process.pid, pidfd, frozen, order)
        place = previous.table.place if previous else snapshot_place(process)
        taken = describe(place, seen, previous, frozen, numbering)
        taken.order = order
        return taken
    except BaseException:
        close_all(each.duplicate for each in seen)
        raise
    finally:
        os.close(pidfd)


def see_open_files(pid: int, pidfd: int, frozen: bool, order: dict[int, int]) -> list[Seen]:
    """Every open file once, with all the numbers that stand for it; `order` is brought up to date.

    A descriptor that a live process closes meanwhile is left out.
    """
    each = see_each(pid, pidfd, frozen)
    try:
        groups: dict[tuple[str, int, int], list[Seen]] = {}
        for one in each:
            groups.setdefault((one.link, one.device, one.inode), []).append(one)
        return [one for group in groups.values() for one in merge_shared(group, order)]
    except BaseException:
        close_all(one.duplicate for one in each)
        raise


def merge_shared(group: list[Seen], order: dict[int, int]) -> list[Seen]:
    """One entry for each open file among descriptors of the same file, in the order of their numbers; they are told
    apart by kcmp(2). What `order` says of them makes that quick, and never wrong."""
    if len(group) == 1:
        return group
    as_before = sorted(group, key=lambda one: order.get(one.number, -1))
    places = number_open_files([one.duplicate for one in as_before])
    order.update((one.number, place) for place, one in zip(places, as_before, strict=True))
    merged: dict[int, Seen] = {}
    for one in group:
        place = order[one.number]
        first = merged.setdefault(place, one)
        if first is not one:
            close_all([one.duplicate])
            merged[place] = replace(
                first,
                numbers=(*first.numbers, *one.numbers),
                closed_at_exec=first.closed_at_exec | one.closed_at_exec,
            )
    return list(merged.values())


def describe(
    place: Place, seen: list[Seen], previous: Snapshot | None, frozen: bool, numbering: Numbering
) -> Snapshot:
    """The table of what was seen, identities carried over from the previous one."""
    known = {d.number: d.open_file for d in previous.table.descriptors} if previous else {}
    before = previous.table.by_identity() if previous else {}
    recent = previous.recent if previous else {}
    context = SnapshotContext(place.pid, objects_by_link(previous.table) if previous else {}, recent)
    descriptors: list[Descriptor] = []
    open_files: list[OpenFile[AnyObject]] = []
    duplicates: dict[int, int] = {}
    of_kind: dict[Kind[Any], list[Seen]] = {}
    shown: dict[int, tuple[object, ...]] = {}

    def add(one: Seen, described: OpenFile[AnyObject]) -> None:
        identity = described.identity
        duplicates[identity] = one.duplicate
        open_files.append(described)
        for number in one.numbers:
            closed = number in one.closed_at_exec
            descriptors.append(Descriptor(number=number, open_file=identity, close_on_exec=closed))

    try:
        for one in sorted(seen, key=lambda each: each.number):
            kind = recognise(one, context)
            of_kind.setdefault(kind, []).append(one)
            like = as_shown(one, previous, before.get(known.get(one.number, -1)))
            if like is not None and like.identity not in duplicates:
                shown[one.number] = one.shown
                add(one, like)
                continue
            if kind.told(one):
                shown[one.number] = one.shown
            described = kind.snapshot(one, context)
            old = None
            for number in one.numbers:
                candidate = before.get(known.get(number, -1))
                if (
                    candidate is not None
                    and candidate.identity not in duplicates
                    and is_same(candidate, one, described)
                ):
                    old = candidate
                    break
            identity = old.identity if old else numbering.open_file_of((place.pid, one.number), one.link)
            add(one, describe_one(one, described, identity, old))
    finally:
        context.close()
    table = DescriptorTable(
        place=place,
        descriptors=sorted(descriptors, key=lambda each: each.number),
        open_files=open_files,
        shared=[each for kind, those in of_kind.items() for each in kind.snapshot_shared(those)],
        frozen=frozen,
    )
    return Snapshot(table, numbering, duplicates, recent, shown=shown)


def as_shown(
    seen: Seen, previous: Snapshot | None, before: OpenFile[AnyObject] | None
) -> OpenFile[AnyObject] | None:
    """What is known of an open file of a kind of which everything shows, if it shows the same as before."""
    if previous is None or before is None or before.number != seen.number:
        return None
    # The thread that an owner is could be another one by now.
    has_owner = seen.owner is not None and seen.owner[1] != 0
    return None if has_owner or previous.shown.get(seen.number) != seen.shown else before


def changed_since(taken: Snapshot) -> list[Blocker]:
    """What has changed in a frozen process since the running one was read, of what its snapshot did not read again.
    Raises OSError."""
    context = SnapshotContext(taken.table.place.pid)
    those: dict[Kind[Any], list[tuple[OpenFile[AnyObject], int]]] = {}
    for one in taken.table.open_files:
        if one.standard is None:
            those.setdefault(kind_of(one.object), []).append((one, taken.duplicates[one.identity]))
    try:
        return [blocker for kind, alike in those.items() for blocker in kind.changed(alike, context)]
    finally:
        context.close()


def came_since(taken: Snapshot, handed_over: Container[int]) -> list[Blocker]:
    """What has come into a frozen process's open files since they were described, and would be lost. The destination
    has everything, and has taken over what it says. Raises OSError."""
    return [
        blocker
        for one in taken.table.open_files
        if one.standard is None
        for blocker in kind_of(one.object).came(one, taken.duplicates[one.identity], handed_over)
    ]


def objects_by_link(table: DescriptorTable) -> dict[str, AnyObject]:
    """What is known of the objects that their links name."""
    return {
        each.link: each.object
        for each in table.open_files
        if is_shared_object(each.link) and not each.flags & os.O_PATH
    }


def is_same(old: OpenFile[AnyObject], seen: Seen, described: AnyObject) -> bool:
    """Is the open file the one that was described earlier, or so like it that an update is enough?
    """
    if old.link != seen.link or (old.flags ^ seen.flags) & SET_AT_OPENING:
        return False
    if type(old.object) is not type(described) or not kind_of(described).same(old.object, described):
        return False
    # An open file that holds a lock may be handed over itself, so the lock belongs to its identity.
    return held_locks(old.locks) == held_locks(snapshot_locks(seen))


def describe_one(
    seen: Seen, described: AnyObject, identity: int, old: OpenFile[AnyObject] | None
) -> OpenFile[AnyObject]:
    """Describe one open file."""
    return OpenFile(
        identity=identity,
        number=seen.number,
        link=seen.link,
        flags=seen.flags,
        offset=seen.offset,
        object=described,
        owner=owner_of(seen),
        holders=old.holders if old else [],
        peer_holders=old.peer_holders if old else [],
        standard=old.standard if old else None,
        locks=snapshot_locks(seen),
    )


def snapshot_place(process: ProcessSnapshot) -> Place:
    """Where a process runs."""
    return Place(
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        pid=process.pid,
        start_time=int(process.stat[21]),
        pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
        network_namespace=os.stat(f"/proc/{process.pid}/ns/net").st_ino,
    )


def is_anything_new(table: DescriptorTable, previous: DescriptorTable) -> bool:
    """Has the process open files that the previous table did not have?"""
    return not table.by_identity().keys() <= previous.by_identity().keys()


def is_shared_object(link: str) -> bool:
    """Does the link name the object itself, so that equal links mean the same pipe or socket?"""
    return link.startswith(("pipe:[", "socket:["))


def with_outsiders(table: DescriptorTable, scan: HostScan, previous: Snapshot | None) -> DescriptorTable:
    """The table with the processes that stay and hold the same objects, and with what is replaced at 0 to 2."""
    pid, objects = table.place.pid, set[str]()
    by_link: dict[str, list[DescriptorAt]] = {}
    for one in table.open_files:
        kind = kind_of(one.object)
        if kind.holders is Holders.BY_OBJECT:
            objects.update(links_of_object(one))
        elif kind.holders is Holders.BY_OPEN_FILE:
            by_link.setdefault(one.link, []).append((pid, one.number))
    by_object, by_descriptor = scan.holders(objects, by_link)
    staged = previous.table.open_files if previous and table.frozen else []
    known = {one.identity: one for one in staged}
    same_object = {one.link: one for one in staged if kind_of(one.object).holders is Holders.BY_OBJECT}
    open_files = []
    for one in table.open_files:
        # A destination on this machine may hold what it was given while staging, or has opened by its path.
        before = known.get(one.identity) or same_object.get(one.link)
        if before is not None:
            one = replace(one, holders=before.holders, peer_holders=before.peer_holders)
        else:
            holders = by_object.get(one.link, []) + by_descriptor.get((pid, one.number), [])
            peer_holders = by_object.get(kind_of(one.object).other_end(one.object), [])
            one = replace(one, holders=holders, peer_holders=peer_holders)
        open_files.append(one)
    return replace(table, open_files=with_standard(table, open_files))


def links_of_object(one: OpenFile[AnyObject]) -> list[str]:
    """What /proc/PID/fd says of an object and of its other end, if it has one."""
    other_end = kind_of(one.object).other_end(one.object)
    return [one.link, other_end] if other_end else [one.link]


def with_standard(table: DescriptorTable, open_files: list[OpenFile[AnyObject]]) -> list[OpenFile[AnyObject]]:
    """Mark what leads outside with the standard descriptor of the same object, if there is one."""
    links = table.own_links()
    outside = {each.identity: each for each in open_files if kind_of(each.object).leads_outside(each, links)}
    own: dict[int, int] = {}
    by_object: dict[str, int] = {}
    for descriptor in reversed(table.descriptors):
        found = outside.get(descriptor.open_file)
        if found is not None and descriptor.number in STANDARD:
            own[found.identity] = descriptor.number
            by_object[object_name(found)] = descriptor.number
    return [
        replace(each, standard=own.get(each.identity, by_object.get(object_name(each))))
        if each.identity in outside
        else replace(each, standard=None)
        for each in open_files
    ]


def with_standard_apart(
    table: DescriptorTable, previous: DescriptorTable | None, numbering: Numbering
) -> DescriptorTable:
    """Give each of 0 to 2 an open file of its own if one that leads outside stands for several of them.

    A terminal is usually one open file at all three, but lm-restore's of the same number replaces each, and these may
    be three different things.
    """
    known = {each.number: each.open_file for each in previous.descriptors} if previous else {}
    by_identity = table.by_identity()
    descriptors, added = [], list[OpenFile[AnyObject]]()
    for each in table.descriptors:
        one = by_identity[each.open_file]
        if one.standard is None or each.number not in STANDARD or each.number == one.standard:
            descriptors.append(each)
            continue
        identity = known.get(each.number, each.open_file)
        if identity in by_identity:
            identity = numbering.new_open_file()
        added.append(replace(one, identity=identity, number=each.number, standard=each.number))
        descriptors.append(replace(each, open_file=identity))
    return replace(table, descriptors=descriptors, open_files=[*table.open_files, *added]) if added else table


def object_name(description: OpenFile[AnyObject]) -> str:
    """What tells which open files are of the same object, as far as their replacement goes."""
    kind = kind_of(description.object)
    return kind.object.__name__ if kind.alike else description.link
