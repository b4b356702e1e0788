"""What cannot be moved, in the words of its blocker."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat

import msgspec

from live_migration._lm import lib
from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker

MESSAGE_QUEUE = (
    "a POSIX message queue, which its host keeps with its messages",
    "let the process receive what waits in it and close it (mq_close(3)) before the move",
)
CLOSE_BEFORE = "let the process close it before the move"
IO_URING = "anon_inode:[io_uring]"
# What cannot be moved, in words, by what /proc/PID/fd says of it.
BY_LINK = {
    IO_URING: "an io_uring instance, whose queues the kernel shares with the process",
    "anon_inode:[userfaultfd]": "a userfaultfd of the process's own, which the migration would need itself",
    "anon_inode:[perf_event]": "a performance counter of this machine",
    "anon_inode:[fanotify]": "a fanotify group, which belongs to this machine's file systems",
    "anon_inode:bpf-map": "a BPF map in this machine's kernel",
    "anon_inode:bpf-prog": "a BPF program in this machine's kernel",
    "anon_inode:bpf_link": "a BPF link in this machine's kernel",
    "anon_inode:seccomp notify": "a seccomp listener, which belongs to filters of other processes",
    "/secretmem (deleted)": "secret memory, which nobody else can read",
}
NAMESPACE = re.compile(r"^(\w+):\[\d+\]$")


class Unmovable(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="unmovable"):
    """An object that cannot be moved, with the words for its blocker."""

    cause: str
    remedy: str


def by_link(link: str) -> Unmovable | None:
    """What cannot be moved and says so in its link."""
    if link == IO_URING:
        return Unmovable(
            cause=BY_LINK[link], remedy=f"{CLOSE_BEFORE} (a program on libuv: start it with UV_USE_IO_URING=0)"
        )
    if link in BY_LINK:
        return Unmovable(cause=BY_LINK[link], remedy=CLOSE_BEFORE)
    namespace = NAMESPACE.match(link)
    if namespace:
        return Unmovable(cause=f"a {namespace[1]} namespace of this machine", remedy=CLOSE_BEFORE)
    if link.startswith("anon_inode:"):
        what = link.removeprefix("anon_inode:").strip("[]")
        return Unmovable(cause=f"a kernel object of kind {what}, which cannot be moved", remedy=CLOSE_BEFORE)
    return None


def snapshot_unmovable(seen: Seen, _: SnapshotContext) -> Unmovable:
    """Say what it is."""
    mode = seen.status.st_mode
    if stat.S_ISSOCK(mode) and not seen.flags & os.O_PATH:
        return snapshot_socket(seen)
    named = by_link(seen.link)
    if named is not None:
        return named
    if is_message_queue(seen):
        return Unmovable(cause=MESSAGE_QUEUE[0], remedy=MESSAGE_QUEUE[1])
    what = "a block device of this machine" if stat.S_ISBLK(mode) else "an object of a kind that cannot be moved"
    return Unmovable(cause=what, remedy=CLOSE_BEFORE)


def snapshot_socket(seen: Seen) -> Unmovable:
    """Say what kind of socket it is."""
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        family = getattr(one.family, "name", f"address family {one.family}")
        return Unmovable(cause=f"a socket of {family}, type {int(one.type)}, protocol {one.proto}", remedy=CLOSE_BEFORE)


def unmovable_blockers(one: OpenFile[Unmovable], _: BlockerContext) -> list[Blocker]:
    """The blocker that says what it is."""
    return [Blocker(one.name, one.object.cause, one.object.remedy)]


def open_unmovable(_: OpenFile[Unmovable], __: OpenContext) -> int:
    """Raises OSError."""
    raise OSError(errno.EINVAL, "it cannot be moved")


def is_message_queue(seen: Seen) -> bool:
    """Is it a message queue (mq_overview(7))? It looks like a regular file, whose content is another thing."""
    return stat.S_ISREG(seen.status.st_mode) and bool(lib.lm_is_message_queue(seen.duplicate) == 1)


def names_itself(seen: Seen) -> bool:
    """Does its link, or its file system, say that it cannot be moved?"""
    if stat.S_ISSOCK(seen.status.st_mode):
        return False
    return by_link(seen.link) is not None or is_message_queue(seen)


UNMOVABLE = Kind(
    object=Unmovable,
    recognise=names_itself,
    snapshot=snapshot_unmovable,
    holders=Holders.BY_ANYBODY,
    blockers=unmovable_blockers,
    open=open_unmovable,
)
