"""How the two sides come together: one listens and makes the ticket, the other comes with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Protocol

from live_migration.wire.addresses import address_to_print
from live_migration.wire.connection import Listener, Roles, connect_roles
from live_migration.wire.errors import MigrationError
from live_migration.wire.handshake import Side
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.reception import accept_roles
from live_migration.wire.stream import TlsContext
from live_migration.wire.ticket import Ticket, make_ticket, write_ticket_file

INSECURE = (
    "--insecure: nothing that travels is encrypted, and any user of this machine can take the process's memory or give "
    "it another"
)


class Announcer(Protocol):
    """Who is told of the ticket, and of strangers that were turned away: wire.events.Events, or a line
    to it.
    """

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None: ...

    def note(self, text: str, level: int = 1) -> None: ...


def command_for(side: str, ticket: Ticket) -> str:
    """What to run on the other side, when `side` ("source" or "destination") has made this ticket."""
    text = shlex.quote(str(ticket))
    if not ticket.secret:
        text += " --insecure"
    return f"lm-restore --post-copy {text}" if side == "source" else f"lm-serve PID --to {text}"


def meet(meeting: Meeting, side: str, announcer: Announcer, *, pid: int = 0, watch: Sequence[int] = ()) -> Roles | None:
    """Connect, or listen and wait as long as it takes; the three authenticated connections of `side`.

    None when a descriptor of `watch` became readable while waiting. Who was turned away is told, and
    the wait goes on. LocalError and ProtocolError as in wire/connection.py.
    """
    own, context = Side[side.upper()], TlsContext(meeting.certificates)
    if not meeting.with_secret:
        announcer.note(INSECURE, 0)
    if meeting.ticket is not None:
        return connect_roles(meeting.ticket, own, context=context)
    host, port = meeting.listen or ("127.0.0.1", 0)
    listener = Listener(host, port)
    try:
        ticket = make_ticket(address_to_print(host), listener.port, with_secret=meeting.with_secret)
        if meeting.ticket_file:
            write_ticket_file(meeting.ticket_file, ticket)
        announcer.ticket(ticket, command_for(side, ticket), pid)

        def turned_away(error: MigrationError) -> None:
            announcer.note(str(error), 0)

        return accept_roles(listener, ticket.secret, own, watch=watch, context=context, on_refused=turned_away)
    finally:
        listener.close()
