"""Sockets of netlink(7) for routes, for questions about sockets (sock_diag(7)) and for the kernel's events (udev).

The kernel keeps a number (port) for each, the groups that it listens to, and options. Other protocols of netlink keep
more, which nothing tells, or numbers of this kernel's.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence

import msgspec

from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen, give_to
from live_migration.process.descriptors.socket_options import (
    Described,
    changed_options,
    option_blockers,
    set_all_options,
    snapshot_options,
)
from live_migration.wire.blockers import Blocker

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_KOBJECT_UEVENT = 0, 4, 15
SUPPORTED = (NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_KOBJECT_UEVENT)
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_LIST_MEMBERSHIPS = 270, 1, 9  # linux/netlink.h
MOST_GROUPS = 1024


class NetlinkSocket(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="netlink"):
    """Such a socket. `port` is its number, 0 while it has none; `groups` are the numbers of the groups that it listens
    to; `peer` the port and group (a mask) that it is connected with; `waits`: a message has not been received yet.
    """

    inode: int
    uid: int
    gid: int
    type: int
    protocol: int
    port: int
    groups: list[int]
    peer: tuple[int, int]
    options: bytes
    waits: bool


def is_netlink(seen: Seen) -> bool:
    """Is it of one of these protocols?"""
    if seen.flags & os.O_PATH:
        return False
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        return one.family == socket.AF_NETLINK and one.proto in SUPPORTED


def snapshot_netlink(seen: Seen, context: SnapshotContext) -> NetlinkSocket:
    """Describe such a socket from outside."""
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        port, _ = one.getsockname()
        poll = select.poll()
        poll.register(one, select.POLLIN)
        return NetlinkSocket(
            inode=seen.status.st_ino,
            uid=seen.status.st_uid,
            gid=seen.status.st_gid,
            type=one.type,
            protocol=one.proto,
            port=port,
            groups=groups_of(one),
            peer=one.getpeername(),
            options=snapshot_options(one, seen, context),
            waits=bool(poll.poll(0)),
        )


def groups_of(one: socket.socket) -> list[int]:
    """The groups that it listens to; bit 0 of the kernel's words is group 1. Raises OSError."""
    words = one.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, MOST_GROUPS // 8)
    found = []
    for at, (word,) in enumerate(struct.iter_unpack("=I", words)):
        found += [at * 32 + bit + 1 for bit in range(32) if word >> bit & 1]
    return found


def is_same(old: NetlinkSocket, new: NetlinkSocket) -> bool:
    """Is it one socket, with the same port, groups and peer?"""
    return (old.inode, old.port, old.groups, old.peer) == (new.inode, new.port, new.groups, new.peer)


def netlink_blockers(one: OpenFile[NetlinkSocket], _: BlockerContext) -> list[Blocker]:
    """The blockers of such a socket."""
    return option_blockers(one.name, one.object.options) + waiting_blockers(one)


def waiting_blockers(one: OpenFile[NetlinkSocket]) -> list[Blocker]:
    """What passes: a message of the kernel's that waits in it, which no other kernel can put there. The rest of a long
    answer has its next message there until it is over (netlink_dump in the kernel's net/netlink/af_netlink.c); an error
    that waits (ENOBUFS) counts too.
    """
    if not one.object.waits:
        return []
    return [Blocker(one.name, "a message of the kernel's waits in it", "try again when it has been received")]


def preflight_netlink(one: OpenFile[NetlinkSocket], context: PreflightContext) -> list[Blocker]:
    """Can it be made here, with its port?"""
    if context.reach.source and context.reach.same_network:
        return []
    try:
        make_netlink(one.object).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            cause = f"port {one.object.port} of netlink protocol {one.object.protocol} is taken here"
            return [Blocker(one.name, cause, "end the process that has it, or let the process close the socket")]
        cause = f"it cannot be opened here: {error.strerror}"
        return [Blocker(one.name, cause, "run lm-restore as root; see netlink(7) about this error")]
    return []


def make_netlink(one: NetlinkSocket) -> socket.socket:
    """A socket like it. Raises OSError."""
    made = socket.socket(socket.AF_NETLINK, one.type, one.protocol)
    try:
        # A filter is there before the first message of a group.
        set_all_options(made.fileno(), one.options)
        give_to(made.fileno(), one.uid, one.gid)
        if one.port:
            made.bind((one.port, 0))
        for group in one.groups:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        if one.peer != (0, 0):
            made.connect(one.peer)
    except BaseException:
        made.close()
        raise
    return made


def open_netlink_socket(one: OpenFile[NetlinkSocket], context: OpenContext) -> int:
    """A socket like it; or the source's own, if that can be reached, since a network namespace has each port once."""
    if context.same_network:
        handed = context.fetch(one.number, one.object.inode)
        if handed is not None:
            context.handed_over.add(one.object.inode)
            return handed
    return make_netlink(one.object).detach()


def changed_netlink(those: Sequence[tuple[OpenFile[NetlinkSocket], int]], context: SnapshotContext) -> list[Blocker]:
    """Those whose options are others than those of their description."""
    return changed_options((Described(one.name, number, one.object.options) for one, number in those), context)


def update_netlink(number: int, one: OpenFile[NetlinkSocket], before: NetlinkSocket, context: OpenContext) -> None:
    """The options that have changed, of what is not the source's own. Raises OSError."""
    if before.inode not in context.handed_over and one.object.options != before.options:
        set_all_options(number, one.object.options, before.options)


NETLINK_SOCKET = Kind(
    object=NetlinkSocket,
    file_types=(stat.S_IFSOCK,),
    recognise=is_netlink,
    snapshot=snapshot_netlink,
    same=is_same,
    holders=Holders.BY_OBJECT,
    blockers=netlink_blockers,
    passing=waiting_blockers,
    changed=changed_netlink,
    preflight=preflight_netlink,
    open=open_netlink_socket,
    update=update_netlink,
)
