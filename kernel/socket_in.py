"""Sockets of another network namespace."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from live_migration._lm import lib


def socket_in(pid: int | None, family: int, kind: int, protocol: int) -> socket.socket:
    """A socket in the network namespace of process `pid`, or in this one. Raises OSError."""
    network = -1
    if pid is not None and os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/thread-self/ns/net").st_ino:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        number: int = lib.lm_socket_in(network, family, kind, protocol)
    finally:
        if network >= 0:
            os.close(network)
    if number < 0:
        raise OSError(-number, os.strerror(-number), f"a socket (family {family}, protocol {protocol})")
    return socket.socket(fileno=number)


def receive_everywhere(one: socket.socket, protocol: int) -> None:
    """Let a packet socket receive what arrives of a protocol on every interface: bind(2) of Python's socket wants the
    name of one. Raises OSError."""
    failed = lib.lm_receive_everywhere(one.fileno(), protocol)
    if failed:
        raise OSError(-failed, os.strerror(-failed), f"receiving packets (protocol {protocol:#06x})")


def opened_if_possible(opening: Callable[[], socket.socket]) -> socket.socket:
    """The socket; where this host or this user cannot have it, one on which everything fails with OSError. Whoever
    needs it says so then: most processes move without it."""
    try:
        return opening()
    except OSError:
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
