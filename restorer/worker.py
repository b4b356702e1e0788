"""The worker process: forked from the frontend at the start, it does the work and outlives it if need be."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import traceback

import msgspec

from live_migration.kernel.own_name import call_ourselves
from live_migration.restorer.custody import shared_page
from live_migration.restorer.frontend_line import Line, Worker
from live_migration.restorer.migrate import migrate
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.reattach import reattach
from live_migration.wire.errors import MigrationError, Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import VARIABLE

NAME = "lm-pager"
PURPOSE = "brings the memory of a moved process"


def start_worker(options: RestoreOptions, page: mmap.mmap | None = None) -> Worker:
    """Fork the worker. Call it while lm-restore has one thread. `page`: that of a worker that this one replaces."""
    ours, theirs = socket.socketpair()
    page = page or shared_page()
    pid = os.fork()
    if pid == 0:
        ours.close()
        status = int(ExitCode.BUG)
        line = Line(theirs, page)
        try:
            status = _be_worker(options, line)
        except BaseException:
            traceback.print_exc()
        finally:
            line.drain()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    theirs.close()
    return Worker(pid, ours, page)


def _be_worker(options: RestoreOptions, line: Line) -> int:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # The frontend has installed handlers by now, if this is not its first worker.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    if options.reattach:
        # A fault is for one process.
        os.environ.pop(VARIABLE, None)
    # Whoever reads it is to see the frontend's end.
    if options.watching.status_fd is not None and options.watching.status_fd > 2:
        os.close(options.watching.status_fd)
    call_ourselves(NAME, PURPOSE)
    try:
        return reattach(options, line) if options.reattach else migrate(options, line)
    except MigrationError as error:
        blockers = list(error.blockers) if isinstance(error, Refused) else []
        line.send(
            "failed",
            text=str(error),
            code=int(error.code),
            blockers=[msgspec.to_builtins(blocker) for blocker in blockers],
        )
        return int(error.code)
