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
from live_migration.restorer.plain_locks import lock_plainly
from live_migration.restorer.run import Run, reached, write
from live_migration.wire import messages
from live_migration.wire.control import Odd
from live_migration.wire.errors import MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.session import Event, State

TICK_MS = 100
GOODBYE_SECONDS = 30.0
MOST_HOT = 1 << 16


def follow(run: Run) -> int:
    """Fetch everything, say goodbye, and unless --detach was given stay until the process ends.

    Nothing in here may fail the process: what goes wrong is said, and everything is kept."""
    assert run.pager is not None
    assert run.husk is not None
    pager = run.pager
    if run.resume_at_once:
        pager.prefetch_start()
    watch = select.poll()
    watch.register(run.control.fileno(), select.POLLIN)
    watch.register(run.line.fileno(), select.POLLIN)
    watch.register(run.husk.pidfd, select.POLLIN)
    watch.register(pager.event, select.POLLIN)
    shown = 0.0
    gone = False
    while True:
        ready = frozenset(number for number, _ in watch.poll(TICK_MS))
        if run.line.fileno() in ready and not _orders(run):
            watch.unregister(run.line.fileno())
        if run.control.fileno() in ready and not _hear(run):
            watch.unregister(run.control.fileno())
        if run.husk.pidfd in ready:
            gone = True
            watch.unregister(run.husk.pidfd)
        if gone:
            # Its children may live on, and need their pages.
            pager.notice_ends()
        state = take_state(pager)
        if state is PagerState.COMPLETE:
            break
        if state in (PagerState.STALLED, PagerState.FAILED) and run.session.state is not State.STALLED:
            _stall(run)
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            show_progress(run)
    _finish(run)
    if run.options.detach:
        run.line.send("exit", status=int(ExitCode.OK))
        return int(ExitCode.OK)
    return _stay(run)


def take_state(pager: Pager) -> PagerState:
    """The pager's state, with its event armed again."""
    with contextlib.suppress(BlockingIOError):
        os.read(pager.event, 8)
    return pager.state


def show_progress(run: Run) -> None:
    """Tell the frontend how far the pages are."""
    assert run.pager is not None
    counted = run.pager.counters
    run.line.send(
        "progress",
        pages=counted["total_pages"] + counted["zero_pages"],
        total=counted["total_pages"] + counted["zero_pages"] + counted["wanted_pages"],
        faults=counted["faults"],
    )


def _orders(run: Run) -> bool:
    """Pass the frontend's signals on to the process; False when the frontend is gone."""
    assert run.husk is not None
    run.line.hear()
    for order, number in run.line.orders:
        if order in ("signal", "stop"):
            with contextlib.suppress(OSError):
                pidfd.send_signal(run.husk.pidfd, number)
    run.line.orders.clear()
    return not run.line.frontend_is_gone


def _hear(run: Run, *, finished: bool = False) -> bool:
    """Take one message of the source; False when no more will come: the connection is gone, or that was the last one.
    `finished`: every page is here."""
    more = (messages.Goodbye,) if finished else ()
    try:
        message = run.control.hear(messages.Hot, messages.Signal, *more)
    except ProtocolError as error:
        _note_odd(run, error.cause)
        return False
    except MigrationError:
        return False
    if isinstance(message, Odd):
        _note_odd(run, message.cause)
    if isinstance(message, messages.Hot) and not finished:
        _fetch_first(run, message)
    if isinstance(message, messages.Signal):
        with contextlib.suppress(OSError):
            _deliver(run, message.thread, message.number)
    return not isinstance(message, messages.Goodbye)


def _note_odd(run: Run, cause: str) -> None:
    run.line.send("note", text=f"a message of lm-serve cannot be used and is passed over: {cause}", level=0)


def _fetch_first(run: Run, message: messages.Hot) -> None:
    """The source's word on what will be touched soon; one that cannot be used is passed over."""
    assert run.pager is not None
    assert run.final is not None
    try:
        spaces = messages.unpack(message.payload, dict[int, list[Runs]])
        if spaces.keys() - {member.space for member in run.final.members}:
            raise messages.broken("it names pages of a process that is not moved")
        runs = [
            HotRun(one.address, one.address + one.pages * PAGE, space) for space, runs in spaces.items() for one in runs
        ]
        run.pager.prefetch_first(runs[:MOST_HOT])
    except ProtocolError as error:
        _note_odd(run, error.cause)
    except (OSError, OverflowError) as error:
        _note_odd(run, f"it names pages that cannot be ({error})")


def _deliver(run: Run, thread: int, number: int) -> None:
    """Send a forwarded signal to the process, or to the thread it was meant for."""
    assert run.husk is not None
    host_tid = run.building.threads.get(thread, 0) if run.building is not None else 0
    if host_tid:
        pidfd.send_to_thread(run.husk.pid, host_tid, number)
    else:
        pidfd.send_signal(run.husk.pidfd, number)


def _stall(run: Run) -> None:
    assert run.pager is not None
    assert run.husk is not None
    cause = run.pager.cause
    run.session.happened(Event.LOST)
    run.line.send("stalled", pid=run.husk.pid, cause=cause)
    said = f"the memory's connection is lost ({cause}); {run.session.said(run.husk.pid)}"
    run.line.send("note", text=said, level=0)


def _finish(run: Run) -> None:
    """Every page is in, or nobody needs them any more: let go of the memory and tell the source."""
    assert run.pager is not None
    assert run.husk is not None
    run.session.happened(Event.FINISHED)
    fill(run)
    run.pager.finish()
    _lock(run)
    reached(run, "destination-complete")
    with contextlib.suppress(MigrationError):
        counted = messages.pack([run.report.pages, run.report.bytes, run.report.faults])
        run.control.send(messages.Finished(payload=counted))
    write(run)
    run.line.send("complete", pid=run.husk.pid)
    run.line.send("result", report=msgspec.to_builtins(run.report))
    # Not before: the source's copy leaves first, and to give its memory back takes it a tenth of a second per GiB.
    _await_goodbye(run)
    if run.custody is not None:
        run.custody.end()
    run.roles.close()


def _await_goodbye(run: Run) -> None:
    """Wait until the source's copy has left, and deliver the signals that have come to it meanwhile."""
    poll = select.poll()
    poll.register(run.control.fileno(), select.POLLIN)
    deadline = time.monotonic() + GOODBYE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000) and not _hear(run, finished=True):
            return


def _lock(run: Run) -> None:
    """Make the process's locks of memory what they were at the source."""
    assert run.husk is not None
    mappings = run.final.members[0].memory.mappings if run.final is not None else []
    failed = lock_plainly(run.husk.pid, mappings)
    if failed:
        run.line.send(
            "note",
            text=f"memory of process {run.husk.pid} stays locked page by page, as each is touched (mlock2 with "
            f"MLOCK_ONFAULT) instead of all at once ({failed})",
            level=0,
        )


def fill(run: Run) -> None:
    """The pager's counters and latencies, as the report has them."""
    assert run.pager is not None
    counted, latencies = run.pager.counters, run.pager.latencies
    report = run.report
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


def _stay(run: Run) -> int:
    """Wait until the process has ended; its status as a shell would say it."""
    assert run.husk is not None
    watch = select.poll()
    watch.register(run.husk.pidfd, select.POLLIN)
    watch.register(run.line.fileno(), select.POLLIN)
    while True:
        ready = frozenset(number for number, _ in watch.poll())
        if run.line.fileno() in ready and not _orders(run):
            watch.unregister(run.line.fileno())
        if run.husk.pidfd in ready:
            break
    status = husk_ended(run.husk)
    run.report.exit_status = status
    write(run)
    run.line.send("ended", pid=run.husk.pid, status=status)
    run.line.send("exit", status=status)
    return status
