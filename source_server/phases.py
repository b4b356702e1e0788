"""The phases of a migration as the source has it. Each is a type, a step takes one and returns the next:

    Connected -> Staged -> Copied -> Committed (source_server/handover.py)
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from live_migration.process.descriptors.contents import Content
from live_migration.source_server import custody as custodies
from live_migration.source_server.connections import Keeping
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.client import PageClient
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.precopy import LiveCopy
from live_migration.source_server.snapshot import SourceSnapshot
from live_migration.wire import messages
from live_migration.wire.account import Account
from live_migration.wire.connection import Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.events import Events
from live_migration.wire.report import Report, write_report
from live_migration.wire.session import Session
from live_migration.wire.strategy import Parameters


@dataclass(frozen=True)
class Connected:
    """The two sides are connected. All later phases refer to it."""

    options: ServeOptions
    events: Events
    session: Session
    roles: Roles
    control: ControlChannel
    store: PageStore
    client: PageClient
    custody: custodies.Custody
    report: Report
    account: Account = field(default_factory=Account)


@dataclass(frozen=True)
class Staged:
    """The husk stands at the destination, with what cannot be paged on demand.

    seen          the process as the destination knows it
    parameters    what the destination wants
    served        files without a path whose content is served
    same_machine  both sides are on one
    other_vdso    the destination's kernel has another one
    keeping       the connections and addresses that move; None: nothing of that kind
    """

    connected: Connected
    seen: SourceSnapshot
    parameters: Parameters
    served: list[Content]
    same_machine: bool
    other_vdso: bool
    keeping: Keeping | None = None


@dataclass(frozen=True)
class Copied:
    """What is copied while the process runs is at the destination: it can be frozen."""

    staged: Staged
    copy: LiveCopy

    @property
    def connected(self) -> Connected:
        """What all phases refer to."""
        return self.staged.connected

    @property
    def seen(self) -> SourceSnapshot:
        """The process as the destination knows it by now."""
        return self.copy.seen


def write(connected: Connected) -> None:
    """Write the report, if the user wants one. It ends nothing if the folder has gone away meanwhile."""
    connected.session.fill(connected.report)
    connected.report.downtime_us = connected.account.in_us()
    connected.events.measured(connected.report)
    if connected.options.report:
        try:
            write_report(connected.options.report, connected.report)
        except LocalError as error:
            connected.events.note(str(error), 0)


def tell(control: ControlChannel, error: MigrationError) -> None:
    """Tell the other side why the migration ends here, if it can still be reached."""
    with contextlib.suppress(MigrationError, OSError):
        if isinstance(error, Refused):
            control.send(messages.blockers_of(error), 2.0)
        elif not isinstance(error, ConnectionLost):
            control.send(messages.abort_of(error), 2.0)
