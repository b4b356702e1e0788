"""Sockets of TCP, UDP, UDP-Lite and ICMP (ping), v4 and v6: unconnected, bound, listening, and connected.

An established TCP connection moves with the process where its address can follow (--tcp keep): the destination has it
already, or takes it. In one network namespace the open file itself is handed over. With --tcp close it ends for both
sides: the peer gets a clean FIN, and the process finds a connection that its peer has closed.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Container, Iterator, Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.addresses import host_addresses, plain
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen, give_to
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.socket_ends import end_connection, stop_listening
from live_migration.process.descriptors.socket_options import (
    Described,
    changed_in_repair,
    changed_options,
    made_with,
    option_blockers,
    set_all_options,
    snapshot_options,
)
from live_migration.process.descriptors.tcp_connection import (
    KEPT,
    TcpConnection,
    begins,
    begins_at_once,
    check,
    how_shut,
    repaired_options,
    restore_connection,
    sends,
)
from live_migration.wire.blockers import Blocker

TCP_CLOSE, TCP_LISTEN = 7, 10
SO_ZEROCOPY = 60
ALONE = "let it end before the move"
IP_TRANSPARENT = 19
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
    connections that a listener has not accepted. `unsent` are bytes of a datagram that has not gone. `peer_here`: the
    peer's address is one of the source's own. `connection` is that of a frozen process which moves with it. `ended`: it
    has no connection any more, and had one (LM_TCP_HAS_... of socket_calls.h).
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
    peer_here: bool = False
    connection: TcpConnection | None = None
    ended: int = 0

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
    """Describe such a socket from outside."""
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
    queue = (state.backlog, state.waiting) if listening else (0, 0)
    known = context.recent.get(seen.link) if seen.frozen else None
    if before is not None and known is not None and before.is_established and established:
        return msgspec.structs.replace(before, state=state.state, options=known)
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        options = snapshot_options(one, seen, context)
        if before is not None and before.state == state.state and listening:
            return msgspec.structs.replace(before, backlog=queue[0], waiting=queue[1], options=options)
        if before is not None and before.is_established and established:
            return msgspec.structs.replace(before, state=state.state, options=options)
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
            peer_here=established and peer is not None and plain(str(peer[0])) in own_addresses(context),
            ended=state.ended,
        )


def own_addresses(context: SnapshotContext) -> frozenset[str]:
    """The addresses of the source's host, in the process's network namespace."""
    found: frozenset[str] = context.once(
        "addresses", lambda pid: frozenset(one.address for one in host_addresses(pid))
    )
    return found


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
    """Is it one socket, bound and connected as before? A connection may have got further."""
    return (old.inode, old.address, old.peer, old.backlog) == (new.inode, new.address, new.peer, new.backlog) and (
        (old.state == new.state and bool(old.ended) == bool(new.ended)) or (old.is_established and new.is_established)
    )


def inet_blockers(open_file: OpenFile[InetSocket], context: BlockerContext) -> list[Blocker]:
    """The blockers of such a socket."""
    one, name = open_file.object, open_file.name
    if one.is_established and context.options.tcp == "refuse":
        remedy = "let it end before the move, or give lm-restore --tcp keep, with its address, or --tcp close"
        return [Blocker(name, connection_text(one), remedy)]
    if one.ended or (one.is_established and context.options.tcp == "close"):
        return []
    return option_blockers(name, one.options) + unsent_blockers(open_file)


def connection_text(one: InetSocket) -> str:
    """A connection, for messages."""
    peer = text(one.peer) if one.peer else "a peer that has gone"
    return f"an established TCP connection from {text(one.address)} to {peer}"


def follow_blockers(open_file: OpenFile[InetSocket], options: DescriptorOptions) -> list[Blocker]:
    """Why a connection cannot follow the process to this host, which is another one or another network namespace."""
    one, name = open_file.object, open_file.name
    own, peer = plain(str(one.address[0])), plain(str(one.peer[0])) if one.peer else ""
    here = frozenset(each.address for each in host_addresses())
    instead = "or give lm-restore --tcp close, which closes it"

    def blocked(cause: str, remedy: str) -> list[Blocker]:
        return [Blocker(name, f"{connection_text(one)}: {cause}", f"{remedy}, {instead}")]

    if not peer or one.state not in KEPT:
        return blocked("it is being made, or has ended just now", "try again")
    if made_with(one.options, socket.SOL_SOCKET, SO_ZEROCOPY):
        return blocked("it sends without copying (SO_ZEROCOPY), and is told by numbers what has gone", ALONE)
    if one.peer_here:
        return blocked("its peer is on the source's host and stays there", ALONE)
    if ipaddress.ip_address(own).is_link_local or ipaddress.ip_address(peer).is_link_local:
        return blocked("its addresses are of one link (link-local)", ALONE)
    if own not in here and own not in options.take_addresses:
        return blocked(
            "this host does not have its address", f"give lm-restore --take-address {own}/LENGTH@INTERFACE"
        )
    if peer in here:
        return blocked("its peer is on this host", ALONE)
    return []


def unsent_blockers(open_file: OpenFile[InetSocket]) -> list[Blocker]:
    """What passes: a datagram that is half written (MSG_MORE, UDP_CORK), or that the network has not taken yet."""
    if not open_file.object.unsent:
        return []
    return [Blocker(open_file.name, "it has a datagram that has not been sent", "try again when it has been sent")]


def preflight_inet(open_file: OpenFile[InetSocket], context: PreflightContext) -> list[Blocker]:
    """Can it have its options on the destination, and be bound, if it has to be? This binds it for a moment, and
    connects it in repair, which sends nothing."""
    one, name, options = open_file.object, open_file.name, context.options
    if one.ended or (context.reach.source and context.reach.same_network and one.address[1]):
        return []
    if one.is_established:
        return preflight_connection(open_file, context) if options.tcp == "keep" else []
    try:
        with make_inet(one, options.take_addresses):
            return []
    except OSError as error:
        return [bind_blocker(one, name, error)]


def preflight_connection(open_file: OpenFile[InetSocket], context: PreflightContext) -> list[Blocker]:
    """The blockers of a connection that moves to another host."""
    one, name = open_file.object, open_file.name
    if context.reach.same_network:
        cause = f"{connection_text(one)}, which this network namespace has already"
        remedy = "run lm-restore in the source's PID namespace, so that it is handed over, or give it --tcp close"
        return [Blocker(name, cause, remedy)]
    if blockers := follow_blockers(open_file, context.options):
        return blockers
    try:
        with make_connection(one) as made:
            made.connect(here(one.peer or []))
            return []
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            cause, remedy = "there is no route to its peer from here", "add one before the move, or use --tcp close"
            return [Blocker(name, f"{connection_text(one)}: {cause}", remedy)]
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


def make_inet(one: InetSocket, foreign: Container[str] = (), *, repaired: bool = False) -> socket.socket:
    """A socket with its options, bound where it was, neither listening nor connected. It may be bound to `foreign`
    addresses, which this host does not have yet. `repaired`: it is in repair. Raises OSError."""
    made = socket.socket(one.family, one.type, one.protocol)
    try:
        set_all_options(made.fileno(), one.options)
        give_to(made.fileno(), one.uid, one.gid)
        if repaired:
            check(lib.lm_tcp_begin_repair(made.fileno()), "TCP_REPAIR")
        if one.address[1]:
            with bound_anywhere(made, one, foreign):
                bind_inet(made, one)
    except BaseException:
        made.close()
        raise
    return made


def make_connection(one: InetSocket) -> socket.socket:
    """A bound socket in repair, which is to be a connection. Raises OSError."""
    made = make_inet(one, (plain(str(one.address[0])),), repaired=True)
    # Connecting asks for a route that begins at this address.
    made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    return made


@contextlib.contextmanager
def bound_anywhere(made: socket.socket, one: InetSocket, foreign: Container[str]) -> Iterator[None]:
    """Within, it can be bound and connected from an address that this host does not have."""
    if plain(str(one.address[0])) not in foreign:
        yield
        return
    before = made.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT)
    made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    try:
        yield
    finally:
        made.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, before)


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
    if one.is_established and context.options.tcp == "close":
        return open_closed(one)
    if one.address[1] and context.same_network:
        handed = context.fetch(open_file.number, one.inode)
        if handed is not None:
            context.handed_over.add(one.inode)
            return handed
    if one.ended:
        return open_closed(one)
    if one.is_established:
        if blockers := follow_blockers(open_file, context.options):
            raise OSError(errno.EADDRNOTAVAIL, blockers[0].cause)
        return make_connection(one).detach()
    foreign = context.options.take_addresses
    made = make_inet(one, foreign)
    try:
        if one.state == TCP_LISTEN:
            made.listen(one.backlog)
        elif not one.is_tcp and one.peer is not None:
            with bound_anywhere(made, one, foreign):
                made.connect(here(one.peer))
    except BaseException:
        made.close()
        raise
    return made.detach()


def open_closed(one: InetSocket) -> int:
    """A socket whose connection has ended. Raises OSError."""
    number: int = lib.lm_closed_tcp_socket(one.family)
    if number < 0:
        raise OSError(-number, os.strerror(-number), "making a closed connection")
    return number


def changed_inet(those: Sequence[tuple[OpenFile[InetSocket], int]], context: SnapshotContext) -> list[Blocker]:
    """Those whose options are others than those of their description."""
    repaired: dict[int, list[Described]] = {}
    others = []
    for one, number in those:
        described = Described(one.name, number, one.object.options)
        if one.object.connection is not None:
            repaired.setdefault(one.object.family, []).append(described)
        elif not one.object.is_established and not one.object.ended:
            others.append(described)
    found = [blocker for family, alike in repaired.items() for blocker in changed_in_repair(alike, family)]
    return found + changed_options(others, context)


def hold_inet(one: OpenFile[InetSocket]) -> Held | None:
    """The end of a connection that does not move, or of a listener."""
    if one.object.state == TCP_LISTEN:
        return Held(one.number, one.object.inode, commit=stop_listening(one.flags, one.object.waiting))
    if not one.object.is_established or one.object.connection is not None:
        return None
    return Held(one.number, one.object.inode, commit=end_connection())


def update_inet(number: int, one: OpenFile[InetSocket], before: InetSocket, context: OpenContext) -> None:
    """The options that have changed, of what is not the source's own, and a connection. Raises OSError."""
    if before.inode in context.handed_over:
        return
    if one.object.ended or (one.object.is_established and context.options.tcp == "close"):
        return
    if one.object.options != before.options:
        set_all_options(number, one.object.options, before.options)
    if one.object.is_established:
        restore_inet(number, one, context)


def restore_inet(number: int, one: OpenFile[InetSocket], context: OpenContext) -> None:
    """Put the connection into its socket, and note what makes it go on. Raises OSError."""
    connection, peer = one.object.connection, one.object.peer
    if connection is None or peer is None:
        raise OSError(errno.EPROTO, "the source has not told its connection")
    options = one.object.options
    _, _, keepalive, user_timeout = repaired_options(number)
    transparent = made_with(options, socket.IPPROTO_IP, IP_TRANSPARENT)
    address = packed_address(one.object.family, here(peer))
    in_flight = restore_connection(number, connection, address, transparent)
    rest = connection.written[in_flight:]
    reused = made_with(options, socket.SOL_SOCKET, socket.SO_REUSEADDR)
    shut = how_shut(connection)
    if rest:
        rows = begins(reused, keepalive, user_timeout, shut, sends(number, rest))
    else:
        rows = begins_at_once(reused, keepalive, user_timeout, shut)
    context.begun.append(Held(one.number, os.fstat(number).st_ino, commit=rows))


def packed_address(family: int, address: tuple[str | int, ...]) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    host = str(address[0]).partition("%")[0]
    if family == socket.AF_INET:
        return struct.pack("=H", family) + struct.pack(">H4s8x", int(address[1]), socket.inet_pton(family, host))
    flow, scope = (int(each) for each in (*address[2:4], 0, 0)[:2])
    plain_head = struct.pack(">HI16s", int(address[1]), flow, socket.inet_pton(family, host))
    return struct.pack("=H", family) + plain_head + struct.pack("=I", scope)


INET_SOCKET = Kind(
    object=InetSocket,
    file_types=(stat.S_IFSOCK,),
    recognise=is_supported,
    snapshot=snapshot_inet,
    same=is_same,
    holders=Holders.BY_OBJECT,
    blockers=inet_blockers,
    passing=unsent_blockers,
    changed=changed_inet,
    hold=hold_inet,
    preflight=preflight_inet,
    open=open_inet,
    update=update_inet,
)
