"""The options of sockets: read as bytes, and set on the destination where a new socket's differ.

Copying only what differs keeps the destination's own defaults, and needs no privilege for an option that
nobody has touched.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

import msgspec

from live_migration._lm import lib
from live_migration.process.descriptors.open_file import Seen

INT = 4
LARGEST_OPTION = 64
ANY = (
    socket.SO_REUSEADDR, socket.SO_KEEPALIVE, socket.SO_BROADCAST, socket.SO_OOBINLINE, socket.SO_LINGER,
    socket.SO_RCVLOWAT, socket.SO_RCVTIMEO, socket.SO_SNDTIMEO, socket.SO_PRIORITY, socket.SO_MARK,
    socket.SO_DONTROUTE, lib.SO_TIMESTAMP, lib.SO_TIMESTAMPNS, lib.SO_RXQ_OVFL, lib.SO_NO_CHECK, lib.SO_BUSY_POLL,
    lib.SO_PREFER_BUSY_POLL,
)  # fmt: skip
UNIX = (socket.SO_PASSCRED, lib.SO_PASSSEC, lib.SO_PEEK_OFF)
INET = (socket.SO_REUSEPORT, lib.SO_ZEROCOPY)
IP = (
    socket.IP_TOS, socket.IP_TTL, socket.IP_MULTICAST_TTL, socket.IP_MULTICAST_LOOP, socket.IP_MULTICAST_IF,
    lib.IP_MULTICAST_ALL, lib.IP_MTU_DISCOVER, lib.IP_RECVERR, lib.IP_PKTINFO, lib.IP_RECVTTL, socket.IP_RECVTOS,
    lib.IP_FREEBIND, lib.IP_BIND_ADDRESS_NO_PORT, socket.IP_TRANSPARENT,
)  # fmt: skip
IPV6 = (
    socket.IPV6_V6ONLY, socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS, socket.IPV6_MULTICAST_LOOP,
    socket.IPV6_MULTICAST_IF, socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVTCLASS,
    socket.IPV6_TCLASS, socket.IPV6_DONTFRAG, lib.IPV6_MTU_DISCOVER, lib.IPV6_RECVERR, lib.IPV6_FREEBIND,
)  # fmt: skip
# Refused for a stream (net/ipv4/ip_sockglue.c, net/ipv6/ipv6_sockglue.c), and nothing that anybody has set in an
# accepted connection: the kernel keeps there by which device, and with how many hops left, the first packet came.
NOT_OF_STREAMS = frozenset(
    {
        (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), (socket.IPPROTO_IP, socket.IP_MULTICAST_IF),
        (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS), (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF),
    }
)  # fmt: skip
TCP = (
    socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_SYNCNT,
    socket.TCP_LINGER2, socket.TCP_DEFER_ACCEPT, socket.TCP_USER_TIMEOUT, socket.TCP_FASTOPEN, socket.TCP_CONGESTION,
    lib.TCP_NOTSENT_LOWAT,
)  # fmt: skip
SIZES = ((socket.SO_SNDBUF, lib.SO_SNDBUFFORCE, 1), (socket.SO_RCVBUF, lib.SO_RCVBUFFORCE, 2))


class Option(msgspec.Struct, frozen=True, array_like=True):
    """An option's level, number and value as getsockopt(2) gives it."""

    level: int
    name: int
    value: bytes


def has_filter(seen: Seen) -> bool:
    """Is it a socket with a filter (SO_ATTACH_FILTER, SO_ATTACH_BPF), which cannot be read back?"""
    return bool(lib.lm_has_socket_filter(seen.duplicate) == 1)


def is_socket(seen: Seen) -> bool:
    """Is it a socket of which everything can be read?"""
    return not seen.flags & os.O_PATH and not has_filter(seen)


def known_options(family: int, kind: int, protocol: int) -> list[tuple[int, int]]:
    """Levels and numbers of the options that sockets of this kind have and that travel."""
    found = [(socket.SOL_SOCKET, name) for name in ANY]
    if family == socket.AF_UNIX:
        return found + [(socket.SOL_SOCKET, name) for name in UNIX]
    found += [(socket.SOL_SOCKET, name) for name in INET]
    found += [(socket.IPPROTO_IP, name) for name in IP]
    if family == socket.AF_INET6:
        found += [(socket.IPPROTO_IPV6, name) for name in IPV6]
    if kind == socket.SOCK_STREAM:
        found = [option for option in found if option not in NOT_OF_STREAMS]
    if kind == socket.SOCK_STREAM and protocol == socket.IPPROTO_TCP:
        found += [(socket.IPPROTO_TCP, name) for name in TCP]
    return found


def read_options(one: socket.socket) -> list[Option]:
    """The options of a socket; those that this kernel does not have are left out."""
    found = []
    for level, name in known_options(one.family, one.type, one.proto):
        with contextlib.suppress(OSError):
            found.append(Option(level, name, one.getsockopt(level, name, LARGEST_OPTION)))
    with contextlib.suppress(OSError):
        found.append(Option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, one.getsockopt(1, socket.SO_BINDTODEVICE, 16)))
    return found + read_sizes(one)


def read_sizes(one: socket.socket) -> list[Option]:
    """The sizes of the buffers that were set by the process: SO_BUF_LOCK tells which (Linux 5.14)."""
    try:
        locked = one.getsockopt(socket.SOL_SOCKET, lib.SO_BUF_LOCK)
    except OSError:
        return []
    return [
        Option(socket.SOL_SOCKET, name, one.getsockopt(socket.SOL_SOCKET, name, INT))
        for name, _, lock in SIZES
        if locked & lock
    ]


def set_options(one: socket.socket, options: Iterable[Option]) -> None:
    """Give a new socket these options. Raises OSError naming the option's level and number."""
    for option in options:
        try:
            present = one.getsockopt(option.level, option.name, LARGEST_OPTION)
        except OSError:
            present = b""
        if present == option.value:
            continue
        try:
            set_option(one, option)
        except OSError as error:
            raise OSError(error.errno, f"socket option {option.level}/{option.name}: {error.strerror}") from error


def set_option(one: socket.socket, option: Option) -> None:
    """Set one option. Buffer sizes are doubled by the kernel when they are set (socket(7))."""
    for name, forced, _ in SIZES:
        if (option.level, option.name) == (socket.SOL_SOCKET, name):
            size = int.from_bytes(option.value, "little") // 2
            try:
                one.setsockopt(socket.SOL_SOCKET, forced, size)
            except PermissionError:
                # Without CAP_NET_ADMIN it is as large as net.core.rmem_max or wmem_max allows.
                one.setsockopt(socket.SOL_SOCKET, name, size)
            return
    one.setsockopt(option.level, option.name, option.value)
