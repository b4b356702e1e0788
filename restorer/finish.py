"""After the resume: the memory follows, signals are forwarded, and in the end both sides say goodbye."""

from __future__ import annotations

import contextlib
import os
import select
import time

import msgspec

from live_migration.kernel import pidfd
from live_migration.pager.pager import HotRun, Pager, PagerState
from live_migration.process.member import Runs
from live_migration.process.memory.mappings import PAGE
from live_migration.restorer.husk_process import husk_ended
from live_migration.restorer.phases import Connected, Running, reached, write
from live_migration.restorer.plain_locks import lock_plainly
from live_migration.wire import messages
from live_migration.wire.control import Odd
from live_migration.wire.errors import MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.session import Event, State

TICK_MS = 100
GOODBYE_SECONDS = 30.0
MOST_HOT = 1 << 16


def follow(running: Running) -> int:
    """Fetch everything, say goodbye, and unless --detach was given stay until the process ends.

    Nothing in here may harm the process: errors are reported, and everything is kept."""
    pager = running.pager
    if running.resume_at_once:
        pager.prefetch_start()
    watch = select.poll()
    watch.register(running.connected.control.fileno(), select.POLLIN)
    watch.register(running.connected.line.fileno(), select.POLLIN)
    watch.register(running.husk.pidfd, select.POLLIN)
    watch.register(pager.event, select.POLLIN)
    shown = 0.0
    gone = False
    while True:
        ready = frozenset(number for number, _ in watch.poll(TICK_MS))
        if running.connected.line.fileno() in ready and not _orders(running):
            watch.unregister(running.connected.line.fileno())
        if running.connected.control.fileno() in ready and not _hear(running):
            watch.unregister(running.connected.control.fileno())
        if running.husk.pidfd in ready:
            gone = True
            watch.unregister(running.husk.pidfd)
        if gone:
            # Its children may live on, and need their pages.
            pager.notice_ends()
        state = take_state(pager)
        if state is PagerState.COMPLETE:
            break
        if state in (PagerState.STALLED, PagerState.FAILED) and running.connected.session.state is not State.STALLED:
            _stall(running)
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            show_progress(running)
    _finish(running)
    if running.connected.options.detach:
        running.connected.line.send("exit", status=int(ExitCode.OK))
        return int(ExitCode.OK)
    return _stay(running)


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


def _orders(running: Running) -> bool:
    """Pass the frontend's signals on to the process; False when the frontend is gone."""
    running.connected.line.hear()
    for order, number in running.connected.line.orders:
        if order in ("signal", "stop"):
            with contextlib.suppress(OSError):
                pidfd.send_signal(running.husk.pidfd, number)
    running.connected.line.orders.clear()
    return not running.connected.line.frontend_is_gone


def _hear(running: Running, *, finished: bool = False) -> bool:
    """Take one message of the source; False when no more will come: the connection is gone, or that was the last one.
    `finished`: every page is here."""
    more = (messages.Goodbye,) if finished else ()
    try:
        message = running.connected.control.hear(messages.Hot, messages.Signal, *more)
    except ProtocolError as error:
        _note_odd(running.connected, error.cause)
        return False
    except MigrationError:
        return False
    if isinstance(message, Odd):
        _note_odd(running.connected, message.cause)
    if isinstance(message, messages.Hot) and not finished:
        _fetch_first(running, message)
    if isinstance(message, messages.Goodbye):
        running.custody.finished()
    if isinstance(message, messages.Signal):
        with contextlib.suppress(OSError):
            _deliver(running, message.thread, message.number)
    return not isinstance(message, messages.Goodbye)


def _note_odd(connected: Connected, cause: str) -> None:
    connected.line.send("note", text=f"a message of lm-serve cannot be used and is passed over: {cause}", level=0)


def _fetch_first(running: Running, message: messages.Hot) -> None:
    """The source's message on what will be touched soon; one that cannot be used is passed over."""
    try:
        spaces = messages.unpack(message.payload, dict[int, list[Runs]])
        if spaces.keys() - {member.space for member in running.final.members}:
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
    host_tid = running.threads.get(thread, 0)
    if host_tid:
        pidfd.send_to_thread(running.husk.pid, host_tid, number)
    else:
        pidfd.send_signal(running.husk.pidfd, number)


def _stall(running: Running) -> None:
    cause = running.pager.cause
    running.connected.session.happened(Event.LOST)
    running.connected.line.send("stalled", pid=running.husk.pid, cause=cause)
    said = f"the memory's connection is lost ({cause}); {running.connected.session.said(running.husk.pid)}"
    running.connected.line.send("note", text=said, level=0)


def _finish(running: Running) -> None:
    """Every page has come, or nobody needs them any more: release the memory and tell the source."""
    running.connected.session.happened(Event.FINISHED)
    fill(running)
    running.pager.finish()
    _lock(running)
    reached(running.connected, "destination-complete")
    with contextlib.suppress(MigrationError):
        report = running.connected.report
        counted = messages.pack([report.pages, report.bytes, report.faults])
        running.connected.control.send(messages.Finished(payload=counted))
    write(running.connected)
    running.connected.line.send("complete", pid=running.husk.pid)
    running.connected.line.send("result", report=msgspec.to_builtins(running.connected.report))
    # Not before: the source's copy leaves first, and it takes a tenth of a second per GiB to give its memory back.
    _await_goodbye(running)
    running.custody.end()
    running.connected.roles.close()


def _await_goodbye(running: Running) -> None:
    """Wait until the source's copy has left, and deliver the signals that it has got meanwhile."""
    poll = select.poll()
    poll.register(running.connected.control.fileno(), select.POLLIN)
    deadline = time.monotonic() + GOODBYE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000) and not _hear(running, finished=True):
            return


def _lock(running: Running) -> None:
    """Lock the process's memory as it was locked at the source."""
    member = running.final.members[0]
    failed = lock_plainly(running.husk.pid, member.memory.mappings, any(one.filters for one in member.task.threads))
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


def _stay(running: Running) -> int:
    """Wait until the process has ended; its status as a shell would say it."""
    watch = select.poll()
    watch.register(running.husk.pidfd, select.POLLIN)
    watch.register(running.connected.line.fileno(), select.POLLIN)
    while True:
        ready = frozenset(number for number, _ in watch.poll())
        if running.connected.line.fileno() in ready and not _orders(running):
            watch.unregister(running.connected.line.fileno())
        if running.husk.pidfd in ready:
            break
    status = husk_ended(running.husk)
    running.connected.report.exit_status = status
    write(running.connected)
    running.connected.line.send("ended", pid=running.husk.pid, status=status)
    running.connected.line.send("exit", status=status)
    return status
