"""How the two sides come together: one listens and makes the ticket, the other comes with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from live_migration.wire.addresses import address_to_print, is_loopback
from live_migration.wire.connection import Listener, Roles, connect_roles
from live_migration.wire.errors import MigrationError
from live_migration.wire.handshake import Side
from live_migration.wire.reception import accept_roles
from live_migration.wire.ticket import Ticket, make_ticket, write_ticket_file


@dataclass(frozen=True)
class Meeting:
    """Where to meet; either `ticket` or `listen` is given.

    ticket        connect with it
    listen        (host, port) to listen on, port 0 for a free one
    with_secret   does the ticket of a listener get a secret?
    ticket_file   where a listener writes the ticket, too
    """

    ticket: Ticket | None = None
    listen: tuple[str, int] | None = None
    with_secret: bool = True
    ticket_file: str | None = None


class Announcer(Protocol):
    """Who is told of the ticket, and of strangers that were turned away: wire.events.Events, or a line
    to it.
    """

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None: ...

    def note(self, text: str, level: int = 1) -> None: ...


def command_for(side: str, ticket: Ticket) -> str:
    """What to run on the other side, when `side` ("source" or "destination") has made this ticket."""
    text = shlex.quote(str(ticket))
    if not ticket.secret and not is_loopback(ticket.host):
        text += " --insecure"
    return f"lm-restore --post-copy {text}" if side == "source" else f"lm-serve PID --to {text}"


def meet(meeting: Meeting, side: str, announcer: Announcer, *, pid: int = 0, watch: Sequence[int] = ()) -> Roles | None:
    """Connect, or listen and wait as long as it takes; the three authenticated connections of `side`.

    None when a descriptor of `watch` became readable while waiting. Who was turned away is told, and
    the wait goes on. LocalError and ProtocolError as in wire/connection.py.
    """
    own = Side[side.upper()]
    if meeting.ticket is not None:
        return connect_roles(meeting.ticket, own)
    host, port = meeting.listen or ("127.0.0.1", 0)
    listener = Listener(host, port)
    try:
        ticket = make_ticket(address_to_print(host), listener.port, with_secret=meeting.with_secret)
        if meeting.ticket_file:
            write_ticket_file(meeting.ticket_file, ticket)
        announcer.ticket(ticket, command_for(side, ticket), pid)

        def turned_away(error: MigrationError) -> None:
            announcer.note(str(error), 0)

        return accept_roles(listener, ticket.secret, own, watch=watch, on_refused=turned_away)
    finally:
        listener.close()
