"""The options of lm-serve; cli/serve_options.py reads them from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from live_migration.wire.events import Watching
from live_migration.wire.meeting_point import Meeting


@dataclass(frozen=True)
class ServeOptions:
    """The options of lm-serve.

    reattach          instead of moving `pid`: go on for this process, whose lm-serve was killed; 0: none
    meeting           where to listen, or the ticket of the destination that listens
    check             only list the blockers
    bandwidth_limit   bytes per second for bulk; None: no limit
    compress          "auto", "none", or a level of zstd from 1 to 19
    max_freeze        seconds after which the source thaws
    exit_status       of the source's copy when it leaves
    reconnect_timeout seconds after which a connection that was lost after COMMIT is given up; None: never
    report            file for the report
    json, verbose     how to show events
    json_fd           a descriptor that every event goes to, for a program that reads it
    watching          what programs are told
    """

    pid: int
    meeting: Meeting
    check: bool
    bandwidth_limit: int | None
    compress: str | int
    max_freeze: float
    exit_status: int
    report: str | None
    json: bool
    verbose: int
    json_fd: int | None = None
    watching: Watching = field(default_factory=Watching)
    reattach: int = 0
    reconnect_timeout: float | None = None
