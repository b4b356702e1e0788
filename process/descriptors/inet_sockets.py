"""TCP and UDP sockets, v4 and v6: unconnected, bound, listening, and connected UDP.

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
from live_migration.process.descriptors.socket_options import Option, is_socket, read_options, set_options
from live_migration.wire.blockers import Blocker

TCP_CLOSE, TCP_LISTEN = 7, 10


class InetSocket(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="inet"):
    """A TCP or UDP socket. `state` is TCP's (enum of netinet/tcp.h), 7 for UDP.

    `address` is what it is bound to, port 0 when it is not; `peer` what it is connected to. `waiting` are the
    connections that a listener has not accepted.
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
    options: list[Option]

    @property
    def is_tcp(self) -> bool:
        """TCP, not UDP?"""
        return self.type == socket.SOCK_STREAM

    @property
    def is_established(self) -> bool:
        """Has it a connection that only this host can go on with? A half-closed one counts."""
        return self.is_tcp and self.state not in (TCP_CLOSE, TCP_LISTEN)


def is_supported(seen: Seen) -> bool:
    """Is it TCP or UDP, and has it no filter?"""
    if not is_socket(seen):
        return False
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        return one.family in (socket.AF_INET, socket.AF_INET6) and (one.type, one.proto) in (
            (socket.SOCK_STREAM, socket.IPPROTO_TCP),
            (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        )


def snapshot_inet(seen: Seen, context: SnapshotContext) -> InetSocket:
    """Describe a TCP or UDP socket from outside; the options only if no earlier snapshot has them."""
    before = context.before.get(seen.link)
    if not isinstance(before, InetSocket):
        before = None
    state = ffi.new("struct lm_tcp_state *", {"state": TCP_CLOSE})
    if before is None or before.is_tcp:
        result = lib.lm_tcp_state(seen.duplicate, state)
        if result < 0 and result not in (-errno.EOPNOTSUPP, -errno.ENOPROTOOPT):
            raise OSError(-result, os.strerror(-result), "TCP_INFO")
    listening = state.state == TCP_LISTEN
    same = before is not None and before.state == state.state
    if before is not None and same and state.state != TCP_CLOSE:
        queue = (state.backlog, state.waiting) if listening else (0, 0)
        return msgspec.structs.replace(before, backlog=queue[0], waiting=queue[1])
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        peer: list[str | int] | None = None
        with contextlib.suppress(OSError):
            peer = list(one.getpeername())
        return InetSocket(
            inode=seen.status.st_ino,
            uid=seen.status.st_uid,
            gid=seen.status.st_gid,
            family=one.family,
            type=one.type,
            protocol=one.proto,
            state=state.state,
            address=list(one.getsockname()),
            peer=peer,
            backlog=state.backlog if listening else 0,
            waiting=state.waiting if listening else 0,
            options=before.options if before is not None and same else read_options(one),
        )


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
    return []


def preflight_inet(open_file: OpenFile[InetSocket], context: PreflightContext) -> list[Blocker]:
    """Can its address be bound on the destination, if it has to be? This binds it for a moment."""
    one, name = open_file.object, open_file.name
    if (context.reach.source and context.reach.same_network) or one.is_established or not one.address[1]:
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
    return Blocker(name, f"{where} cannot be opened here: {error.strerror}", "see ip(7) about this error")


def make_inet(one: InetSocket) -> socket.socket:
    """A socket with its options, bound where it was, neither listening nor connected. Raises OSError."""
    made = socket.socket(one.family, one.type, one.protocol)
    try:
        set_options(made, one.options)
        give_to(made.fileno(), one.uid, one.gid)
        if one.address[1]:
            bind_inet(made, one)
    except BaseException:
        made.close()
        raise
    return made


def bind_inet(made: socket.socket, one: InetSocket) -> None:
    """Bind it. A connected UDP socket may have its address from the route, and another host does not have that one.
    """
    try:
        made.bind(tuple(one.address))
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
            made.connect(tuple(one.peer))
    except BaseException:
        made.close()
        raise
    return made.detach()


def hold_inet(one: OpenFile[InetSocket]) -> Held | None:
    """The end of a connection, or of a listener."""
    if one.object.state == TCP_LISTEN:
        return Held(one.number, one.object.inode, commit=stop_listening(one.flags, one.object.waiting))
    return Held(one.number, one.object.inode, commit=end_connection()) if one.object.is_established else None


INET_SOCKET = Kind(
    object=InetSocket,
    file_types=(stat.S_IFSOCK,),
    recognise=is_supported,
    snapshot=snapshot_inet,
    same=is_same,
    holders=Holders.BY_OBJECT,
    leads_outside=leads_outside,
    blockers=inet_blockers,
    hold=hold_inet,
    preflight=preflight_inet,
    open=open_inet,
)
