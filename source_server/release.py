"""After COMMIT: serve pages and forward signals until the destination has everything; then the source's copy leaves.

A lost connection is a pause: it is made again, and everything goes on (wire/again.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from live_migration.process.attributes.signals import signal_number
from live_migration.source_server import handover
from live_migration.source_server.connections import forward
from live_migration.source_server.kept import Kept, advanced, keep
from live_migration.source_server.pages.client import ClientState, PageClient
from live_migration.source_server.phases import Connected, Copied, write
from live_migration.wire import messages
from live_migration.wire.again import Doorway, Link
from live_migration.wire.control import ControlChannel, Odd
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.messages import Numbered
from live_migration.wire.report import Bytes, Faults, Pages
from live_migration.wire.session import Event

TICK_MS = 200
TAPPED_SECONDS = 2.0
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


class Copy(Protocol):
    """The source's copy after COMMIT. `frozen_ns` as handover.Committed has it."""

    frozen_ns: int

    def masks(self) -> dict[int, int]:
        """The signals that are known to be pending, as masks, by thread; 0: those of the process."""

    def forward_signals(self, control: ControlChannel) -> None:
        """Send on those that have come since."""

    def leave(self, status: int) -> None:
        """Let it end with this status."""


@dataclass
class TracedCopy:
    """The copy that this process has frozen itself."""

    committed: handover.Committed
    frozen_ns: int

    def masks(self) -> dict[int, int]:
        """As Copy has it."""
        pending = self.committed.source.pending
        return {0: mask_of(pending.shared), **{tid: mask_of(queue) for tid, queue in pending.of_threads.items()}}

    def forward_signals(self, control: ControlChannel) -> None:
        """As Copy has it."""
        handover.forward_signals(self.committed, control)

    def leave(self, status: int) -> None:
        """As Copy has it."""
        handover.leave(self.committed, status)


def mask_of(pending: Iterable[bytes]) -> int:
    """The signals of these siginfos as a mask."""
    mask = 0
    for information in pending:
        mask |= 1 << (signal_number(information) - 1)
    return mask


@dataclass
class Serving:
    """The source's copy while its memory is served.

    pages_ended  when the page connections were found to have ended (CLOCK_MONOTONIC, seconds); 0: they have not
    tapped_until until when packets for the process are sent on (CLOCK_MONOTONIC, seconds)
    told         when the user was last told what is waited for
    kept         what another lm-serve would need to go on
    """

    connected: Connected
    copy: Copy
    link: Link
    kept: Kept
    pages_ended: float = 0.0
    told: float = 0.0
    tapped_until: float = 0.0


def serve_until_finished(connected: Connected, committed: handover.Committed, kept: Kept) -> None:
    """Serve pages and forward signals until the destination has everything; then let the source's copy leave.

    A lost connection is a pause. Raises LocalError (LOST_AFTER) when it is longer than --reconnect-timeout."""
    roles = connected.roles
    door = Doorway(connected.custody.command[0], roles.listener, lambda: False) if roles.listener else None
    link = Link(roles, Side.SOURCE, connected.control, door)
    if deaf := connected.custody.network.deaf:
        connected.events.note(f"packets that came in the freeze are not brought along ({deaf}); they come again", 0)
    forward(connected.custody.network, connected.control)
    until = time.monotonic() + TAPPED_SECONDS
    serve_on(Serving(connected, TracedCopy(committed, committed.frozen_ns), link, kept, tapped_until=until))


def serve_on(serving: Serving) -> None:
    """Serve until the destination has everything. Raises LocalError as serve_until_finished does."""
    connected, link = serving.connected, serving.link
    connected.control.tell_progress(functools.partial(keep_on, serving))
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
    tap = connected.custody.network.tap
    if time.monotonic() > serving.tapped_until:
        tap.stop()
    for one in tap.sockets:
        poll.register(one.fileno(), select.POLLIN)
    ready = [number for number, _ in poll.poll(TICK_MS)]
    if tap.sockets:
        forward(connected.custody.network, connected.control)
    try:
        connected.custody.ensure()
        serving.copy.forward_signals(connected.control)
        go_on(serving)
        if not link.stands:
            say_waiting(serving)
            return False
        if connected.control.fileno() in ready and hear(serving):
            return True
        connected.control.check_silence()
        check_pages(serving)
    except MigrationError as error:
        lose(serving, f"{error.step}: {error.cause}")
    except Exception as error:
        # Even an error of lm-serve's own must not end it: the client's threads go on serving.
        traceback.print_exc()
        lose(serving, repr(error))
    return False


def keep_on(serving: Serving, heard: int, serial: int, unheard: Sequence[Numbered]) -> None:
    """See to it that another lm-serve could go on from here (ControlChannel.tell_progress)."""
    keep(serving.connected.custody.memory.page, advanced(serving.kept, heard, serial, unheard, serving.copy.masks()))


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
            step="the page connections", object="the other side", cause=client.cause, remedy="look at the network"
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
    connected, copy = serving.connected, serving.copy
    message = connected.control.hear(messages.Resumed, messages.Progress, messages.Finished)
    if isinstance(message, Odd):
        note_odd(connected, message.cause)
    elif isinstance(message, messages.Resumed):
        frozen = copy.frozen_ns + connected.control.round_trip_ns // 2 + message.resume_ns
        connected.report.downtime_ms = frozen / 1e6
        connected.session.happened(Event.RESUMED)
    elif isinstance(message, messages.Progress):
        connected.events.progress(message.pages, message.pages_total, message.faults)
    elif isinstance(message, messages.Finished):
        failpoint("source-finished")
        take_counts(connected, message.payload)
        connected.custody.finished()
        copy.leave(connected.options.exit_status)
        connected.control.post(messages.Goodbye())
        connected.session.happened(Event.FINISHED)
        connected.events.emit("complete", connected.options.pid)
        return True
    return False
