"""The phases of a migration as the destination has it. Each is a type, a step takes one and returns the next:

Connected -> Started -> Staged -> Frozen -> Armed -> Running
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from live_migration.pager.pager import Pager
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.migration import Migration
from live_migration.restorer import stage as build
from live_migration.restorer.custody import Custody
from live_migration.restorer.frontend_line import Line
from live_migration.restorer.husk_process import HuskProcess
from live_migration.restorer.kept import Kept
from live_migration.restorer.options import RestoreOptions
from live_migration.wire import messages
from live_migration.wire.account import Account
from live_migration.wire.connection import Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Report, write_report
from live_migration.wire.session import Session


@dataclass(frozen=True)
class Connected:
    """The two sides are connected. All later phases refer to it.

    `network` is the network namespace of the process, -1: that of lm-restore. `undo` takes back what was made here, in
    this order: the husk ends first."""

    options: RestoreOptions
    descriptor_options: DescriptorOptions
    line: Line
    roles: Roles
    decision: socket.socket
    control: ControlChannel
    session: Session
    report: Report
    network: int = -1
    account: Account = field(default_factory=Account)
    undo: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True)
class Started:
    """No blocker was found in the description, and there is a husk with its custodian, still empty."""

    connected: Connected
    described: Migration
    husk: HuskProcess
    custody: Custody


@dataclass
class Staged:
    """The husk is filled, and follows the source: it was last laid out for `described`."""

    connected: Connected
    described: Migration
    husk: HuskProcess
    custody: Custody
    building: build.Construction
    pager: Pager
    kept: Kept

    @property
    def repairs(self) -> bool:
        """Whether connections move to sockets of this host's own: not, where they are handed over themselves."""
        return self.custody.network.prepared


@dataclass(frozen=True)
class Frozen:
    """The process stands still at the source, and `final` describes it.

    resume_at_once  before the last page has arrived
    since           seconds since the epoch
    held            what is released when the process runs, or when nobody knows whether it will
    """

    staged: Staged
    final: Migration
    resume_at_once: bool
    since: float
    held: contextlib.ExitStack

    @property
    def is_short(self) -> bool:
        """Whether the freeze is over in milliseconds, unless something goes wrong that a custodian deals with."""
        return self.resume_at_once and self.staged.custody.guarded


@dataclass(frozen=True)
class Armed:
    """All is restored, and our death leaves the process as it is; `ready` is READY, as it will be sent."""

    frozen: Frozen
    ready: bytes


@dataclass(frozen=True)
class Running:
    """The process runs here. `kept`: what another worker would need to go on; `custody`: None if another one had it.
    `ledger`: of a worker that had every page, and could not tell the source any more."""

    connected: Connected
    husk: HuskProcess
    custody: Custody | None
    pager: Pager
    kept: Kept
    resume_at_once: bool
    ledger: int = -1


def tell(control: ControlChannel, error: MigrationError) -> None:
    """Tell the source why the migration ends here, if it can still be reached."""
    with contextlib.suppress(MigrationError, OSError):
        if isinstance(error, Refused):
            control.send(messages.blockers_of(error), 2.0)
        elif not isinstance(error, ConnectionLost):
            control.send(messages.abort_of(error), 2.0)


def reached(connected: Connected, name: str) -> None:
    """The failpoint `name` is reached. Nothing can be taken back any more, so a failure is only reported."""
    try:
        failpoint(name)
    except MigrationError as error:
        if connected.session.may_fail():
            raise
        connected.session.note(f"{error}; the process goes on here")


def measure(connected: Connected) -> None:
    """Complete the report, and tell the frontend, if it is to write figures."""
    connected.session.fill(connected.report)
    connected.report.downtime_us = connected.account.in_us()
    if connected.options.watching.metrics:
        connected.line.send("measured", report=msgspec.to_builtins(connected.report))


def write(connected: Connected) -> None:
    """Write the report, if the user wants one. It ends nothing if the folder has gone away meanwhile."""
    measure(connected)
    if connected.options.report:
        try:
            write_report(connected.options.report, connected.report)
        except LocalError as error:
            connected.line.send("note", text=str(error), level=0)
