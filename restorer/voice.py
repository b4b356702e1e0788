"""The worker's voice: what it says goes to the front, which shows it (wire/events.py has the front's)."""

from __future__ import annotations

from dataclasses import dataclass

from restorer.line import Line
from wire.ticket import Ticket


@dataclass
class Voice:
    """Says through the line to the front what Events would say itself."""

    line: Line

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None:
        """The port listens."""
        self.line.send("ticket", ticket=str(ticket), command=command)

    def note(self, text: str, level: int = 1) -> None:
        """Something that a reader with that many -v wants to know."""
        self.line.send("note", text=text, level=level)
