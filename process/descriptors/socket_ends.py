"""What becomes of the source's connections and listeners after COMMIT, as rows of system calls.

The copy at the source never runs again, and its exit would reset connections with unread data. So each gets a clean
end: a FIN, and then what the peer has sent is thrown away. A listener stops listening, so that clients go elsewhere at
once instead of waiting in its queue.
"""

from __future__ import annotations

import fcntl
import os
import socket

from live_migration.kernel.injection.syscall_numbers import SYS_accept4, SYS_fcntl, SYS_recvfrom, SYS_shutdown
from live_migration.process.descriptors.held import BUFFER, BUFFER_BYTES, DESCRIPTOR, RESULT, Row, Special

MOST_DISCARDED = 64 << 20
LATE_CONNECTIONS = 16
"""So many may have come to a listener's queue since the snapshot."""


def end_connection(connection: Special = DESCRIPTOR) -> tuple[Row, ...]:
    """Send FIN and throw away what has arrived: closing with unread data would send a reset (tcp(7))."""
    receive = (connection, BUFFER, BUFFER_BYTES, socket.MSG_DONTWAIT | socket.MSG_TRUNC, 0, 0)
    return (
        Row(SYS_shutdown, (connection, socket.SHUT_WR)),
        Row(SYS_recvfrom, receive, most=MOST_DISCARDED // BUFFER_BYTES),
    )


def stop_listening(flags: int, waiting: int) -> tuple[Row, ...]:
    """Accept and end what waits, then stop listening. `flags` are the listener's."""
    return (
        Row(SYS_fcntl, (DESCRIPTOR, fcntl.F_SETFL, flags | os.O_NONBLOCK)),
        Row(
            SYS_accept4,
            (DESCRIPTOR, 0, 0, socket.SOCK_CLOEXEC),
            most=waiting + LATE_CONNECTIONS,
            each=end_connection(RESULT),
        ),
        Row(SYS_fcntl, (DESCRIPTOR, fcntl.F_SETFL, flags)),
        Row(SYS_shutdown, (DESCRIPTOR, socket.SHUT_RDWR)),
    )
