"""After COMMIT: serve pages and forward signals until the destination has everything; then the source's copy leaves.

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
from live_migration.source_server.phases import Connected, Copied, write
from live_migration.wire import messages
from live_migration.wire.control import Odd
from live_migration.wire.errors import MigrationError, ProtocolError
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Bytes, Faults, Pages
from live_migration.wire.session import Event

TICK_MS = 200


def tell_hot(copied: Copied) -> None:
    """Tell the destination what was touched last. It is a help, nothing more: no failure of it counts."""
    copy = copied.copy
    hot = copy.hot() if copy.resume_at_once and not copy.is_to_correct else []
    if hot:
        with contextlib.suppress(MigrationError):
            copied.connected.control.send(messages.Hot(payload=messages.pack({copied.seen.space: hot})))


def serve_until_finished(connected: Connected, committed: handover.Committed) -> None:
    """Serve pages and forward signals until the destination has everything; then let the source's copy leave.

    A lost connection is a pause."""
    poll = select.poll()
    poll.register(connected.control.fileno(), select.POLLIN)
    poll.register(connected.client.event, select.POLLIN)
    while True:
        ready = [number for number, _ in poll.poll(TICK_MS)]
        try:
            connected.custody.ensure()
            handover.forward_signals(committed, connected.control)
            if connected.control.fileno() in ready and hear(connected, committed):
                return
            if connected.client.event in ready and take_state(connected.client) is not ClientState.CONNECTED:
                poll.unregister(connected.client.event)
                connected.events.note(f"the page connections ended: {connected.client.cause}", 1)
        except MigrationError as error:
            stalled(connected, error, str(error))
        except Exception as error:
            # Even an error of lm-serve's own must not end it: the client's threads go on serving.
            traceback.print_exc()
            stalled(connected, error, repr(error))


def take_state(client: PageClient) -> ClientState:
    """The client's state, with its event armed again."""
    with contextlib.suppress(BlockingIOError):
        os.read(client.event, 8)
    return client.state


def take_counts(connected: Connected, payload: msgspec.Raw) -> None:
    """The destination's counts go into both reports. It harms nobody if the peer sends none."""
    try:
        counted = messages.unpack(payload, tuple[Pages, Bytes, Faults])
        connected.report.pages, connected.report.bytes, connected.report.faults = counted
    except ProtocolError as error:
        note_odd(connected, error.cause)


def note_odd(connected: Connected, cause: str) -> None:
    """Report that a message of the destination cannot be used."""
    connected.events.note(f"a message of lm-restore cannot be used and is passed over: {cause}", 0)


def hear(connected: Connected, committed: handover.Committed) -> bool:
    """Receive one message; returns whether the migration is over. Raises MigrationError when no more will come."""
    message = connected.control.hear(messages.Resumed, messages.Progress, messages.Finished)
    if isinstance(message, Odd):
        note_odd(connected, message.cause)
    elif isinstance(message, messages.Resumed):
        frozen = committed.frozen_ns + connected.control.round_trip_ns // 2 + message.resume_ns
        connected.report.downtime_ms = frozen / 1e6
        connected.session.happened(Event.RESUMED)
    elif isinstance(message, messages.Progress):
        connected.events.progress(message.pages, message.pages_total, message.faults)
    elif isinstance(message, messages.Finished):
        failpoint("source-finished")
        take_counts(connected, message.payload)
        connected.custody.finished()
        handover.leave(committed, connected.options.exit_status)
        with contextlib.suppress(MigrationError):
            connected.control.send(messages.Goodbye())
        connected.session.happened(Event.FINISHED)
        connected.events.emit("complete", connected.options.pid)
        return True
    return False


def stalled(connected: Connected, error: Exception, cause: str) -> None:
    """The connection is gone after COMMIT: keep the memory, say so, and wait for SIGKILL."""
    connected.session.ended_by(error)
    connected.events.emit("stalled", connected.options.pid, cause=cause)
    connected.events.note(f"the connection is lost ({cause}); {connected.session.said(connected.options.pid)}", 0)
    write(connected)
    while True:
        signal.pause()
