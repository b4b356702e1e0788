"""One migration as the destination has it: its parts, its phases, and its last words."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from live_migration.pager.pager import Pager
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.migration import Migration
from live_migration.restorer import stage as build
from live_migration.restorer.custody import Custody
from live_migration.restorer.frontend_line import Line
from live_migration.restorer.husk_process import HuskProcess
from live_migration.restorer.options import RestoreOptions
from live_migration.wire import messages
from live_migration.wire.connection import Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Report, write_report
from live_migration.wire.session import Session


@dataclass
class Run:
    """One migration, as the destination has it. `resume_at_once`: before the last page has arrived, as the source has
    said in the end. `frozen`: when it was, seconds since the epoch. `while_frozen`: what ends when the process runs, or
    when nobody knows whether it will."""

    options: RestoreOptions
    descriptor_options: DescriptorOptions
    line: Line
    roles: Roles
    control: ControlChannel
    session: Session
    report: Report
    husk: HuskProcess | None = None
    custody: Custody | None = None
    building: build.Construction | None = None
    pager: Pager | None = None
    staged: Migration | None = None
    final: Migration | None = None
    resume_at_once: bool = True
    frozen: float = 0.0
    while_frozen: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def tell(control: ControlChannel, error: MigrationError) -> None:
    """Tell the source why it ends here, if it can still hear."""
    with contextlib.suppress(MigrationError, OSError):
        if isinstance(error, Refused):
            control.send(messages.blockers_of(error), 2.0)
        elif not isinstance(error, ConnectionLost):
            control.send(messages.abort_of(error), 2.0)


def reached(run: Run, name: str) -> None:
    """The failpoint `name` is reached. Where nothing can be taken back any more a failure is said, and nothing else."""
    try:
        failpoint(name)
    except MigrationError as error:
        if run.session.may_fail():
            raise
        run.line.send("note", text=f"{error}; the process goes on here", level=0)


def write(run: Run) -> None:
    """Write the report, if one was asked for. A folder that has gone away meanwhile ends nothing."""
    run.session.fill(run.report)
    if run.options.report:
        try:
            write_report(run.options.report, run.report)
        except LocalError as error:
            run.line.send("note", text=str(error), level=0)
