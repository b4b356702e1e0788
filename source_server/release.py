"""After COMMIT: serve pages and forward signals until the destination has everything; then the source's copy leaves.

A lost connection is a pause: it is made again, and everything goes on (wire/again.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
import traceback
from dataclasses import dataclass

import msgspec

from live_migration.source_server import handover
from live_migration.source_server.pages.client import ClientState, PageClient
from live_migration.source_server.phases import Connected, Copied, write
from live_migration.wire import messages
from live_migration.wire.again import Doorway, Link
from live_migration.wire.control import Odd
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.report import Bytes, Faults, Pages
from live_migration.wire.session import Event

TICK_MS = 200
TELL_SECONDS = 10.0
# When the destination has everything, it closes the page connections and says so on CONTROL, at about the same time.
LAST_WORDS_SECONDS = 0.5
GOODBYE_SECONDS = 5.0


def tell_hot(copied: Copied) -> None:
    """Tell the destination what was touched last. It is a help, nothing more: no failure of it counts."""
    copy = copied.copy
    hot = copy.hot() if copy.resume_at_once and not copy.is_to_correct else []
    if hot:
        with contextlib.suppress(MigrationError):
            copied.connected.control.post(messages.Hot(payload=messages.pack({copied.seen.space: hot})))


@dataclass
class Serving:
    """The source's copy while its memory is served.

    pages_ended  when the page connections were found to have ended (CLOCK_MONOTONIC, seconds); 0: they have not
    told         when the user was last told what is waited for
    """

    connected: Connected
    committed: handover.Committed
    link: Link
    pages_ended: float = 0.0
    told: float = 0.0


def serve_until_finished(connected: Connected, committed: handover.Committed) -> None:
    """Serve pages and forward signals until the destination has everything; then let the source's copy leave.

    A lost connection is a pause. Raises LocalError (LOST_AFTER) when it is longer than --reconnect-timeout."""
    roles = connected.roles
    door = Doorway(connected.custody.command[0], roles.listener, lambda: False) if roles.listener else None
    link = Link(roles, Side.SOURCE, connected.control, door)
    serving = Serving(connected, committed, link)
    try:
        while not step(serving):
            if connected.options.reconnect_timeout and link.lost_for > connected.options.reconnect_timeout:
                raise given_up(connected)
        await_goodbye(serving)
    finally:
        connected.control.end_pulses()
        link.close()


def step(serving: Serving) -> bool:
    """Wait for something and do it; whether the migration is over."""
    connected, link = serving.connected, serving.link
    poll = select.poll()
    poll.register(link, select.POLLIN)
    if link.stands:
        poll.register(connected.control.fileno(), select.POLLIN)
        if not serving.pages_ended:
            poll.register(connected.client.event, select.POLLIN)
    ready = [number for number, _ in poll.poll(TICK_MS)]
    try:
        connected.custody.ensure()
        handover.forward_signals(serving.committed, connected.control)
        go_on(serving)
        if not link.stands:
            say_waiting(serving)
            return False
        if connected.control.fileno() in ready and hear(serving):
            return True
        connected.control.check_silence()
        check_pages(serving)
    except MigrationError as error:
        lose(serving, error.cause)
    except Exception as error:
        # Even an error of lm-serve's own must not end it: the client's threads go on serving.
        traceback.print_exc()
        lose(serving, repr(error))
    return False


def go_on(serving: Serving) -> None:
    """If there are new connections, serve on them. Raises OSError."""
    connected, link = serving.connected, serving.link
    lost_for = link.lost_for
    roles = link.take()
    if roles is None:
        return
    if not lost_for:
        # The other side has noticed first.
        connected.session.happened(Event.LOST)
    serving.pages_ended = 0.0
    connected.client.connect(roles.fault, roles.bulk, roles.session, roles.attempt)
    connected.session.happened(Event.RECONNECTED)
    connected.events.emit("reconnected", connected.options.pid, attempt=roles.attempt, lost_for=lost_for)
    write(connected)


def check_pages(serving: Serving) -> None:
    """Raise ConnectionLost when the page connections have ended and CONTROL does not say why."""
    client = serving.connected.client
    if not serving.pages_ended and take_state(client) is not ClientState.CONNECTED:
        serving.pages_ended = time.monotonic()
        serving.connected.events.note(f"the page connections ended: {client.cause}", 1)
    # Memory that cannot be read is not brought back by other connections.
    due = serving.pages_ended and client.state is not ClientState.FAILED
    if due and time.monotonic() > serving.pages_ended + LAST_WORDS_SECONDS:
        raise ConnectionLost(
            step="serving the memory", object="the page connections", cause=client.cause, remedy="look at the network"
        )


def say_waiting(serving: Serving) -> None:
    """Tell the user from time to time what is waited for, and for how long."""
    link, now = serving.link, time.monotonic()
    if now < serving.told + TELL_SECONDS:
        return
    serving.told = now
    serving.connected.events.note(f"lost for {link.lost_for:.0f} s; waiting for {link.waits_for}", 0)


def lose(serving: Serving, cause: str) -> None:
    """The connection is gone after COMMIT: keep the memory, say so, and meet again."""
    connected, link = serving.connected, serving.link
    first = link.stands
    serving.told = time.monotonic()
    connected.client.hang_up()
    link.lose(cause)
    connected.session.happened(Event.LOST)
    if first:
        connected.events.emit("stalled", connected.options.pid, cause=cause)
        said = connected.session.said(connected.options.pid)
        connected.events.note(f"the connection is lost ({cause}); {said}; waiting for {link.waits_for}", 0)
        write(connected)


def given_up(connected: Connected) -> LocalError:
    """--reconnect-timeout is over."""
    return LocalError(
        step="serving the memory",
        object=f"process {connected.options.pid}",
        cause=f"the other side was lost for {connected.options.reconnect_timeout:g} s",
        remedy=connected.session.said(connected.options.pid),
        code=ExitCode.LOST_AFTER,
    )


def await_goodbye(serving: Serving) -> None:
    """Everything is done. If the connection is lost just now, give the other side some time to hear of it."""
    connected, link = serving.connected, serving.link
    end = time.monotonic() + GOODBYE_SECONDS
    while not connected.control.is_heard and time.monotonic() < end:
        poll = select.poll()
        poll.register(link, select.POLLIN)
        if link.stands:
            poll.register(connected.control.fileno(), select.POLLIN)
        poll.poll(TICK_MS)
        try:
            link.take()
            if link.stands:
                connected.control.hear(messages.Finished)
                connected.control.check_silence()
        except MigrationError as error:
            link.lose(error.cause)


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


def hear(serving: Serving) -> bool:
    """Receive one message; returns whether the migration is over. Raises MigrationError when no more will come."""
    connected, committed = serving.connected, serving.committed
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
        connected.control.post(messages.Goodbye())
        connected.session.happened(Event.FINISHED)
        connected.events.emit("complete", connected.options.pid)
        return True
    return False
