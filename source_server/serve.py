"""lm-serve: the order of events on the source. It reads like the picture in docs/design.md.

    look -> connect -> describe -> (staged) -> push -> rounds -> freeze -> describe -> (ready) -> park, COMMIT
        -> serve pages -> leave

Before COMMIT every way out, an exception or a signal, thaws the process as it was; after COMMIT none does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence

from live_migration.kernel import cpu_dma_latency, pidfd
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.memory.own_memory import make_own
from live_migration.process.descriptors.blockers import passing_blockers
from live_migration.process.descriptors.contents import Content
from live_migration.process.descriptors.holding import hold_descriptors
from live_migration.process.descriptors.written_files import flush_beforehand, flush_written_files
from live_migration.process.member import Runs
from live_migration.process.memory import vdso
from live_migration.process.memory.layout_change import difference
from live_migration.process.memory.mapped_files import flush_written_mappings, other_host_blockers
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.migration import MemberParts, migration_of, without_staged
from live_migration.process.rehearsal import rehearse_often
from live_migration.process.threads.landlock import witness_blockers, witnesses
from live_migration.source_server import custody as custodies
from live_migration.source_server import handover
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.client import COMPRESS_AUTO, COMPRESS_NONE, PageClient, PushRun
from live_migration.source_server.pages.contents import serve_contents, serve_new_contents
from live_migration.source_server.pages.pusher import Pusher, pushing
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.precopy import copy_live, push_failed, writes_past_the_tracker
from live_migration.source_server.release import serve_until_finished, tell_hot
from live_migration.source_server.run import Run, tell, write
from live_migration.source_server.snapshot import (
    FINAL_PUSH,
    PAGE,
    STAGING_PUSH,
    FrozenSource,
    SourceSnapshot,
    changed_file_pages,
    check_blockers,
    look,
    rehearse,
)
from live_migration.source_server.stopping import signals_held, signals_let_through, stop_by_signal
from live_migration.source_server.vdso_exit import leave_vdso
from live_migration.wire import messages
from live_migration.wire.connection import Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import check_fault, failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.host import snapshot_host
from live_migration.wire.meeting import meet
from live_migration.wire.report import Report
from live_migration.wire.session import Event, Session, begin
from live_migration.wire.session import rehearse as rehearse_session
from live_migration.wire.strategy import Parameters

GREETING_SECONDS = 30.0
STAGING_SECONDS = 600.0
PREPARING_SECONDS = 30.0
MOST_FREEZES = 40


def serve(options: ServeOptions, events: Events) -> int:
    """Move the process away; the exit status. Raises MigrationError with the process untouched."""
    started = time.time()
    check_fault()
    session = begin(Side.SOURCE, lambda text: events.note(text, 0))
    stop_by_signal(session, options.pid)
    with witnesses(options.pid) as seen_by:
        return _serve(options, events, session, seen_by, started)


def _serve(
    options: ServeOptions, events: Events, session: Session, seen_by: Sequence[int], started: float
) -> int:
    try:
        seen, blockers = look(options.pid)
        blockers += witness_blockers(options.pid, seen_by)
    except Refused as error:
        if options.check:
            return int(events.checked(options.pid, list(error.blockers)))
        raise
    if options.check:
        return int(events.checked(options.pid, [*blockers, *check_blockers(seen)]))
    if blockers:
        raise Refused(blockers, object=f"process {options.pid}")
    session.happened(Event.LOOKED_AT)
    report = Report(side="source", outcome="failed", strategy="", pid=options.pid, started=started)
    watch = pidfd.open_pidfd(options.pid)
    roles = meet(options.meeting, "source", events, pid=options.pid, watch=[watch])
    os.close(watch)
    if roles is None:
        raise _ended(options.pid)
    session.happened(Event.CONNECTED)
    custody = custodies.start_custody(roles.control.fileno())
    with contextlib.ExitStack() as stack:
        stack.callback(custody.end)
        stack.callback(roles.close)
        control = ControlChannel(roles.control)
        try:
            seen = look_after_waiting(options.pid, seen_by)
            store = stack.enter_context(PageStore())
            client = stack.enter_context(PageClient(store))
            store.add_process(seen.space, options.pid)
            connect(client, options, roles)
            session.happened(Event.LOOKED_AT)
            run = Run(options, events, session, seen, control, store, client, custody, report)
            _migrate(run)
        except MigrationError as error:
            session.ended_by(error)
            say_what_became_of_it(error, session.said(options.pid))
            report.error = str(error)
            if not custody.say_no():
                tell(control, error)
            raise
        finally:
            write(options, events, session, report)
    events.result(report)
    return int(ExitCode.OK)


def look_after_waiting(pid: int, seen_by: Sequence[int]) -> SourceSnapshot:
    """The process as it is now: a destination may have come after hours, and what has changed since need not show at
    the freeze (an mlock or madvise of a whole mapping, another program at the same addresses).

    Raises Refused, LocalError."""
    seen, blockers = look(pid, seen_by)
    blockers += witness_blockers(pid, seen_by)
    if blockers:
        raise Refused(blockers, object=f"process {pid}")
    return seen


def say_what_became_of_it(error: MigrationError, said: str) -> None:
    """Where the connection failed, which knows nothing of processes, say what has become of this one."""
    by_connection = isinstance(error, ConnectionLost) or error.code is ExitCode.TIMEOUT
    if by_connection and "runs on" not in str(error):
        error.remedy = f"{said}; {error.remedy}"


def connect(client: PageClient, options: ServeOptions, roles: Roles) -> None:
    """Connect the destination to the page store, which answers nobody before the freeze. Raises OSError."""
    levels = {"auto": COMPRESS_AUTO, "none": COMPRESS_NONE}
    client.compress(levels[options.compress] if isinstance(options.compress, str) else options.compress)
    client.connect(roles.fault, roles.bulk, roles.session, roles.attempt)


def _migrate(run: Run) -> None:
    parameters = stage(run)
    run.copy = copy_live(run.seen, run.client, run.control, run.events, parameters)
    with contextlib.closing(run.copy):
        run.seen = run.copy.seen
        run.report.strategy, run.report.tracking = run.copy.strategy, run.copy.tracking
        run.report.rounds = run.copy.done
        if not run.same_machine:
            flush_beforehand(run.seen.pid, run.seen.descriptors.table)
            with contextlib.suppress(OSError):
                flush_written_mappings(run.seen.pid, run.seen.memory.mappings)
        run.control.measure_round_trip()
        failpoint("source-staged")
        committed = freeze_and_commit(run)
        tell_hot(run)
        run.events.emit("resumed", run.options.pid)
        # Still tracked: the end of that locks the memory for 20 ms per GiB, in which no page could be read from it.
        serve_until_finished(run, committed)


def stage(run: Run) -> Parameters:
    """Greet, describe, wait until the husk stands, and push what cannot be paged on demand. The process runs. What the
    destination parameters."""
    failpoint("source-connected")
    run.control.send(messages.Greeting(host=snapshot_host(cpu.describe(), vdso.digest(vdso.own_code()))))
    greeting = run.control.expect(messages.Greeting, GREETING_SECONDS)
    parameters = messages.parameters_of(greeting)
    run.report.strategy = parameters.strategy
    limits = [limit for limit in (run.options.bandwidth_limit, parameters.bandwidth_limit) if limit]
    run.client.limit(min(limits, default=0))
    run.other_vdso = greeting.host.vdso != vdso.digest(run.seen.memory.vdso)
    run.same_machine = greeting.host.boot_id == run.seen.descriptors.table.place.boot
    if not run.same_machine and (blockers := other_host_blockers(run.seen.pid, run.seen.files)):
        raise Refused(blockers, object=f"process {run.seen.pid}")
    run.control.send(messages.Description(payload=messages.pack(migration_of([run.seen.description()]))))
    failpoint("source-described")
    run.control.expect(messages.Staged, STAGING_SECONDS)
    run.session.happened(Event.STAGED)
    run.events.emit("staged", run.options.pid)
    run.seen.pushed.extend(changed_file_pages(run.seen.pid, run.seen.memory))
    run.served = serve_contents(run.store, run.seen)
    try:
        run.client.push(STAGING_PUSH, push_runs(run.seen.space, run.seen.pushed, run.served), remember=True)
    except OSError as error:
        raise push_failed(run.control, run.options.pid, "pushing while the process runs", error) from None
    run.control.expect(messages.Pushed, STAGING_SECONDS)
    run.session.happened(Event.PUSHED)
    return parameters


def freeze_and_commit(run: Run) -> handover.Committed:
    """Freeze, again where something in the way passes by itself, up to COMMIT. On every other way out the process
    runs on as before."""
    gc.disable()
    with pushing(run.client) as pusher:
        for attempt in range(MOST_FREEZES):
            if attempt:
                # No fixed pause, so that a process with a rhythm of its own is not always caught at the same point.
                time.sleep(random.uniform(0.001, 0.02))
                pusher.wait(run.options.max_freeze)
            correction = announce(run)
            with cpu_dma_latency.awake():
                committed = freeze_once(run, pusher, correction, attempt == MOST_FREEZES - 1)
            if committed is not None:
                return committed
    raise AssertionError("the last attempt does not end here")


def announce(run: Run) -> int:
    """Say that a freeze comes, and wait until both sides are prepared for it; the number of the push that corrects in
    it, 0 if there is none."""
    assert run.copy is not None
    correction = run.copy.next_correction() if run.copy.is_tracked else 0
    run.session.happened(Event.FREEZE)
    run.control.send(
        messages.Freezing(
            strategy=run.copy.strategy,
            resume_at_once=run.copy.resume_at_once,
            tracking=run.copy.tracking,
            correction=correction,
            payload=messages.pack(run.copy.done),
        )
    )
    make_own()
    run.control.expect(messages.Prepared, PREPARING_SECONDS)
    rehearse_often(lambda: rehearse_freeze(run))
    return correction


def rehearse_freeze(run: Run) -> None:
    """Do once, for nothing, what `freeze_once` does."""
    rehearse(run.seen)
    described = run.seen.description()
    passing_blockers(described.table, run.same_machine)
    messages.encode(final(run, described, 0))
    rehearse_session(Side.SOURCE)


def freeze_once(run: Run, pusher: Pusher, correction: int, last: bool) -> handover.Committed | None:
    """One freeze. None when the process was in the middle of something that it ends by itself as soon as it runs, which
    the `last` freeze does not wait for any more."""
    assert run.copy is not None
    deadline = time.monotonic() + run.options.max_freeze
    began = time.monotonic_ns()
    with (
        signals_held(),
        bounded(run),
        handover.frozen(run.seen, run.session) as state,
        answering(run),
        handover.refusing(state, run.custody),
    ):
        failpoint("source-frozen")
        passing = leave_vdso(run.seen, state.stops) if run.other_vdso else []
        if passing and not last:
            correct_early(run, pusher, correction, None)
            return None
        asked = handover.query_threads(state)
        if asked.memory is not run.seen.memory:
            # What the destination makes anew has nothing of what was pushed there.
            run.client.discard_pushed(run.seen.space, difference(run.seen.memory, asked.memory).unmap)
        correct_early(run, pusher, correction, asked.memory)
        source = handover.describe(state, asked)
        failpoint("source-asked")
        passing += passing_blockers(source.description.table, run.same_machine)
        if passing and not last:
            source.descriptors.close()
            return None
        if source.blockers or passing:
            raise Refused([*source.blockers, *passing], object=f"process {run.options.pid}", step="the frozen process")
        if not run.same_machine:
            flush_written_files(source.description.table, source.descriptors.duplicates)
            flush_written_mappings(run.seen.pid, source.description.member.memory.mappings)
        serve_new_contents(run.store, run.served, source)
        corrected = correct_late(run, pusher, source)
        # Before the push, whose beginning wants the interpreter: the destination has much to do before it is due.
        described = messages.encode(final(run, source.description, corrected))
        run.custody.describing(len(described))
        run.session.happened(Event.FINAL)
        run.control.send_bytes(described, left(deadline))
        first = [*source.hot, *source.description.member.changed]
        runs = push_runs(run.seen.space, first, source.description.contents)
        pusher.do(lambda: run.client.push(FINAL_PUSH, runs, changed=True, urgent=True))
        # Beside the wait for READY, which does not come before the push has arrived.
        preparing = pusher.begin(lambda: prepare_held(run, source))
        failpoint("source-final-sent")
        run.events.emit("frozen", run.options.pid)
        try:
            with signals_let_through():
                ready = run.control.expect(messages.Ready, left(deadline))
        except LocalError as error:
            raise (too_long(run) if error.code is ExitCode.TIMEOUT else error) from None
        run.session.happened(Event.READY)
        failpoint("source-ready")
        preparing.wait(left(deadline))
        run.custody.hold(messages.unpack(ready.payload, list[int]))
        committed = handover.commit(state, run.control, run.custody, began)
    # Nothing may fail any more: what cannot be tidied up is left.
    with contextlib.suppress(MigrationError):
        failpoint("source-decided")
    run.custody.carry_out()
    source.descriptors.close()
    return committed


def prepare_held(run: Run, source: FrozenSource) -> None:
    """Write down what is to be done to descriptors, whatever becomes of handover and lm-serve. Raises OSError."""
    run.custody.prepare(run.seen.pid, hold_descriptors(source.description.table))


@contextlib.contextmanager
def bounded(run: Run) -> Iterator[None]:
    """Within, the custodian sees to it that even a hanging lm-serve freezes nobody for ever."""
    run.custody.freezing(run.options.max_freeze)
    try:
        yield
    finally:
        run.custody.thawed()


@contextlib.contextmanager
def answering(run: Run) -> Iterator[None]:
    """Within the freeze requests for pages are answered, and after COMMIT; a process that runs here tells nothing."""
    run.store.open(True)
    try:
        yield
    finally:
        if not run.session.committed:
            run.store.open(False)


def correct_early(run: Run, pusher: Pusher, correction: int, memory: AddressSpace | None) -> None:
    """Give the push that was announced, if one was: nothing in it where the layout is not the destination's."""
    copy = run.copy
    assert copy is not None
    if correction and memory is run.seen.memory:
        pusher.do(lambda: copy.correct(correction, run.seen.memory))
    elif correction:
        pusher.do(lambda: run.client.push(correction, [], urgent=True))


def correct_late(run: Run, pusher: Pusher, source: FrozenSource) -> int:
    """Correct what only the description tells of; the number of that push, 0 if there is nothing of it."""
    copy, memory = run.copy, source.description.member.memory
    assert copy is not None
    void = writes_past_the_tracker(source.description.table)
    if not copy.is_to_correct or (copy.is_tracked and memory is run.seen.memory and not void):
        return 0
    correction = copy.next_correction()
    pusher.do(lambda: copy.correct(correction, memory, void=void))
    return correction


def final(run: Run, description: MemberParts, corrected: int) -> messages.Final:
    """The message that describes the frozen process, without what the destination has already."""
    whole = migration_of([description], pushed=FINAL_PUSH, corrected=corrected)
    told = without_staged(whole, {run.seen.space: run.seen.memory}, run.seen.files)
    return messages.Final(payload=messages.pack(told))


def push_runs(space: int, runs: Iterable[Runs], contents: Iterable[Content]) -> list[PushRun]:
    """Pages of a process and whole files to push, as a client of the page store wants them."""
    pages = [PushRun(space, run.address, run.address + run.pages * PAGE) for run in runs]
    return pages + [PushRun(one.space, 0, -(-one.size // PAGE) * PAGE) for one in contents]


def left(deadline: float) -> float:
    """Seconds until the deadline, never none."""
    return max(0.001, deadline - time.monotonic())


def too_long(run: Run) -> LocalError:
    """The freeze took longer than it may."""
    return LocalError(
        step="the freeze",
        object=f"process {run.options.pid}",
        cause=f"it was not over after {run.options.max_freeze:g} s, and the process runs on here",
        remedy="choose post-copy, a faster link, or a higher --max-freeze",
        code=ExitCode.TIMEOUT,
    )


def _ended(pid: int) -> LocalError:
    return LocalError(
        step="waiting for the destination",
        object=f"process {pid}",
        cause="it has ended",
        remedy="nothing is left to move",
        code=ExitCode.NO_PROCESS,
    )
