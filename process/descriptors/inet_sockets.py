"""Sockets of TCP, UDP, UDP-Lite and ICMP (ping), v4 and v6: unconnected, bound, listening, and connected UDP.

An established TCP connection cannot move. It is a blocker, or with --tcp close it ends for both sides: the peer gets a
clean FIN, and the process finds a connection that its peer has closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Container

import msgspec

from live_migration._lm import ffi, lib
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen, give_to
from live_migration.process.descriptors.socket_ends import end_connection, stop_listening
from live_migration.process.descriptors.socket_options import (
    changed_options,
    option_blockers,
    set_all_options,
    snapshot_options,
)
from live_migration.wire.blockers import Blocker

TCP_CLOSE, TCP_LISTEN = 7, 10
SUPPORTED = {
    (family, kind, protocol)
    for family in (socket.AF_INET, socket.AF_INET6)
    for kind, protocol in (
        (socket.SOCK_STREAM, socket.IPPROTO_TCP),
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE),
        (socket.SOCK_DGRAM, socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6),
    )
}


class InetSocket(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="inet"):
    """Such a socket. `state` is TCP's (enum of netinet/tcp.h), 7 for the others.

    `address` is what it is bound to, port 0 when it is not; `peer` what it is connected to. `waiting` are the
    connections that a listener has not accepted. `unsent` are bytes of a datagram that has not gone.
    """

    inode: int
    uid: int
    gid: int
    family: int
    type: int
    protocol: int
    state: int
    address: list[str | int]
    peer: list[str | int] | None
    backlog: int
    waiting: int
    unsent: int
    options: bytes

    @property
    def is_tcp(self) -> bool:
        """TCP, and no datagrams?"""
        return self.type == socket.SOCK_STREAM

    @property
    def is_established(self) -> bool:
        """Has it a connection that only this host can go on with? A half-closed one counts."""
        return self.is_tcp and self.state not in (TCP_CLOSE, TCP_LISTEN)


def is_supported(seen: Seen) -> bool:
    """Is it TCP, UDP, UDP-Lite or ICMP?"""
    if seen.flags & os.O_PATH:
        return False
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        return (one.family, one.type, one.proto) in SUPPORTED


def snapshot_inet(seen: Seen, context: SnapshotContext) -> InetSocket:
    """Describe such a socket from outside. Of a connection that an earlier snapshot has, nothing else changes."""
    before = context.before.get(seen.link)
    if not isinstance(before, InetSocket):
        before = None
    state = ffi.new("struct lm_tcp_state *", {"state": TCP_CLOSE})
    if before is None or before.is_tcp:
        result = lib.lm_tcp_state(seen.duplicate, state)
        if result < 0 and result not in (-errno.EOPNOTSUPP, -errno.ENOPROTOOPT):
            raise OSError(-result, os.strerror(-result), "TCP_INFO")
    listening = state.state == TCP_LISTEN
    established = state.state not in (TCP_CLOSE, TCP_LISTEN)
    if before is not None and before.state == state.state and established:
        return before
    queue = (state.backlog, state.waiting) if listening else (0, 0)
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        options = b"" if established else snapshot_options(one, seen, context)
        if before is not None and before.state == state.state and listening:
            return msgspec.structs.replace(before, backlog=queue[0], waiting=queue[1], options=options)
        peer: list[str | int] | None = None
        with contextlib.suppress(OSError):
            peer = with_interface(one, one.getpeername())
        return InetSocket(
            inode=seen.status.st_ino,
            uid=seen.status.st_uid,
            gid=seen.status.st_gid,
            family=one.family,
            type=one.type,
            protocol=one.proto,
            state=state.state,
            address=with_interface(one, one.getsockname()),
            peer=peer,
            backlog=queue[0],
            waiting=queue[1],
            unsent=max(0, lib.lm_unsent(one.fileno())) if seen.frozen and one.type == socket.SOCK_DGRAM else 0,
            options=options,
        )


def with_interface(one: socket.socket, address: tuple[str | int, ...]) -> list[str | int]:
    """An address of a socket as it travels: an interface by its name, for its number is this host's."""
    found = list(address)
    if len(found) == 4 and found[3]:
        name = ffi.new("char[16]")
        if lib.lm_interface_name(one.fileno(), found[3], name) == 0:
            found[3] = ffi.string(name).decode(errors="surrogateescape")
    return found


def here(address: list[str | int]) -> tuple[str | int, ...]:
    """The same on this host. Raises OSError when it has no such interface."""
    if len(address) == 4 and isinstance(address[3], str):
        return (*address[:3], socket.if_nametoindex(address[3]))
    return tuple(address)


def text(address: list[str | int]) -> str:
    """An address for messages."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_same(old: InetSocket, new: InetSocket) -> bool:
    """Is it one socket, bound and connected as before?"""
    return (old.inode, old.state, old.address, old.peer, old.backlog) == (
        new.inode,
        new.state,
        new.address,
        new.peer,
        new.backlog,
    )


def leads_outside(one: OpenFile[InetSocket], _: Container[str]) -> bool:
    """Has it a connection?"""
    return one.object.is_established


def inet_blockers(open_file: OpenFile[InetSocket], context: BlockerContext) -> list[Blocker]:
    """The blockers of such a socket."""
    one, name = open_file.object, open_file.name
    if one.is_established and context.options.tcp == "refuse":
        peer = text(one.peer) if one.peer else "a peer that has gone"
        return [
            Blocker(
                name,
                f"an established TCP connection from {text(one.address)} to {peer}",
                "let it end before the move, or give lm-restore --tcp close, which closes it",
            )
        ]
    return option_blockers(name, one.options) + unsent_blockers(open_file)


def unsent_blockers(open_file: OpenFile[InetSocket]) -> list[Blocker]:
    """What passes: a datagram that is half written (MSG_MORE, UDP_CORK), or that the network has not taken yet."""
    if not open_file.object.unsent:
        return []
    return [Blocker(open_file.name, "it has a datagram that has not been sent", "try again when it has been sent")]


def preflight_inet(open_file: OpenFile[InetSocket], context: PreflightContext) -> list[Blocker]:
    """Can it have its options on the destination, and be bound, if it has to be? This binds it for a moment."""
    one, name = open_file.object, open_file.name
    if one.is_established or (context.reach.source and context.reach.same_network and one.address[1]):
        return []
    try:
        with make_inet(one):
            return []
    except OSError as error:
        return [bind_blocker(one, name, error)]


def bind_blocker(one: InetSocket, name: str, error: OSError) -> Blocker:
    """Why its address cannot be bound."""
    where = text(one.address)
    if error.errno == errno.EADDRINUSE:
        return Blocker(name, f"port {one.address[1]} ({where}) is taken here", "end the process that has it")
    if error.errno == errno.EADDRNOTAVAIL:
        return Blocker(name, f"this host does not have the address of {where}", "give the address to an interface here")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Blocker(name, f"no permission to open {where} here", "run lm-restore as root")
    if error.errno == errno.ENODEV:
        return Blocker(
            name, f"this host lacks a network interface of it: {error.strerror}", "make one of that name here"
        )
    return Blocker(name, f"it cannot be opened here ({where}): {error.strerror}", "see ip(7) about this error")


def make_inet(one: InetSocket) -> socket.socket:
    """A socket with its options, bound where it was, neither listening nor connected. Raises OSError."""
    made = socket.socket(one.family, one.type, one.protocol)
    try:
        set_all_options(made.fileno(), one.options)
        give_to(made.fileno(), one.uid, one.gid)
        if one.address[1]:
            bind_inet(made, one)
    except BaseException:
        made.close()
        raise
    return made


def bind_inet(made: socket.socket, one: InetSocket) -> None:
    """Bind it. A connected UDP socket may have its address from the route, and another host does not have that one."""
    try:
        made.bind(here(one.address))
    except OSError as error:
        if one.is_tcp or one.peer is None or error.errno != errno.EADDRNOTAVAIL:
            raise
        made.bind(("", int(one.address[1])))


def open_inet(open_file: OpenFile[InetSocket], context: OpenContext) -> int:
    """A socket like it, listening or connected as it was; or the source's own, if that can be reached."""
    one = open_file.object
    if one.is_established:
        number: int = lib.lm_closed_tcp_socket(one.family)
        if number < 0:
            raise OSError(-number, os.strerror(-number), "making a closed connection")
        return number
    if one.address[1] and context.same_network:
        handed = context.fetch(open_file.number, one.inode)
        if handed is not None:
            context.handed_over.add(one.inode)
            return handed
    made = make_inet(one)
    try:
        if one.state == TCP_LISTEN:
            made.listen(one.backlog)
        elif not one.is_tcp and one.peer is not None:
            made.connect(here(one.peer))
    except BaseException:
        made.close()
        raise
    return made.detach()


def changed_inet(one: OpenFile[InetSocket], duplicate: int, context: SnapshotContext) -> list[Blocker]:
    """Whether its options are others than those of its description."""
    if one.object.is_established:
        return []
    return changed_options(one.name, one.object.options, duplicate, context)


def hold_inet(one: OpenFile[InetSocket]) -> Held | None:
    """The end of a connection, or of a listener."""
    if one.object.state == TCP_LISTEN:
        return Held(one.number, one.object.inode, commit=stop_listening(one.flags, one.object.waiting))
    return Held(one.number, one.object.inode, commit=end_connection()) if one.object.is_established else None


def update_inet(number: int, one: OpenFile[InetSocket], before: InetSocket, context: OpenContext) -> None:
    """The options that have changed, of what is not the source's own. Raises OSError."""
    if one.object.options != before.options and before.inode not in context.handed_over:
        set_all_options(number, one.object.options, before.options)


INET_SOCKET = Kind(
    object=InetSocket,
    file_types=(stat.S_IFSOCK,),
    recognise=is_supported,
    snapshot=snapshot_inet,
    same=is_same,
    holders=Holders.BY_OBJECT,
    leads_outside=leads_outside,
    blockers=inet_blockers,
    passing=unsent_blockers,
    changed=changed_inet,
    hold=hold_inet,
    preflight=preflight_inet,
    open=open_inet,
    update=update_inet,
)
