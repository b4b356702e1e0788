"""The events of a command for its reader. The command line shows them (cli/rendering.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import MigrationError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.report import Report
from live_migration.wire.ticket import Ticket


@dataclass(frozen=True)
class Watching:
    """What is told to programs, beside the reader: a line for each stage on a descriptor; figures in a file."""

    status_fd: int | None = None
    metrics: str | None = None


class Events(Protocol):
    """What one command reports."""

    def emit(self, event: str, pid: int, **details: Any) -> None:
        """Something happened to process `pid` (0: to none). `details` are for --json, as they are."""

    def progress(self, pages: int, total: int, faults: int) -> None:
        """How many pages have arrived. Call it as often as a terminal should be redrawn, some ten times a second.
        """

    def note(self, text: str, level: int = 1) -> None:
        """A sentence for a reader with that many -v; level 0: for every reader."""

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None:
        """The port listens: the ticket, and what to run on the other side."""

    def checked(self, pid: int, blockers: Sequence[Blocker]) -> ExitCode:
        """The result of --check, and the status that says the same."""

    def measured(self, report: Report) -> None:
        """What is known of the move so far, in figures."""

    def result(self, report: Report) -> None:
        """It has ended well, with this report."""

    def failed(self, error: MigrationError, pid: int = 0) -> None:
        """It ends with this error."""

    def failed_in_words(self, text: str, code: int, pid: int, blockers: Sequence[dict[str, str]]) -> None:
        """It ends with an error that another process of this side has put into words."""
