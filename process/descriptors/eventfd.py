"""eventfd(2): a counter. /proc/PID/fdinfo tells its value, and from Linux 6.5 on whether it is a semaphore."""

from __future__ import annotations

import os

import msgspec

from live_migration.process.descriptors.kind import Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen


class EventFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="eventfd"):
    """An eventfd and its counter. `identity` is the kernel's number of it, for telling it from others."""

    identity: int
    count: int
    semaphore: bool


def snapshot_eventfd(seen: Seen, _: SnapshotContext) -> EventFd:
    """Describe an eventfd from outside."""
    return EventFd(
        identity=int(seen.field("eventfd-id")) if seen.has_field("eventfd-id") else -1,
        count=int(seen.field("eventfd-count"), 16),
        semaphore=is_semaphore(seen),
    )


def is_told(seen: Seen) -> bool:
    """Does /proc/PID/fdinfo tell all of it, since Linux 6.5?"""
    return seen.has_field("eventfd-semaphore")


def is_semaphore(seen: Seen) -> bool:
    """Does a read take one from the counter, instead of all of it?

    A kernel before 6.5 does not tell. There, two is added to the counter of a frozen process's eventfd, which is then
    read: that changes nothing in the end, and nobody else reads it.
    """
    if seen.has_field("eventfd-semaphore"):
        return seen.field("eventfd-semaphore") != "0"
    count = int(seen.field("eventfd-count"), 16)
    if not seen.frozen or count > 1 << 62:
        return False
    os.eventfd_write(seen.duplicate, 2)
    taken = os.eventfd_read(seen.duplicate)
    if taken == count + 2:
        if count:
            os.eventfd_write(seen.duplicate, count)
        return False
    os.eventfd_read(seen.duplicate)
    return True


def is_same(old: EventFd, new: EventFd) -> bool:
    """Is it one eventfd? Not every kernel has a number for it."""
    return (old.identity, old.semaphore) == (new.identity, new.semaphore)


def open_eventfd(one: OpenFile[EventFd], _: OpenContext) -> int:
    """An eventfd with the counter at 0."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | (os.EFD_SEMAPHORE if one.object.semaphore else 0))


def update_eventfd(number: int, one: OpenFile[EventFd], _: EventFd, __: OpenContext) -> None:
    """Give the counter its value; `number` is at 0."""
    if one.object.count:
        os.eventfd_write(number, one.object.count)


EVENTFD = Kind(
    object=EventFd,
    links=("anon_inode:[eventfd]",),
    snapshot=snapshot_eventfd,
    told=is_told,
    same=is_same,
    open=open_eventfd,
    update=update_eventfd,
)
