"""The TCP sockets of a network namespace, as the kernel lists them (sock_diag(7))."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from live_migration.kernel.netlink import attributes, dump

BY_FAMILY = 20
REQUEST = struct.Struct("=BBBBI48x")
LENGTH = 72
MD5_SIGNED = 18
SYN_RECV, LISTEN = 3, 10
EVERY_STATE = (1 << 13) - 1


@dataclass(frozen=True)
class TcpSocket:
    """One of them: `state` is its number in netinet/tcp.h, `inode` 0 where no process has it, `signed` with TCP-MD5."""

    state: int
    address: str
    port: int
    peer: str
    peer_port: int
    inode: int
    signed: bool


def tcp_sockets(kernel: socket.socket, states: int = EVERY_STATE) -> list[TcpSocket]:
    """Those that are in one of the states, a bit each. Raises OSError."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for answer in dump(kernel, BY_FAMILY, REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states)):
            _, state = struct.unpack_from("=BB", answer.body)
            port, peer_port, own, other = struct.unpack_from(">HH16s16s", answer.body, 4)
            (inode,) = struct.unpack_from("=I", answer.body, 68)
            length = 4 if family == socket.AF_INET else 16
            found.append(
                TcpSocket(
                    state,
                    socket.inet_ntop(family, own[:length]),
                    port,
                    socket.inet_ntop(family, other[:length]),
                    peer_port,
                    inode,
                    MD5_SIGNED in attributes(answer.body, LENGTH),
                )
            )
    return found
