"""On the source, after COMMIT: what becomes of its connections and listeners, through the duplicates of the
frozen look.

The copy here never runs again, and its exit would reset connections with unread data. So each gets a clean
end: FIN, then what the peer has sent is thrown away. A listener stops listening, so that clients go
elsewhere at once instead of waiting in its queue. What the destination took over as it is, on one machine,
is left alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection

from live_migration.process.descriptors.inet_sockets import TCP_LISTEN, InetSocket
from live_migration.process.descriptors.table import Table
from live_migration.process.descriptors.unix_sockets import LISTENING, UnixSocket

MOST_DISCARDED = 64 << 20


def retire_sockets(table: Table, duplicates: dict[int, int], handed_over: Collection[int]) -> None:
    """End the connections and listeners of the source copy; `handed_over` are inodes that the destination
    uses.
    """
    for one in table.descriptions:
        kind = one.object
        if not isinstance(kind, InetSocket | UnixSocket) or kind.inode in handed_over or one.standard is not None:
            continue
        number = duplicates.get(one.identity)
        if number is None:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as duplicate:
            if kind.state == (TCP_LISTEN if isinstance(kind, InetSocket) else LISTENING):
                stop_listening(duplicate, kind.waiting)
            elif isinstance(kind, InetSocket) and kind.is_established:
                end_connection(duplicate)


def stop_listening(listener: socket.socket, waiting: int) -> None:
    """Accept and end what waits, then listen no more."""
    present = os.get_blocking(listener.fileno())
    os.set_blocking(listener.fileno(), False)
    try:
        for _ in range(waiting + 16):
            connection, _ = listener.accept()
            with connection:
                end_connection(connection)
    except BlockingIOError:
        pass
    finally:
        os.set_blocking(listener.fileno(), present)
    listener.shutdown(socket.SHUT_RDWR)


def end_connection(connection: socket.socket) -> None:
    """Send FIN and throw away what has arrived: closing with unread data would send a reset (tcp(7))."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    discarded = 0
    with contextlib.suppress(OSError):
        while discarded < MOST_DISCARDED:
            taken = len(connection.recv(1 << 20, socket.MSG_DONTWAIT | socket.MSG_TRUNC))
            if not taken:
                return
            discarded += taken
