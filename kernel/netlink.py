"""Messages of netlink(7), as bytes, and what comes back.

Own code, since what is needed in a freeze has to be made in microseconds, and is carried out by C, also by a custodian
that has no Python: a message is bytes that are ready beforehand.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from live_migration.kernel.socket_in import socket_in

REQUEST, ACKNOWLEDGED, DUMP, CREATE, EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x200
ERROR, DONE = 2, 3
NESTED = 0x8000
ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12
ROOM = 1 << 17
ANSWER_SECONDS = 5
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(values))


def message(kind: int, flags: int, body: bytes, number: int = 0) -> bytes:
    """One message of the requests with these flags."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, number, 0) + body + bytes(-len(body) % 4)


@dataclass(frozen=True)
class Answer:
    """A message of the kernel's: its kind, and what follows the header."""

    kind: int
    body: bytes


def open_netlink(protocol: int, pid: int | None = None) -> socket.socket:
    """A socket to the kernel, in the network namespace of process `pid`, or in this one. Raises OSError."""
    found = socket_in(pid, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    found.bind((0, 0))
    # The kernel answers at once; a timeout of Python's would make every receiving a poll.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", ANSWER_SECONDS, 0))
    return found


def request(kernel: socket.socket, data: bytes) -> None:
    """Send messages of which one at least asks for an answer, and wait for it. Raises OSError: what the kernel says."""
    forget_answers(kernel)
    kernel.send(data)
    pending = True
    while pending:
        for answer in answers(kernel.recv(ROOM)):
            if answer.kind == ERROR:
                (code,) = struct.unpack_from("=i", answer.body)
                if code:
                    raise OSError(-code, os.strerror(-code), "netlink")
                pending = False


def forget_answers(kernel: socket.socket) -> None:
    """Take away what was answered to messages for which nobody has waited."""
    while True:
        try:
            kernel.recv(ROOM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def dump(kernel: socket.socket, kind: int, body: bytes) -> list[Answer]:
    """Everything that the kernel has of a kind. Raises OSError."""
    forget_answers(kernel)
    kernel.send(message(kind, DUMP, body))
    found: list[Answer] = []
    while True:
        for answer in answers(kernel.recv(ROOM)):
            if answer.kind == DONE:
                return found
            if answer.kind == ERROR:
                (code,) = struct.unpack_from("=i", answer.body)
                raise OSError(-code, os.strerror(-code), "netlink")
            found.append(answer)


def answers(data: bytes) -> Iterator[Answer]:
    """The messages in what was received."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= len(data) - at:
            return
        yield Answer(kind, data[at + HEADER.size : at + length])
        at += (length + 3) & ~3


def attributes(body: bytes, at: int) -> dict[int, bytes]:
    """The attributes of a message from that offset on, by their kind."""
    found = {}
    while at + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, at)
        if not ATTRIBUTE.size <= length <= len(body) - at:
            break
        found[kind & ~NESTED] = body[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def joined(parts: Sequence[bytes]) -> bytes:
    """Messages one after the other, with numbers of their own, so that the kernel's answers can be told apart."""
    found = bytearray(b"".join(parts))
    at = number = 0
    while at < len(found):
        (length,) = struct.unpack_from("=I", found, at)
        number += 1
        struct.pack_into("=I", found, at + 8, number)
        at += (length + 3) & ~3
    return bytes(found)
