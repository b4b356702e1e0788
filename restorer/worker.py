"""The worker process: forked from the front at the start, it does the work and outlives it if need be."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback

import msgspec

from linux.own_name import call_ourselves
from restorer.custody import shared_page
from restorer.line import Line, Worker
from restorer.migrate import migrate
from restorer.options import RestoreOptions
from wire.errors import MigrationError, Refused
from wire.exit_codes import ExitCode

NAME = "lm-pager"
PURPOSE = "brings the memory of a moved process"


def start_worker(options: RestoreOptions) -> Worker:
    """Fork the worker. Call it while lm-restore has one thread."""
    ours, theirs = socket.socketpair()
    page = shared_page()
    pid = os.fork()
    if pid == 0:
        ours.close()
        status = int(ExitCode.BUG)
        try:
            status = _be_worker(options, Line(theirs, page))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    theirs.close()
    return Worker(pid, ours, page)


def _be_worker(options: RestoreOptions, line: Line) -> int:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    call_ourselves(NAME, PURPOSE)
    try:
        return migrate(options, line)
    except MigrationError as error:
        obstacles = list(error.obstacles) if isinstance(error, Refused) else []
        line.send(
            "failed",
            text=str(error),
            code=int(error.code),
            obstacles=[msgspec.to_builtins(obstacle) for obstacle in obstacles],
        )
        return int(error.code)
