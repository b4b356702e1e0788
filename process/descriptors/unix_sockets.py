"""Unix sockets: pairs inside the process with what is queued in them, unconnected ones and listeners.

The kernel tells by sock_diag(7) which sockets are connected with each other. Queued data is read with MSG_PEEK, which
leaves it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Collection, Container, Sequence
from typing import Any

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_listen
from live_migration.kernel.netlink import SOCK_DIAG, open_netlink
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.kind import (
    BlockerContext,
    Holders,
    Kind,
    PreflightContext,
    RowsContext,
    SnapshotContext,
)
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen, give_to
from live_migration.process.descriptors.socket_ends import stop_listening
from live_migration.process.descriptors.socket_options import (
    Described,
    changed_options,
    option_blockers,
    set_all_options,
    set_options,
    snapshot_options,
)
from live_migration.process.descriptors.unix_queues import NOBODY, Peeked, peek_queue, raw_address, send_queue
from live_migration.process.scope import holders_text
from live_migration.wire.blockers import Blocker

CONNECTED, LISTENING = 1, 10


class SocketFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file by which a path leads to a socket."""

    mode: int
    uid: int
    gid: int


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="unix"):
    """A unix socket. `peer` is the inode of the socket that it is connected with, 0 if that has none or is gone.

    `address` and `peer_address` are as bound: empty, b"\\0name" for an abstract one, or a path; `directory`
    is the one that a relative path starts from. `shutdown`: bit 0 no more to receive, bit 1 no more to
    send. `queue` is what waits to be received: pieces of a stream, or messages; filled in when frozen.
    `waiting` are the connections that a listener has not accepted. `sender` are user and group of the process when it
    sent what waits, where the receiver is told (SO_PASSCRED); `unsigned`: it was sent before anybody asked for that.
    """

    inode: int
    type: int
    state: int
    address: bytes
    directory: str
    file: SocketFile | None
    uid: int
    gid: int
    peer: int
    has_peer: bool
    peer_address: bytes
    shutdown: int
    backlog: int
    waiting: int
    queued: int
    options: bytes
    queue: list[bytes] = []
    carries_descriptors: bool = False
    senders: bool = False
    sender: tuple[int, int] | None = None
    unsigned: bool = False
    peer_gone: bool = False
    error_waits: bool = False


def is_unix(seen: Seen) -> bool:
    """Is it one?"""
    if seen.flags & os.O_PATH:
        return False
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        return one.family == socket.AF_UNIX


def open_questions(pid: int) -> int:
    """A socket for queries to the kernel about sockets, in the network namespace of process `pid`. Raises OSError."""
    return open_netlink(SOCK_DIAG, pid).detach()


def snapshot_unix(seen: Seen, context: SnapshotContext) -> UnixSocket:
    """Describe a unix socket from outside. Of one that is connected and has nothing queued, only options change."""
    before = context.before.get(seen.link)
    if not isinstance(before, UnixSocket):
        before = None
    found = ffi.new("struct lm_unix_socket *")
    diag = context.descriptor("sock_diag", open_questions)
    result = lib.lm_diag_unix(diag, seen.status.st_ino, found)
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"socket with inode {seen.status.st_ino}")
    listening = found.state == LISTENING
    quiet = listening or (
        before is not None
        and before.type == socket.SOCK_STREAM
        and not found.queued
        and before.shutdown == found.shutdown
    )
    if before is not None and before.state == found.state and (listening or found.has_peer) and quiet:
        with socket.socket(fileno=os.dup(seen.duplicate)) as one:
            options = snapshot_options(one, seen, context)
        return msgspec.structs.replace(
            before,
            peer=found.peer,
            shutdown=found.shutdown,
            backlog=found.backlog if listening else 0,
            waiting=found.queued if listening else 0,
            queued=0,
            queue=[],
            options=options,
        )
    with socket.socket(fileno=os.dup(seen.duplicate)) as one:
        address = raw_address(one.getsockname())
        peer_address = b""
        if found.has_peer:
            with contextlib.suppress(OSError):
                peer_address = raw_address(one.getpeername())
        peeked = Peeked()
        events = waiting_events(one)
        # To receive would take the error that waits.
        if seen.frozen and not listening and events & select.POLLIN and not events & select.POLLERR:
            peeked = peek_queue(one, found.queued, found.shutdown, peer_address)
        return UnixSocket(
            inode=seen.status.st_ino,
            type=one.type,
            state=found.state,
            address=address,
            directory=os.readlink(f"/proc/{seen.pid}/cwd") if is_relative(address) else "/",
            file=snapshot_socket_file(seen.pid, address),
            uid=seen.status.st_uid,
            gid=seen.status.st_gid,
            peer=found.peer,
            has_peer=bool(found.has_peer),
            peer_address=peer_address,
            shutdown=found.shutdown,
            backlog=found.backlog if listening else 0,
            waiting=found.queued if listening else 0,
            queued=0 if listening else found.queued,
            options=snapshot_options(one, seen, context),
            queue=peeked.queue,
            carries_descriptors=peeked.descriptors,
            senders=peeked.others
            or any(each[0] != seen.pid and each != NOBODY for each in peeked.senders)
            or len(peeked.senders) > 1,
            sender=next((each[1:] for each in peeked.senders if each != NOBODY), None),
            unsigned=NOBODY in peeked.senders,
            peer_gone=is_peer_gone(diag, one.type, found),
            error_waits=bool(events & select.POLLERR),
        )


def is_peer_gone(diag: int, kind: int, found: Any) -> bool:
    """Has the other end been closed? The kernel (unix_diag) tells its number, or none; none means for a stream as well
    that nobody has accepted the connection yet."""
    if not found.has_peer:
        return False
    if not found.peer:
        return kind == socket.SOCK_DGRAM
    return bool(lib.lm_diag_unix(diag, found.peer, ffi.new("struct lm_unix_socket *")) == -errno.ENOENT)


def is_relative(address: bytes) -> bool:
    """Is it a path that depends on the working directory?"""
    return bool(address) and address[0] not in b"\0/"


def snapshot_socket_file(pid: int, address: bytes) -> SocketFile | None:
    """The socket's file; None where there is none (any more)."""
    if not address or address[0] == 0:
        return None
    start = f"/proc/{pid}/cwd/" if is_relative(address) else f"/proc/{pid}/root"
    try:
        found = os.stat(os.fsencode(start) + address)
    except OSError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    return SocketFile(mode=stat.S_IMODE(found.st_mode), uid=found.st_uid, gid=found.st_gid)


def waiting_events(one: socket.socket) -> int:
    """What poll(2) tells of it: POLLIN for something to receive, an empty message included, POLLERR for an error that
    the next call gets. A socket without a connection is hung up (POLLHUP), with nothing to receive."""
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return sum(events for _, events in poll.poll(0))


def is_same(old: UnixSocket, new: UnixSocket) -> bool:
    """Is it one socket, bound and connected as before?"""
    return (old.inode, old.state, old.address, old.backlog, old.peer_address) == (
        new.inode,
        new.state,
        new.address,
        new.backlog,
        new.peer_address,
    )


def other_end(one: UnixSocket) -> str:
    """What /proc/PID/fd says of its other end; empty if there is none."""
    return f"socket:[{one.peer}]" if one.peer else ""


def has_peer(one: UnixSocket) -> bool:
    """Is it connected?"""
    return one.has_peer


def leads_outside(one: OpenFile[UnixSocket], own: Container[str]) -> bool:
    """Does a process that stays hold it, or its other end?"""
    return bool(one.holders) or is_outside(one, own)


def is_outside(open_file: OpenFile[UnixSocket], own: Container[str]) -> bool:
    """Is its other end outside the process, whose links are `own`? A datagram socket that sends to a path does not
    count: it is connected anew, see open_unix. Neither does an end that has been closed: the kernel has no such socket
    in the network namespace, and no process holds it.
    """
    one = open_file.object
    if one.peer_gone and not open_file.peer_holders:
        return False
    if one.state == LISTENING or not one.has_peer or other_end(one) in own:
        return False
    if one.type == socket.SOCK_DGRAM and one.peer_address:
        return False
    return one.peer != 0 or one.shutdown != 3


def unix_blockers(one: OpenFile[UnixSocket], context: BlockerContext) -> list[Blocker]:
    """The blockers of a unix socket."""
    found = []
    if is_outside(one, context.own):
        holders = holders_text(one.peer_holders) if one.peer_holders else "a process that stays"
        found.append(
            Blocker(one.name, f"{holders} has the other end", "end the connection before the move, or end that process")
        )
    return found + option_blockers(one.name, one.object.options) + queue_blockers(one)


def queue_blockers(one: OpenFile[UnixSocket]) -> list[Blocker]:
    """Blockers that pass when the process receives what waits in the socket: it cannot be queued anew."""
    found = []
    if one.object.carries_descriptors:
        found.append(Blocker(
                one.name,
                "descriptors are on their way in it, or an urgent byte (MSG_OOB)",
                "try again when they have been received",
            ))
    if one.object.error_waits:
        found.append(Blocker(one.name, "an error waits in it (SO_ERROR)", "try again when it has been read"))
    if one.object.senders:
        found.append(Blocker(one.name, "messages from others wait in it", "try again when they have been received"))
    return found


def preflight_unix(open_file: OpenFile[UnixSocket], context: PreflightContext) -> list[Blocker]:
    """Is its address free on the destination, if it has to be bound, and is the peer of a datagram socket there?"""
    one, name, map_path = open_file.object, open_file.name, context.options.map_path
    abstract = one.address[:1] == b"\0"
    bind = not (context.reach.source and (context.reach.same_network or not abstract))
    found: list[Blocker] = []
    if bind and one.address:
        found += preflight_address(one, name, path_here(one, map_path))
    if one.has_peer and one.type == socket.SOCK_DGRAM and one.peer_address and one.peer_address[0] != 0:
        peer = peer_here(one, map_path)
        if not os.path.exists(peer):
            found.append(
                Blocker(name, f"it sends to {os.fsdecode(peer)}, which is not here", "start that service here")
            )
    return found


def preflight_address(one: UnixSocket, name: str, path: str | None) -> list[Blocker]:
    """Is the address free? `path` is where it is here, None for an abstract one or one that is not to be bound."""
    if path is None:
        if one.address[0] != 0 or (one.has_peer and one.type != socket.SOCK_DGRAM):
            return []
        with socket.socket(socket.AF_UNIX, one.type) as trial:
            try:
                trial.bind(one.address)
            except OSError as error:
                address = "@" + os.fsdecode(one.address[1:])
                return [
                    Blocker(name, f"{address} cannot be bound here: {error.strerror}", "end the process that has it")
                ]
        return []
    if os.path.lexists(path):
        return [Blocker(name, f"{path} exists here", "remove it, or point elsewhere with --map-path OLD=NEW")]
    if not os.path.isdir(os.path.dirname(path) or "."):
        return [Blocker(name, f"the directory of {path} is missing here", "create it")]
    return []


def peer_here(one: UnixSocket, map_path: Callable[[str], str]) -> bytes:
    """The address of its peer, here."""
    address = one.peer_address
    return address if address[0] == 0 else os.fsencode(map_path(os.fsdecode(address)))


def path_here(one: UnixSocket, map_path: Callable[[str], str]) -> str | None:
    """Where the socket's path is here; None if it has none, or if the socket was only accepted by the one that has it.
    """
    if not one.address or one.address[0] == 0 or (one.has_peer and one.type != socket.SOCK_DGRAM):
        return None
    return map_path(os.path.join(one.directory, os.fsdecode(one.address)))


def open_unix(open_file: OpenFile[UnixSocket], context: OpenContext) -> int:
    """A socket like it. A bound one is the source's own if that can be reached: nothing can be bound twice."""
    one = open_file.object
    if one.address and (one.state == LISTENING or not one.has_peer or one.type == socket.SOCK_DGRAM):
        abstract = one.address[0] == 0
        handed = context.fetch(open_file.number, one.inode) if context.same_network or not abstract else None
        if handed is not None:
            context.handed_over.add(one.inode)
            return handed
    if one.has_peer and not (one.type == socket.SOCK_DGRAM and one.peer_address):
        return open_pair(one, context)
    made = socket.socket(socket.AF_UNIX, one.type | socket.SOCK_CLOEXEC)
    try:
        set_all_options(made.fileno(), one.options)
        give_to(made.fileno(), one.uid, one.gid)
        if one.address:
            bind_unix(made, one, context)
        if one.state == LISTENING:
            made.listen(one.backlog)
        if one.has_peer:
            made.connect(peer_here(one, context.map_path))
    except BaseException:
        made.close()
        raise
    return made.detach()


def bind_unix(made: socket.socket, one: UnixSocket, context: OpenContext) -> None:
    """Bind it to its address; a relative path from the directory that it starts from."""
    if one.address[0] == 0:
        made.bind(one.address)
        return
    path = os.fsdecode(one.address)
    if not is_relative(one.address):
        path = context.map_path(path)
        made.bind(path)
    else:
        context.map_path(os.path.normpath(os.path.join(one.directory, path)))
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(context.map_path(one.directory))
            made.bind(path)
            path = os.path.abspath(path)
        finally:
            os.fchdir(before)
            os.close(before)
    if one.file is None:
        os.unlink(path)
        return
    context.made_paths.append(os.path.abspath(path))
    os.chmod(path, one.file.mode)
    if os.geteuid() == 0:
        os.chown(path, one.file.uid, one.file.gid)


def open_pair(one: UnixSocket, context: OpenContext) -> int:
    """One of two connected sockets; the other one waits for its open file, or is closed in the end."""
    key = ("unix", 0, one.inode)
    if key not in context.anchors:
        first, second = socket.socketpair(socket.AF_UNIX, one.type)
        context.anchors[key] = (first.detach(), second.detach())
        context.close_later += context.anchors[key]
        if one.peer:
            context.anchors["unix", 0, one.peer] = context.anchors[key][::-1]
    number = os.dup(context.anchors[key][0])
    # A filter would have a say in what is queued, and waits until that is done.
    set_options(number, one.options, filters=False)
    give_to(number, one.uid, one.gid)
    return number


def fill_all(sockets: Collection[OpenFile[UnixSocket]], context: OpenContext) -> None:
    """Queue what waits to be received, in all of them before the first is shut. Raises OSError."""
    for one in sockets:
        fill_unix(one.object, context)


def fill_unix(one: UnixSocket, context: OpenContext) -> None:
    """Queue what waits to be received in one socket."""
    anchors = context.anchors.get(("unix", 0, one.inode))
    if anchors is None or not one.queue:
        return
    sender = (context.process, *one.sender) if one.sender is not None else None
    with socket.socket(fileno=os.dup(anchors[0])) as own, socket.socket(fileno=os.dup(anchors[1])) as other:
        send_queue(own, other, one.queue, sender, unsigned=one.unsigned)


def update_unix(number: int, open_file: OpenFile[UnixSocket], before: UnixSocket, context: OpenContext) -> None:
    """Set filters and what has changed of the options, and shut the directions that are shut. What was sent before is
    queued by now.
    """
    one = open_file.object
    if one.inode not in context.handed_over:
        known = before.options if before is not one else b""
        set_all_options(number, one.options, known)
    anchors = context.anchors.get(("unix", 0, one.inode))
    if anchors is None or not one.shutdown:
        return
    with socket.socket(fileno=os.dup(anchors[0])) as made:
        made.shutdown({1: socket.SHUT_RD, 2: socket.SHUT_WR, 3: socket.SHUT_RDWR}[one.shutdown])


def listen_rows(program: Program, one: OpenFile[UnixSocket], context: RowsContext) -> None:
    """A row that makes the process the owner of a listener that was made here.

    SO_PEERCRED tells a client which process called listen(2) last (unix(7)); that was the one that bound the socket.
    """
    if one.object.state == LISTENING and one.object.inode not in context.handed_over:
        program.call(f"listen on descriptor {one.number}", SYS_listen, one.number, one.object.backlog)


def changed_unix(those: Sequence[tuple[OpenFile[UnixSocket], int]], context: SnapshotContext) -> list[Blocker]:
    """Those whose options are others than those of their description."""
    return changed_options((Described(one.name, number, one.object.options) for one, number in those), context)


def hold_unix(one: OpenFile[UnixSocket]) -> Held | None:
    """The end of a listener. A connection inside the process has nobody to be told."""
    if one.object.state != LISTENING:
        return None
    return Held(one.number, one.object.inode, commit=stop_listening(one.flags, one.object.waiting))


UNIX_SOCKET = Kind(
    object=UnixSocket,
    file_types=(stat.S_IFSOCK,),
    recognise=is_unix,
    snapshot=snapshot_unix,
    same=is_same,
    holders=Holders.BY_OBJECT,
    other_end=other_end,
    leads_outside=leads_outside,
    blockers=unix_blockers,
    passing=queue_blockers,
    changed=changed_unix,
    hold=hold_unix,
    preflight=preflight_unix,
    connects=has_peer,
    open=open_unix,
    fill=fill_all,
    update=update_unix,
    last_rows=listen_rows,
)
