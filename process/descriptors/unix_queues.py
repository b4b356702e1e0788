"""What waits to be received in unix sockets: read with MSG_PEEK, which leaves it there, and sent anew."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from live_migration._lm import lib
from live_migration.process.descriptors.open_file import close_all

LARGEST_MESSAGE = 1 << 20
SO_PASSPIDFD, SCM_PIDFD = 76, 4
TELLS_SENDERS = (socket.SO_PASSCRED, SO_PASSPIDFD)
SO_SNDBUFFORCE, SO_BUF_LOCK = 32, 72
ROOM_OF_MESSAGE = 4096
NOBODY = (0, 65534, 65534)
"""Process, user and group that are told of a message without a sender (the overflow ids of user_namespaces(7))."""


def raw_address(address: str | bytes | None) -> bytes:
    """A unix address as the socket module gives it, as bytes."""
    return os.fsencode(address) if address else b""


@dataclass
class Peeked:
    """What is to be received. Do descriptors travel with it, have others than the peer sent it? `senders` are process,
    user and group of who did, where the receiver is told.
    """

    queue: list[bytes] = field(default_factory=list)
    descriptors: bool = False
    others: bool = False
    senders: set[tuple[int, int, int]] = field(default_factory=set)

    def receive(self, one: socket.socket, size: int) -> tuple[bytes, bytes]:
        """Peek at a piece or message: its bytes, and who sent it. Raises BlockingIOError when there is none."""
        room = socket.CMSG_SPACE(253 * array.array("i").itemsize)
        data, control, _, sender = one.recvmsg(size, room, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        self.descriptors |= drop_descriptors(control)
        if any(one.getsockopt(socket.SOL_SOCKET, each) for each in TELLS_SENDERS):
            told = [struct.unpack("3i", what) for _, kind, what in control if kind == socket.SCM_CREDENTIALS]
            self.senders.add((told or [(0, 0, 0)])[0])
        return data, raw_address(sender)


def peek_queue(one: socket.socket, queued: int, shutdown: int, peer_address: bytes) -> Peeked:
    """What is to be received, left where it is.

    A stream is peeked at in one go, messages one after the other with SO_PEEK_OFF, which is put back. `queued` are
    bytes, of a SOCK_SEQPACKET socket those of all messages: an empty one is its end only where nothing follows.
    """
    found = Peeked()
    if one.type == socket.SOCK_STREAM:
        if queued:
            found.queue = [found.receive(one, queued)[0]]
            # It ends where descriptors travel, and where another sender begins.
            found.descriptors |= len(found.queue[0]) < queued
        return found
    before = one.getsockopt(socket.SOL_SOCKET, lib.SO_PEEK_OFF)
    one.setsockopt(socket.SOL_SOCKET, lib.SO_PEEK_OFF, 0)
    try:
        while True:
            data, sender = found.receive(one, LARGEST_MESSAGE)
            queued -= len(data)
            if not data and one.type == socket.SOCK_SEQPACKET and shutdown & 1 and queued <= 0:
                break
            found.queue.append(data)
            found.others |= bool(sender) and sender != peer_address
    except BlockingIOError:
        return found
    finally:
        one.setsockopt(socket.SOL_SOCKET, lib.SO_PEEK_OFF, before)
    return found


def drop_descriptors(control: list[tuple[int, int, bytes]]) -> bool:
    """Close the duplicates, and pidfds of senders, that peeking has made; were there descriptors?"""
    found = False
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, SCM_PIDFD):
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            close_all(numbers)
            found |= kind == socket.SCM_RIGHTS
    return found


def send_queue(
    own: socket.socket,
    other: socket.socket,
    queue: Collection[bytes],
    sender: tuple[int, int, int] | None,
    *,
    unsigned: bool,
) -> None:
    """Send what is to wait in `own` from its `other` end, as `sender` (process, user, group) or, if it is `unsigned`,
    without one. Raises OSError."""
    told = []
    if sender is not None:
        told = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", *sender))]
    with room_for(other, queue), asking_nobody((own, other) if unsigned else ()):
        for message in queue:
            with contextlib.suppress(BlockingIOError):
                if other.sendmsg([message], told, socket.MSG_DONTWAIT) == len(message):
                    continue
            raise OSError(errno.ENOBUFS, "the socket is too small here for what waited in it on the source")


@contextlib.contextmanager
def asking_nobody(sockets: Collection[socket.socket]) -> Iterator[None]:
    """While messages are sent that do not tell who sent them: neither end asks for it."""
    with contextlib.ExitStack() as later:
        for one in sockets:
            for option in TELLS_SENDERS:
                if one.getsockopt(socket.SOL_SOCKET, option):
                    one.setsockopt(socket.SOL_SOCKET, option, 0)
                    later.callback(one.setsockopt, socket.SOL_SOCKET, option, 1)
        yield


@contextlib.contextmanager
def room_for(sender: socket.socket, queue: Collection[bytes]) -> Iterator[None]:
    """While a socket sends a queue anew: its buffer is no smaller than that takes, if it may be. Its own may have been
    made smaller since the messages were sent, and what it accounts for each depends on the kernel (SO_SNDBUF)."""
    size, lock = (sender.getsockopt(socket.SOL_SOCKET, each) for each in (socket.SO_SNDBUF, SO_BUF_LOCK))
    wanted = sum(len(message) for message in queue) + len(queue) * ROOM_OF_MESSAGE
    if size >= 2 * wanted:
        yield
        return
    set_buffer(sender, wanted)
    try:
        yield
    finally:
        set_buffer(sender, size // 2)
        sender.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock)


def set_buffer(sender: socket.socket, size: int) -> None:
    """Set SO_SNDBUF, of which the kernel makes twice as much, beyond what is usual if that is allowed (socket(7))."""
    try:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)
    except PermissionError:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
