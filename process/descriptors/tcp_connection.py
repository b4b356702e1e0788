"""An established TCP connection on its way: read from the source's socket, and restored in another one (tcp_repair.h).

Both sockets are in repair from then on, until it is decided where the process runs: they send nothing, also when they
are closed. What the winner does to its own is held as rows (held.py): the destination's begins to send, or the source's
goes on.
"""

from __future__ import annotations

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
HAS_SENT_FIN = frozenset((FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING))
INTEGER = struct.Struct("@i")
NOWHERE = struct.pack("@H14x", socket.AF_UNSPEC)
MOST_BYTES = 1 << 25
TCP_NOTSENT_LOWAT, NO_LIMIT = 25, (1 << 31) - 1

U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Scale = Annotated[int, msgspec.Meta(ge=0, le=14)]


class TcpConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A connection of a frozen process. The first fields are those of struct lm_tcp_connection.

    `received` are the bytes that have come and were not read, `written` those that the process has written and the peer
    has not acknowledged: the last of them may never have been sent.
    """

    state: U32
    send_sequence: U32
    receive_sequence: U32
    outgoing: U32
    unsent: U32
    incoming: U32
    segment: U32
    options: U32
    send_scale: Scale
    receive_scale: Scale
    timestamp: U32
    send_buffer: U32
    receive_buffer: U32
    window_clamp: U32
    reads_no_more: U32
    window: tuple[U32, U32, U32, U32, U32]
    received: bytes
    written: bytes

    @property
    def has_sent_fin(self) -> bool:
        """Has the process shut its direction?"""
        return self.state in HAS_SENT_FIN

    @property
    def never_sent(self) -> int:
        """How many of the written bytes were never sent: without a FIN that follows them."""
        return min(len(self.written), max(0, self.unsent - (1 if self.has_sent_fin and self.unsent else 0)))

    @property
    def in_flight(self) -> bytes:
        """The written bytes that were sent."""
        return self.written[: len(self.written) - self.never_sent]

    @property
    def first(self) -> int:
        """The number of the first written byte."""
        return (self.send_sequence - len(self.written) - int(self.has_sent_fin)) % (1 << 32)


FIELDS = tuple(name for name in TcpConnection.__struct_fields__ if name not in ("window", "received", "written"))


def read_connection(number: int) -> TcpConnection:
    """Begin repair of a socket whose packets are held back, and read its connection. Raises OSError."""
    told = ffi.new("struct lm_tcp_connection *")
    check(lib.lm_tcp_look(number, told), "reading a connection")
    received, written = b"", b""
    if told.incoming or told.outgoing:
        if told.incoming + told.outgoing > MOST_BYTES:
            raise OSError(0, f"a connection with more than {MOST_BYTES >> 20} MiB on their way")
        incoming, outgoing = ffi.new("char[]", told.incoming or 1), ffi.new("char[]", told.outgoing or 1)
        length = check(lib.lm_tcp_read(number, told, incoming, outgoing), "reading what a connection has")
        received, written = bytes(ffi.buffer(incoming, told.incoming)), bytes(ffi.buffer(outgoing, length))
    fields = {name: int(getattr(told, name)) for name in FIELDS}
    return TcpConnection(**fields, window=tuple(told.window), received=received, written=written)


def restore_connection(number: int, one: TcpConnection, peer: bytes) -> None:
    """Make a bound socket in repair the connection to `peer`, a socket address. Raises OSError."""
    told: Any = ffi.new("struct lm_tcp_connection *", {name: getattr(one, name) for name in FIELDS})
    told.window = one.window
    flight, unread = ffi.from_buffer(one.in_flight), ffi.from_buffer(one.received)
    moved = ffi.new(
        "struct lm_tcp_bytes *",
        {
            "first": one.first,
            "received": (one.receive_sequence - len(one.received)) % (1 << 32),
            "in_flight": flight,
            "in_flight_length": len(one.in_flight),
            "unread": unread,
            "unread_length": len(one.received),
        },
    )
    check(lib.lm_tcp_restore(number, told, peer, len(peer), moved), "restoring a connection")


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


def calm_options(number: int) -> tuple[list[Row], list[Row]]:
    """Rows that keep a connection from ending by itself while nothing of it gets through, and those that take that
    back."""
    calming, back = [], []
    with socket.socket(fileno=os.dup(number)) as one:
        for level, option in ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, lib.TCP_USER_TIMEOUT)):
            if value := one.getsockopt(level, option):
                calming.append(option_row(level, option, 0))
                back.append(option_row(level, option, value))
    return calming, back


def calm(number: int) -> list[Row]:
    """Do that at once; the rows that take it back. Raises OSError."""
    calming, back = calm_options(number)
    with socket.socket(fileno=os.dup(number)) as one:
        for row in calming:
            _, level, option, value, _ = row.arguments
            assert isinstance(level, int)
            assert isinstance(option, int)
            assert isinstance(value, bytes)
            one.setsockopt(level, option, value)
    return back


def ended_at_source() -> tuple[Row, ...]:
    """After COMMIT, at the source: the socket has no connection any more, and nothing is sent."""
    return (Row(SYS_connect, (DESCRIPTOR, NOWHERE, len(NOWHERE))),)


def goes_on(number: int) -> tuple[Row, ...]:
    """What makes a socket at the source that is about to be repaired go on as it was. Raises OSError."""
    with socket.socket(fileno=os.dup(number)) as one:
        reused = one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        in_line = one.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    _, back = calm_options(number)
    # Ending repair takes SO_REUSEADDR away; the other one is changed for a moment (lm_tcp_extra).
    reuse = [option_row(socket.SOL_SOCKET, socket.SO_REUSEADDR, reused)] if reused else []
    reuse.append(option_row(socket.SOL_SOCKET, socket.SO_OOBINLINE, in_line))
    return (option_row(socket.IPPROTO_TCP, lib.TCP_REPAIR, lib.TCP_REPAIR_OFF_NO_WP), *reuse, *back)


def begins(number: int, one: TcpConnection, reused: int, back: list[Row]) -> tuple[Row, ...]:
    """After COMMIT, at the destination: what makes a restored connection go on. Ending repair asks the peer for what it
    has and wants (a window probe)."""
    rows = [option_row(socket.IPPROTO_TCP, lib.TCP_REPAIR, lib.TCP_REPAIR_OFF)]
    if reused:
        rows.append(option_row(socket.SOL_SOCKET, socket.SO_REUSEADDR, reused))
    if rest := one.written[len(one.in_flight) :]:
        rows += _send_rows(number, rest)
    how = {(True, True): socket.SHUT_RDWR, (True, False): socket.SHUT_WR, (False, True): socket.SHUT_RD}
    if (shut := how.get((one.has_sent_fin, bool(one.reads_no_more)))) is not None:
        rows.append(Row(SYS_shutdown, (DESCRIPTOR, shut)))
    return (*rows, *back)


def _send_rows(number: int, rest: bytes) -> list[Row]:
    """Rows that write bytes, with room for them meanwhile."""
    with socket.socket(fileno=os.dup(number)) as one:
        size = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        locked = one.getsockopt(socket.SOL_SOCKET, lib.SO_BUF_LOCK)
        lowest = one.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT)
    written = check(lib.lm_tcp_written(number), "what a connection has sent")
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    return [
        # A limit to what was not sent would end the writing before it is through.
        option_row(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NO_LIMIT),
        option_row(socket.SOL_SOCKET, lib.SO_SNDBUFFORCE, size + 4 * len(rest) + (1 << 20)),
        Row(SYS_sendto, (DESCRIPTOR, rest, len(rest), flags, 0, 0), expected=len(rest), written=written),
        option_row(socket.SOL_SOCKET, lib.SO_SNDBUFFORCE, size // 2),
        option_row(socket.SOL_SOCKET, lib.SO_BUF_LOCK, locked),
        option_row(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, lowest),
    ]


