"""Where the two sides meet, and what they have for that, as the options say it."""

from __future__ import annotations

from dataclasses import dataclass

from live_migration.wire.ticket import Ticket


@dataclass(frozen=True)
class Certificates:
    """PEM files: this host's certificate with its chain, its private key, and who has signed the other host's."""

    certificate: str
    key: str
    authority: str


@dataclass(frozen=True)
class Meeting:
    """Where to meet; either `ticket` or `listen` is given.

    ticket        connect with it
    listen        (host, port) to listen on, port 0 for a free one
    with_secret   does the ticket of a listener get a secret?
    ticket_file   where a listener writes the ticket, too
    certificates  an operator's own; both sides have some, or none
    """

    ticket: Ticket | None = None
    listen: tuple[str, int] | None = None
    with_secret: bool = True
    ticket_file: str | None = None
    certificates: Certificates | None = None
