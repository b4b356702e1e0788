"""An established TCP connection on its way: read from the source's socket, and restored in another one (tcp_repair.h).

Both sockets are in repair from then on, until it is decided where the process runs: they send nothing, also when they
are closed. What the winner does to its own is held as rows (held.py): the destination's begins to send, or the source's
goes on.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from typing import Annotated, Any

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.syscall_numbers import SYS_connect, SYS_sendto, SYS_setsockopt, SYS_shutdown
from live_migration.process.descriptors.held import DESCRIPTOR, Row
from live_migration.wire.blockers import Blocker

ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 3, 4, 5, 8, 9, 11
KEPT = frozenset((ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING))
INTEGER = struct.Struct("@i")
NOWHERE = struct.pack("@H14x", socket.AF_UNSPEC)
MOST_BYTES = 1 << 25
TCP_NOTSENT_LOWAT, NO_LIMIT = 25, (1 << 31) - 1

TCP = socket.IPPROTO_TCP
TOLD = int(ffi.sizeof("struct lm_tcp_connection"))
MOST_ROWS = 256


class TcpConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A connection of a frozen process. `told` is struct lm_tcp_connection.

    `received` are the bytes that have come and were not read, `written` those that the process has written and the peer
    has not acknowledged: the last of them may never have been sent.
    """

    told: Annotated[bytes, msgspec.Meta(min_length=TOLD, max_length=TOLD)]
    received: bytes = b""
    written: bytes = b""

    @property
    def fields(self) -> Any:
        """What is told, which belongs to this object."""
        return ffi.cast("struct lm_tcp_connection *", ffi.from_buffer(self.told))

    @property
    def state(self) -> int:
        """As in netinet/tcp.h."""
        return int(self.fields.state)


def read_connection(number: int) -> TcpConnection:
    """Begin repair of a socket whose packets are held back, and read its connection. Raises OSError."""
    told = ffi.new("struct lm_tcp_connection *")
    check(lib.lm_tcp_look(number, told), "reading a connection")
    packed = bytes(ffi.buffer(told))
    if not told.incoming and not told.outgoing:
        return TcpConnection(told=packed)
    if told.incoming + told.outgoing > MOST_BYTES:
        raise OSError(0, f"a connection with more than {MOST_BYTES >> 20} MiB on their way")
    incoming, outgoing = ffi.new("char[]", told.incoming or 1), ffi.new("char[]", told.outgoing or 1)
    length = check(lib.lm_tcp_read(number, told, incoming, outgoing), "reading what a connection has")
    received, written = bytes(ffi.buffer(incoming, told.incoming)), bytes(ffi.buffer(outgoing, length))
    return TcpConnection(told=packed, received=received, written=written)


def restore_connection(number: int, one: TcpConnection, peer: bytes, transparent: int) -> int:
    """Make a bound socket in repair the connection to `peer`, a socket address, and then leave it transparent or not
    (IP_TRANSPARENT). Returns how many of the written bytes it has. Raises OSError."""
    written, unread = ffi.from_buffer(one.written), ffi.from_buffer(one.received)
    moved = ffi.new("struct lm_tcp_bytes *", (written, len(one.written), unread, len(one.received)))
    return check(
        lib.lm_tcp_restore(number, one.fields, peer, len(peer), moved, transparent), "restoring a connection"
    )


def check(result: int, what: str) -> int:
    """The result of a call. Raises OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def extra_blockers(name: str, state: int, number: int) -> list[Blocker]:
    """What passes, of a connection or of one that is about to be one, and does not move now. Raises OSError."""
    if state not in KEPT:
        return [Blocker(name, "a connection that is being made", "try again when it stands")]
    found = check(lib.lm_tcp_extra(number), "a connection's state")
    if found == lib.LM_TCP_URGENT:
        return [Blocker(name, "a connection with an urgent byte that was not read", "try again when it was read")]
    if found == lib.LM_TCP_ERROR:
        return [Blocker(name, "a connection with an error or a report that was not read", "try again when it was read")]
    if found == lib.LM_TCP_SIGNED:
        return [Blocker(name, "a connection with keys (TCP-AO)", "let it end before the move, or use --tcp close")]
    return []


def option_row(level: int, option: int, value: int) -> Row:
    """Sets an option of the socket that the rows are about."""
    packed = INTEGER.pack(value)
    return Row(SYS_setsockopt, (DESCRIPTOR, level, option, packed, len(packed)))


def repaired_options(number: int) -> tuple[int, int, int, int]:
    """SO_REUSEADDR, SO_OOBINLINE, SO_KEEPALIVE and TCP_USER_TIMEOUT of a socket. Raises OSError."""
    found = ffi.new("struct lm_tcp_options *")
    check(lib.lm_tcp_options(number, found), "the options of a connection")
    return found.reuse, found.in_line, found.keepalive, found.user_timeout


@functools.lru_cache(MOST_ROWS)
def calmed_rows(keepalive: int, user_timeout: int) -> tuple[Row, ...]:
    """What may end a connection by itself may do so again."""
    wanted = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive), (TCP, lib.TCP_USER_TIMEOUT, user_timeout))
    return tuple(option_row(*one) for one in wanted if one[2])


@functools.cache
def ended_at_source() -> tuple[Row, ...]:
    """After COMMIT, at the source: the socket has no connection any more, and nothing is sent."""
    return (Row(SYS_connect, (DESCRIPTOR, NOWHERE, len(NOWHERE))),)


@functools.lru_cache(MOST_ROWS)
def goes_on(reused: int, in_line: int, keepalive: int, user_timeout: int) -> tuple[Row, ...]:
    """What makes a socket at the source that is about to be repaired go on, with its options as they were."""
    # Ending repair takes SO_REUSEADDR away; the other one is changed for a moment (lm_tcp_extra).
    reuse = [option_row(socket.SOL_SOCKET, socket.SO_REUSEADDR, reused)] if reused else []
    reuse.append(option_row(socket.SOL_SOCKET, socket.SO_OOBINLINE, in_line))
    return (option_row(TCP, lib.TCP_REPAIR, lib.TCP_REPAIR_OFF_NO_WP), *reuse, *calmed_rows(keepalive, user_timeout))


def shut_rows(shut: int | None) -> tuple[Row, ...]:
    """What shuts it."""
    return () if shut is None else (Row(SYS_shutdown, (DESCRIPTOR, shut)),)


def begins(
    reused: int, keepalive: int, user_timeout: int, shut: int | None, sent: tuple[Row, ...] = ()
) -> tuple[Row, ...]:
    """After COMMIT, at the destination: what makes a restored connection go on. Ending repair asks the peer for what it
    has and wants (a window probe). `shut` is how it was shut (shutdown(2)), None: it was not; `sent` writes what never
    was."""
    reuse = [option_row(socket.SOL_SOCKET, socket.SO_REUSEADDR, reused)] if reused else []
    repaired = (option_row(TCP, lib.TCP_REPAIR, lib.TCP_REPAIR_OFF), *reuse)
    return (*repaired, *sent, *shut_rows(shut), *calmed_rows(keepalive, user_timeout))


@functools.lru_cache(MOST_ROWS)
def begins_at_once(reused: int, keepalive: int, user_timeout: int, shut: int | None) -> tuple[Row, ...]:
    """The same where nothing is to be sent: one table of rows for all that are alike."""
    return begins(reused, keepalive, user_timeout, shut)


def how_shut(one: TcpConnection) -> int | None:
    """How shutdown(2) is to shut it, None: not at all."""
    how = {(True, True): socket.SHUT_RDWR, (True, False): socket.SHUT_WR, (False, True): socket.SHUT_RD}
    return how.get((bool(lib.lm_tcp_has_sent_fin(one.fields)), bool(one.fields.reads_no_more)))


def sends(number: int, rest: bytes) -> tuple[Row, ...]:
    """Rows that write bytes, with room for them meanwhile. Raises OSError."""
    with socket.socket(fileno=os.dup(number)) as one:
        size = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        locked = one.getsockopt(socket.SOL_SOCKET, lib.SO_BUF_LOCK)
        lowest = one.getsockopt(TCP, TCP_NOTSENT_LOWAT)
    written = check(lib.lm_tcp_written(number), "what a connection has sent")
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    return (
        # A limit to what was not sent would end the writing before it is through.
        option_row(TCP, TCP_NOTSENT_LOWAT, NO_LIMIT),
        option_row(socket.SOL_SOCKET, lib.SO_SNDBUFFORCE, size + 4 * len(rest) + (1 << 20)),
        Row(SYS_sendto, (DESCRIPTOR, rest, len(rest), flags, 0, 0), expected=len(rest), written=written),
        option_row(socket.SOL_SOCKET, lib.SO_SNDBUFFORCE, size // 2),
        option_row(socket.SOL_SOCKET, lib.SO_BUF_LOCK, locked),
        option_row(TCP, TCP_NOTSENT_LOWAT, lowest),
    )


