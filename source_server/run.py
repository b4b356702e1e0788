"""One migration as the source has it: its parts, its phases, and its last words."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from live_migration.process.descriptors.contents import Content
from live_migration.source_server import custody as custodies
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.client import PageClient
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.precopy import LiveCopy
from live_migration.source_server.snapshot import SourceSnapshot
from live_migration.wire import messages
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.events import Events
from live_migration.wire.report import Report, write_report
from live_migration.wire.session import Session


@dataclass
class Run:
    """One migration, as the source has it: its parts and what becomes of them."""

    options: ServeOptions
    events: Events
    session: Session
    seen: SourceSnapshot
    control: ControlChannel
    store: PageStore
    client: PageClient
    custody: custodies.Custody
    report: Report
    same_machine: bool = False
    other_vdso: bool = False
    served: list[Content] = field(default_factory=list)
    copy: LiveCopy | None = None


def write(options: ServeOptions, events: Events, session: Session, report: Report) -> None:
    """Write the report, if one was asked for. A folder that has gone away meanwhile ends nothing."""
    session.fill(report)
    if options.report:
        try:
            write_report(options.report, report)
        except LocalError as error:
            events.note(str(error), 0)


def tell(control: ControlChannel, error: MigrationError) -> None:
    """Tell the other side why it ends here, if it can still hear."""
    with contextlib.suppress(MigrationError, OSError):
        if isinstance(error, Refused):
            control.send(messages.blockers_of(error), 2.0)
        elif not isinstance(error, ConnectionLost):
            control.send(messages.abort_of(error), 2.0)
