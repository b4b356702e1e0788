"""The frontend of lm-restore: what the user sees, the exit status, and signals.

A worker does the work, forked here at the start, in a session of its own: it traces the husk, speaks with the source
and runs the pager. Ctrl-C, a traceback or SIGKILL of the frontend does not take the pager along. Until the destination
has sent READY, the worker gives up when the frontend dies; after that it carries on alone.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from live_migration.pager.keeper import find_keepers
from live_migration.restorer.custody import await_outcome
from live_migration.restorer.frontend_line import Worker
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.worker import start_worker
from live_migration.wire.errors import LocalError
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import check_fault
from live_migration.wire.report import Report
from live_migration.wire.session import DESTINATION, HuskRecord, State
from live_migration.wire.ticket import parse_ticket

MOST_REPLACED = 20
PAUSE_SECONDS = 0.05
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Frontend:
    """What the frontend knows so far; `status` is the exit status, once known. `worker_stays`: it has more to do."""

    options: RestoreOptions
    events: Events
    worker: Worker
    pid: int = 0
    frozen: bool = False
    resumed: bool = False
    stopping: bool = False
    complete: bool = False
    ending: str = ""
    replaced: int = 0
    worker_stays: bool = False
    status: int | None = None


def run(options: RestoreOptions, events: Events) -> int:
    """Take the process over; the exit status of lm-restore."""
    check_fault()
    # Before the fork, so that what it imports is there in both.
    worker = start_worker(options)
    frontend = Frontend(options, events, worker, options.reattach)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in FORWARDED:
        signal.signal(number, lambda *_: None)
    while frontend.status is None:
        ready, _, _ = select.select([frontend.worker.news.fileno(), wake_read], [], [])
        if wake_read in ready:
            for arrived in os.read(wake_read, 64):
                _signal(frontend, arrived)
        if frontend.worker.news.fileno() in ready and not _hear(frontend) and not _replace_worker(frontend):
            break
    if frontend.status is None:
        return _worker_is_gone(frontend)
    if not frontend.stopping and not frontend.worker_stays:
        frontend.worker.reap()
    return frontend.status


def _signal(frontend: Frontend, number: int) -> None:
    """A signal for lm-restore: before the resume it ends the migration, afterwards it is for the process."""
    if number not in FORWARDED:
        return
    if frontend.resumed:
        frontend.worker.tell("signal", number)
    elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if frontend.stopping:
            # A second one: end at once. The worker notices, and does what is right at that point.
            frontend.status = int(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED)
        frontend.stopping = True
        frontend.worker.tell("stop", number)


def _hear(frontend: Frontend) -> bool:
    """Take the worker's news; False when there will be none any more."""
    for line in frontend.worker.read():
        _show(frontend, line)
        if frontend.status is not None:
            return True
    return not frontend.worker.ended


def _show(frontend: Frontend, news: dict[str, Any]) -> None:
    kind = news.pop("event")
    pid = news.pop("pid", frontend.pid)
    if kind == "ticket":
        frontend.events.ticket(parse_ticket(news["ticket"]), news["command"])
    elif kind == "note":
        frontend.events.note(news["text"], news["level"])
    elif kind == "progress":
        frontend.events.progress(news["pages"], news["total"], news["faults"])
    elif kind == "measured":
        frontend.events.measured(msgspec.convert(news["report"], Report))
    elif kind == "result":
        frontend.events.result(msgspec.convert(news["report"], Report))
    elif kind == "exit":
        frontend.status = int(news["status"])
        frontend.worker_stays = bool(news["stays"])
    elif kind == "failed":
        frontend.events.failed_in_words(news["text"], news["code"], pid, news["blockers"])
        frontend.status = int(news["code"])
    else:
        frontend.pid = pid
        frontend.resumed = frontend.resumed or kind in ("resumed", "reattached")
        frontend.complete = frontend.complete or kind == "complete"
        frontend.frozen = frontend.frozen or kind == "frozen"
        frontend.events.emit(kind, pid, **news)


def _replace_worker(frontend: Frontend) -> bool:
    """The worker ended without a message. If the process runs here, another one brings what is missing (reattach.py).
    False when there is nothing to go on with."""
    frontend.ending = frontend.worker.reap()
    runs = frontend.resumed or await_outcome(frontend.worker.page).state is State.RESUMED
    # If they end again and again, it has a reason that another one will not remove.
    held = any(one.moved == frontend.pid for one in find_keepers())
    if not runs or not held or frontend.replaced == MOST_REPLACED:
        return False
    time.sleep(PAUSE_SECONDS * frontend.replaced)
    frontend.replaced += 1
    cause = f"the worker has ended ({frontend.ending}); another one goes on"
    frontend.events.note(cause, 0)
    page = frontend.worker.page
    frontend.worker = start_worker(replace(frontend.options, reattach=frontend.pid, source=None), page)
    return True


def _worker_is_gone(frontend: Frontend) -> int:
    """The worker ended without a message: it was killed, or there is a bug in it. Until READY the husk ends with it;
    from then on the custodian finds out what the source has decided, and acts on it (restorer/custody.h)."""
    how = frontend.ending
    found = await_outcome(frontend.worker.page)
    here, row = f"process {frontend.pid}", DESTINATION[State.RESUMED if frontend.resumed else found.state]
    said, code = row.said.format(pid=frontend.pid), row.code
    if frontend.complete:
        cause, remedy = f"its worker ended ({how}) when every page was there", f"{here} runs on"
    elif frontend.resumed or found.state is State.RESUMED:
        cause, remedy = f"its worker ended ({how}) after the handover", said
    elif found.state is State.IN_DOUBT:
        cause = f"its worker ended ({how}), and the connection ended during the handover"
        remedy = f"{here} is kept, stopped; {said}"
    elif found.state is State.READY:
        cause = f"its worker ended ({how}) during the handover"
        remedy = (
            f"{here} is kept, stopped, until its custodian (process {found.custodian}) hears what the source has "
            "decided; look at what lm-serve says"
        )
    elif found.record is not HuskRecord.UNARMED:
        cause = f"its worker ended ({how}) during the handover"
        remedy = "the source has not handed over: the process runs on there; try again"
    elif frontend.frozen and not found.guarded:
        cause = f"its worker ended ({how}) during the handover"
        remedy = "look at what lm-serve says: unless it has handed over, the process runs on at the source"
    else:
        cause, remedy = f"its worker ended ({how})", f"{said}; try again"
        code = code if how.startswith("killed") else ExitCode.BUG
    error = LocalError(step="the migration", object="lm-restore", cause=cause, remedy=remedy, code=code)
    frontend.events.failed(error, frontend.pid)
    return int(code)
