"""The worker's events go to the frontend, which shows them."""

from __future__ import annotations

from dataclasses import dataclass

from live_migration.restorer.frontend_line import Line
from live_migration.wire.ticket import Ticket


@dataclass
class FrontendEvents:
    """Passes events through the line to the frontend."""

    line: Line

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None:
        """The port listens."""
        self.line.send("ticket", ticket=str(ticket), command=command)

    def note(self, text: str, level: int = 1) -> None:
        """A sentence for a reader with that many -v."""
        self.line.send("note", text=text, level=level)
