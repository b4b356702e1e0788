"""After the resume: the memory follows, signals are forwarded, and in the end both sides say goodbye.

A lost connection is a pause: it is made again, and everything goes on (wire/again.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from live_migration.kernel import pidfd
from live_migration.pager.keeper import abandon
from live_migration.pager.pager import HotRun, Pager, PagerState
from live_migration.process.member import Runs
from live_migration.process.memory.mappings import PAGE
from live_migration.restorer import by_hand
from live_migration.restorer.husk_process import husk_ended
from live_migration.restorer.kept import keep
from live_migration.restorer.phases import Connected, Running, measure, reached, write
from live_migration.restorer.plain_locks import lock_plainly
from live_migration.wire import messages
from live_migration.wire.again import Doorway, Link
from live_migration.wire.control import Odd
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Side
from live_migration.wire.messages import Numbered
from live_migration.wire.session import Event, State

TICK_MS = 100
TELL_SECONDS = 10.0
GOODBYE_SECONDS = 30.0
LOST_GOODBYE_SECONDS = 3.0
NOBODY_SECONDS = 20.0
FORSAKEN_SECONDS = 600.0
MOST_HOT = 1 << 16
MEASURE_SECONDS = 1.0


@dataclass
class Following:
    """The process while its memory follows.

    process_ended  its first process has; its children may live on
    finished       every page is here, and the source is to hear of it
    said_goodbye   the source's copy has left
    closed         the connections are
    told           when the user was last told what is waited for (CLOCK_MONOTONIC, seconds)
    shown          when progress was last shown
    """

    running: Running
    link: Link
    process_ended: bool = False
    finished: bool = False
    said_goodbye: bool = False
    closed: bool = False
    told: float = 0.0
    shown: float = 0.0
    measured: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be said to the source."""
        return self.said_goodbye or self.is_given_up

    @property
    def connected(self) -> Connected:
        """What all phases refer to."""
        return self.running.connected

    @property
    def is_given_up(self) -> bool:
        """Whether the source was lost for longer than --reconnect-timeout; when nothing is missing any more, also if
        nobody is there, or if it was lost for long and the process has ended, too."""
        done = self.finished and self.process_ended
        limit = self.connected.options.reconnect_timeout or (FORSAKEN_SECONDS if done else 0)
        forsaken = self.finished and self.link.refused_for > NOBODY_SECONDS
        return forsaken or bool(limit and self.link.lost_for > limit)


def follow(running: Running, link: Link | None = None) -> int:
    """Fetch everything, say goodbye, and unless --detach was given stay until the process ends. `link`: if its
    connections are not those with which it was resumed.

    Nothing in here may harm the process: errors are reported, and everything is kept. Raises LocalError (LOST_AFTER)
    when the source was lost for longer than --reconnect-timeout."""
    connected, pager = running.connected, running.pager
    if running.resume_at_once:
        pager.prefetch_start()
    following = Following(running, link or _link_of(running))
    connected.control.tell_progress(functools.partial(_keep, following))
    while running.ledger < 0:
        if running.custody:
            running.custody.network.announce()
        _step(following)
        state = take_state(pager)
        if state is PagerState.COMPLETE:
            break
        if state is PagerState.FAILED and connected.session.state is not State.STALLED:
            _stall(following, pager.cause)
        if state is PagerState.STALLED and following.link.stands:
            _lose(following, pager.cause)
        if following.is_given_up:
            raise _given_up(following)
        if time.monotonic() - following.shown > 0.1:
            following.shown = time.monotonic()
            show_progress(running)
        if connected.options.watching.metrics and time.monotonic() - following.measured > MEASURE_SECONDS:
            following.measured = time.monotonic()
            fill(running)
            measure(connected)
    _finish(following)
    if connected.options.detach:
        connected.line.send("exit", status=int(ExitCode.OK), stays=not following.is_over)
        status = int(ExitCode.OK)
    else:
        status = _stay(following)
    _end(following)
    return status


def _link_of(running: Running) -> Link:
    connected, custody = running.connected, running.custody
    listener = connected.roles.listener
    door = Doorway(custody.command[0], listener, custody.has_left) if listener and custody else None
    return Link(connected.roles, Side.DESTINATION, connected.control, door)


def _keep(following: Following, heard: int, serial: int, unheard: Sequence[Numbered]) -> None:
    """See to it that another worker could go on from here (ControlChannel.tell_progress)."""
    running = following.running
    with contextlib.suppress(OSError):
        keep(running.pager, replace(running.kept, heard=heard))


def _step(following: Following) -> None:
    """Wait for something, and do it."""
    running, link, connected = following.running, following.link, following.connected
    watch = select.poll()
    watch.register(link, select.POLLIN)
    if link.stands:
        watch.register(connected.control.fileno(), select.POLLIN)
    if not connected.line.frontend_is_gone:
        watch.register(connected.line.fileno(), select.POLLIN)
    if not following.process_ended:
        watch.register(running.husk.pidfd, select.POLLIN)
    if not following.finished:
        watch.register(running.pager.event, select.POLLIN)
    ready = frozenset(number for number, _ in watch.poll(TICK_MS))
    if connected.line.fileno() in ready:
        _orders(running)
    if running.husk.pidfd in ready:
        following.process_ended = True
    if following.process_ended and not following.finished:
        # Its children may live on, and need their pages.
        running.pager.notice_ends()
    _go_on(following)
    if not link.stands:
        _say_waiting(following)
        return
    try:
        if connected.control.fileno() in ready:
            _hear(following)
        connected.control.check_silence()
    except MigrationError as error:
        _lose(following, f"{error.step}: {error.cause}")


def _go_on(following: Following) -> None:
    """If there are new connections, go on with them."""
    running, link, connected = following.running, following.link, following.connected
    lost_for = link.lost_for
    roles = link.take()
    if roles is None:
        return
    if following.finished:
        return
    if not lost_for:
        # The other side has noticed first.
        connected.session.happened(Event.LOST)
    try:
        running.pager.connect(roles.fault, roles.bulk, roles.session, roles.attempt)
    except OSError as error:
        _lose(following, str(error))
        return
    connected.session.happened(Event.RECONNECTED)
    connected.line.send("reconnected", pid=running.husk.pid, attempt=roles.attempt, lost_for=lost_for)
    write(connected)


def _say_waiting(following: Following) -> None:
    """Tell the user from time to time what is waited for, and for how long."""
    link, now = following.link, time.monotonic()
    if now >= following.told + TELL_SECONDS:
        following.told = now
        text = f"lost for {link.lost_for:.0f} s; waiting for {link.waits_for}"
        following.connected.line.send("note", text=text, level=0)


def _given_up(following: Following) -> LocalError:
    """--reconnect-timeout is over: do what --on-lost says."""
    running, connected = following.running, following.connected
    said = connected.session.said(running.husk.pid)
    try:
        if connected.options.on_lost == "stop":
            pidfd.send_signal(running.husk.pidfd, signal.SIGSTOP)
            said = f"process {running.husk.pid} is stopped (SIGSTOP), and waits where pages are missing when it goes on"
        elif connected.options.on_lost == "poison" and not following.finished:
            running.pager.poison()
            running.pager.finish()
            said = f"process {running.husk.pid} goes on without the source: whoever in it touches a page that did not "
            said += "come gets SIGBUS"
    except OSError as error:
        said = f"{said} (--on-lost {connected.options.on_lost}: {error.strerror})"
    return LocalError(
        step="fetching the memory",
        object=f"process {running.husk.pid}",
        cause=f"the source was lost for {connected.options.reconnect_timeout:g} s",
        remedy=said,
        code=ExitCode.LOST_AFTER,
    )


def take_state(pager: Pager) -> PagerState:
    """The pager's state, with its event armed again."""
    with contextlib.suppress(BlockingIOError):
        os.read(pager.event, 8)
    return pager.state


def show_progress(running: Running) -> None:
    """Tell the frontend how many pages have arrived."""
    counted = running.pager.counters
    running.connected.line.send(
        "progress",
        pages=counted["total_pages"] + counted["zero_pages"],
        total=counted["total_pages"] + counted["zero_pages"] + counted["wanted_pages"],
        faults=counted["faults"],
    )


def _orders(running: Running) -> None:
    """Pass the frontend's signals on to the process."""
    running.connected.line.hear()
    for order, number in running.connected.line.orders:
        if order in ("signal", "stop"):
            with contextlib.suppress(OSError):
                pidfd.send_signal(running.husk.pidfd, number)
    running.connected.line.orders.clear()


def _hear(following: Following) -> None:
    """Take one message of the source. Raises MigrationError when the connection is of no use any more."""
    running, control = following.running, following.connected.control
    more = (messages.Goodbye,) if following.finished else ()
    message = control.hear(messages.Hot, messages.Signal, messages.Packets, *more)
    if isinstance(message, Odd):
        _note_odd(running.connected, message.cause)
    if isinstance(message, messages.Packets) and running.custody:
        running.custody.network.take_in(message.packets)
    if isinstance(message, messages.Hot) and not following.finished:
        _fetch_first(running, message)
    if isinstance(message, messages.Goodbye):
        following.said_goodbye = True
        control.acknowledge()
        if running.custody:
            running.custody.finished()
        else:
            by_hand.finished(running.husk.pid)
    if isinstance(message, messages.Signal):
        with contextlib.suppress(OSError):
            _deliver(running, message.thread, message.number)


def _note_odd(connected: Connected, cause: str) -> None:
    connected.line.send("note", text=f"a message of lm-serve cannot be used and is passed over: {cause}", level=0)


def _fetch_first(running: Running, message: messages.Hot) -> None:
    """The source's message on what will be touched soon; one that cannot be used is passed over."""
    try:
        spaces = messages.unpack(message.payload, dict[int, list[Runs]])
        if spaces.keys() - set(running.kept.spaces):
            raise messages.broken("it names pages of a process that is not moved")
        runs = [
            HotRun(one.address, one.address + one.pages * PAGE, space) for space, runs in spaces.items() for one in runs
        ]
        running.pager.prefetch_first(runs[:MOST_HOT])
    except ProtocolError as error:
        _note_odd(running.connected, error.cause)
    except (OSError, OverflowError) as error:
        _note_odd(running.connected, f"it names pages that cannot be ({error})")


def _deliver(running: Running, thread: int, number: int) -> None:
    """Send a forwarded signal to the process, or to the thread it was meant for."""
    host_tid = running.kept.threads.get(thread, 0)
    if host_tid:
        pidfd.send_to_thread(running.husk.pid, host_tid, number)
    else:
        pidfd.send_signal(running.husk.pidfd, number)


def _lose(following: Following, cause: str) -> None:
    """The connection is lost: say so, and meet again."""
    first = following.link.stands
    following.told = time.monotonic()
    following.link.lose(cause)
    if first and not following.finished:
        _stall(following, cause)


def _stall(following: Following, cause: str) -> None:
    """No page comes any more: say so."""
    connected, running = following.connected, following.running
    connected.session.happened(Event.LOST)
    connected.line.send("stalled", pid=running.husk.pid, cause=cause)
    then = "" if following.link.stands else f"; waiting for {following.link.waits_for}"
    said = f"the memory's connection is lost ({cause}); {connected.session.said(running.husk.pid)}{then}"
    connected.line.send("note", text=said, level=0)


def _finish(following: Following) -> None:
    """Every page has come, or nobody needs them any more: release the memory and tell the source."""
    running, connected = following.running, following.connected
    connected.session.happened(Event.FINISHED)
    fill(running)
    running.pager.let_go()
    _lock(running)
    reached(connected, "destination-complete")
    report = connected.report
    counted = messages.pack([report.pages, report.bytes, report.faults])
    connected.control.post(messages.Finished(payload=counted))
    following.finished = True
    write(connected)
    connected.line.send("complete", pid=running.husk.pid)
    connected.line.send("result", report=msgspec.to_builtins(report))
    # Not before: the source's copy leaves first, and it takes a tenth of a second per GiB to give its memory back.
    deadline = time.monotonic() + GOODBYE_SECONDS
    while not following.said_goodbye and time.monotonic() < deadline and following.link.lost_for < LOST_GOODBYE_SECONDS:
        _step(following)
    if not following.said_goodbye:
        text = "every page is here, but the source has not heard that yet; lm-pager goes on telling it"
        connected.line.send("note", text=text, level=0)


def _end(following: Following) -> None:
    """Stay until the source has heard that it is not needed any more, and has said goodbye."""
    while not following.is_over:
        _step(following)
    _close(following)


def _close(following: Following) -> None:
    """Nothing more is to be said to the source."""
    if not following.closed:
        following.closed = True
        following.connected.control.end_pulses()
        if following.running.custody:
            following.running.custody.end()
        following.link.close()
        with contextlib.suppress(OSError):
            if following.running.ledger >= 0:
                abandon(following.running.ledger)
            following.running.pager.finish()


def _lock(running: Running) -> None:
    """Lock the process's memory as it was locked at the source."""
    failed = lock_plainly(running.husk.pid, running.kept.locked, running.kept.filtered)
    if failed:
        running.connected.line.send(
            "note",
            text=f"memory of process {running.husk.pid} stays locked page by page, as each is touched (mlock2 with "
            f"MLOCK_ONFAULT) instead of all at once ({failed})",
            level=0,
        )


def fill(running: Running) -> None:
    """The pager's counters and latencies, as the report has them."""
    counted, latencies = running.pager.counters, running.pager.latencies
    report = running.connected.report
    report.pages.total = counted["total_pages"] + counted["zero_pages"]
    report.pages.zero = counted["zero_pages"]
    report.pages.faulted = counted["faulted_pages"]
    report.pages.prefetched = counted["prefetched_pages"]
    report.pages.pushed = counted["pushed_pages"]
    report.pages.resent = counted["rewritten_pages"] + counted["dropped_pages"]
    report.pages.late = counted["late_pages"]
    report.bytes.memory = counted["bytes"]
    report.bytes.wire = counted["wire_bytes"]
    report.bytes.eager = counted["eager_bytes"]
    report.faults.count = counted["remote_faults"]
    report.faults.p50_us = latencies.p50_us
    report.faults.p90_us = latencies.p90_us
    report.faults.p99_us = latencies.p99_us
    report.faults.max_us = latencies.max_us
    report.faults.measured = latencies.count
    report.faults.sum_us = latencies.sum_us
    report.faults.at_most = latencies.at_most


def _stay(following: Following) -> int:
    """Wait until the process has ended; its status as a shell would say it."""
    running, connected = following.running, following.connected
    while not following.process_ended and not following.is_over:
        _step(following)
    if following.is_over:
        _close(following)
    watch = select.poll()
    watch.register(running.husk.pidfd, select.POLLIN)
    watch.register(connected.line.fileno(), select.POLLIN)
    while not following.process_ended:
        ready = frozenset(number for number, _ in watch.poll())
        if connected.line.fileno() in ready:
            _orders(running)
            if connected.line.frontend_is_gone:
                watch.unregister(connected.line.fileno())
        following.process_ended = running.husk.pidfd in ready
    status = husk_ended(running.husk)
    connected.report.exit_status = status
    write(connected)
    connected.line.send("ended", pid=running.husk.pid, status=status)
    connected.line.send("exit", status=status, stays=not following.closed)
    return status
