"""After COMMIT: pages are served and signals forwarded until the destination has everything; then the source leaves.

A lost connection is a pause.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import traceback

import msgspec

from live_migration.source_server import handover
from live_migration.source_server.pages.client import ClientState, PageClient
from live_migration.source_server.run import Run, write
from live_migration.wire import messages
from live_migration.wire.control import Odd
from live_migration.wire.errors import MigrationError, ProtocolError
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Bytes, Faults, Pages
from live_migration.wire.session import Event

TICK_MS = 200


def tell_hot(run: Run) -> None:
    """Tell the destination what was touched last. It is a help, nothing more: no failure of it counts."""
    assert run.copy is not None
    hot = run.copy.hot() if run.copy.resume_at_once and not run.copy.is_to_correct else []
    if hot:
        with contextlib.suppress(MigrationError):
            run.control.send(messages.Hot(payload=messages.pack({run.seen.space: hot})))


def serve_until_finished(run: Run, committed: handover.Committed) -> None:
    """Serve pages and forward signals until the destination has everything; then let the source leave.

    A lost connection is a pause."""
    poll = select.poll()
    poll.register(run.control.fileno(), select.POLLIN)
    poll.register(run.client.event, select.POLLIN)
    while True:
        ready = [number for number, _ in poll.poll(TICK_MS)]
        try:
            handover.forward_signals(committed, run.control)
            if run.control.fileno() in ready and hear(run, committed):
                return
            if run.client.event in ready and take_state(run.client) is not ClientState.CONNECTED:
                poll.unregister(run.client.event)
                run.events.note(f"the page connections ended: {run.client.cause}", 1)
        except MigrationError as error:
            stalled(run, error, str(error))
        except Exception as error:
            # Even an error of lm-serve's own must not end it: the client's threads serve on.
            traceback.print_exc()
            stalled(run, error, repr(error))


def take_state(client: PageClient) -> ClientState:
    """The server's state, with its event armed again."""
    with contextlib.suppress(BlockingIOError):
        os.read(client.event, 8)
    return client.state


def take_counts(run: Run, payload: msgspec.Raw) -> None:
    """What the destination has counted is the truth of both reports. A peer that tells nothing of it loses nobody."""
    try:
        counted = messages.unpack(payload, tuple[Pages, Bytes, Faults])
        run.report.pages, run.report.bytes, run.report.faults = counted
    except ProtocolError as error:
        note_odd(run, error.cause)


def note_odd(run: Run, cause: str) -> None:
    """Say that a message of the destination came to nothing."""
    run.events.note(f"a message of lm-restore cannot be used and is passed over: {cause}", 0)


def hear(run: Run, committed: handover.Committed) -> bool:
    """Take one message; whether the migration is over. Raises MigrationError when no more will come."""
    message = run.control.hear(messages.Resumed, messages.Progress, messages.Finished)
    if isinstance(message, Odd):
        note_odd(run, message.cause)
    elif isinstance(message, messages.Resumed):
        frozen = committed.frozen_ns + run.control.round_trip_ns // 2 + message.resume_ns
        run.report.downtime_ms = frozen / 1e6
        run.session.happened(Event.RESUMED)
    elif isinstance(message, messages.Progress):
        run.events.progress(message.pages, message.pages_total, message.faults)
    elif isinstance(message, messages.Finished):
        failpoint("source-finished")
        take_counts(run, message.payload)
        handover.leave(committed, run.options.exit_status)
        with contextlib.suppress(MigrationError):
            run.control.send(messages.Goodbye())
        run.session.happened(Event.FINISHED)
        run.events.emit("complete", run.options.pid)
        return True
    return False


def stalled(run: Run, error: Exception, cause: str) -> None:
    """The connection is gone after COMMIT: keep the memory, say so, and wait for SIGKILL."""
    run.session.ended_by(error)
    run.events.emit("stalled", run.options.pid, cause=cause)
    run.events.note(f"the connection is lost ({cause}); {run.session.said(run.options.pid)}", 0)
    write(run.options, run.events, run.session, run.report)
    while True:
        signal.pause()
