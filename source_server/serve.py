"""lm-serve: the order of events on the source. It reads like the picture in docs/design.md.

    snapshot -> connect -> describe -> (staged) -> push -> rounds -> freeze -> describe -> (ready) -> park, COMMIT
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
from dataclasses import replace

from live_migration.kernel import cpu_dma_latency, pidfd
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.errors import ProcessGone, SyscallFailed
from live_migration.kernel.injection.program import ProgramTooLarge
from live_migration.kernel.memory.own_memory import make_own
from live_migration.process.descriptors.blockers import passing_blockers
from live_migration.process.descriptors.contents import Content
from live_migration.process.descriptors.holding import hold_descriptors
from live_migration.process.descriptors.snapshot import came_since, changed_since
from live_migration.process.descriptors.tcp_traffic import connections_of, sockets_of
from live_migration.process.descriptors.written_files import flush_beforehand, flush_written_files
from live_migration.process.member import Runs
from live_migration.process.memory import vdso
from live_migration.process.memory.layout_change import layout_difference
from live_migration.process.memory.mapped_files import flush_written_mappings, other_host_blockers
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.migration import MemberParts, claim_of, migration_of, without_staged
from live_migration.process.rehearsal import rehearse_often
from live_migration.process.threads.landlock import witness_blockers, witnesses
from live_migration.source_server import connections, handover
from live_migration.source_server import custody as custodies
from live_migration.source_server.filters import snapshot_filters
from live_migration.source_server.kept import Kept, keep
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.client import COMPRESS_AUTO, COMPRESS_NONE, PageClient, PushRun
from live_migration.source_server.pages.contents import serve_contents, serve_new_contents
from live_migration.source_server.pages.pusher import Pusher, pushing
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.phases import Connected, Copied, Staged, tell, write
from live_migration.source_server.precopy import copy_live, push_failed, writes_past_the_tracker
from live_migration.source_server.release import serve_until_finished, tell_hot
from live_migration.source_server.snapshot import (
    FINAL_PUSH,
    PAGE,
    STAGING_PUSH,
    FrozenSource,
    SourceSnapshot,
    certain_blockers,
    changed_file_pages,
    check_blockers,
    rehearse,
    snapshot_source,
)
from live_migration.source_server.stopping import signals_held, stop_by_signal
from live_migration.source_server.vdso_exit import leave_vdso
from live_migration.source_server.waiting import await_ready, ended, left, while_it_lives
from live_migration.wire import decision, messages, same_host
from live_migration.wire.account import SOURCE_WAIT
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, Refused
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import check_fault, failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.host import snapshot_host
from live_migration.wire.kept_session import keep_session
from live_migration.wire.meeting import meet
from live_migration.wire.report import Report
from live_migration.wire.session import Event, Session, SourceRecord, begin
from live_migration.wire.session import rehearse as rehearse_session

GREETING_SECONDS = 30.0
STAGING_SECONDS = 600.0
PREPARING_SECONDS = 30.0
MOST_FREEZES = 40
TRIES = 2


def serve(options: ServeOptions, events: Events) -> int:
    """Move the process away; the exit status. Raises MigrationError with the process untouched."""
    started = time.time()
    check_fault()
    session = begin(Side.SOURCE, lambda text: events.note(text, 0))
    stop_by_signal(session, options.pid)
    with witnesses(options.pid) as seen_by, contextlib.ExitStack() as closed:
        if options.check:
            return int(check(options, events, seen_by))
        snapshot_or_refuse(options.pid, seen_by)
        session.happened(Event.LOOKED_AT)
        report = Report(side="source", outcome="failed", strategy="", pid=options.pid, started=started)
        connected = connect(options, events, session, report, closed)
        try:
            with naming_the_end(session, options.pid), naming_failures(session, options.pid):
                move(connected, seen_by)
        except MigrationError as error:
            give_up(connected, error)
            raise
        finally:
            write(connected)
    events.result(report)
    return int(ExitCode.OK)


@contextlib.contextmanager
def naming_failures(session: Session, pid: int) -> Iterator[None]:
    """Within, a failure of a call, or of what is made of a peer's or the process's words, becomes a MigrationError."""
    try:
        yield
    except (SyscallFailed, OSError, ProcessGone, ProgramTooLarge, ArithmeticError, LookupError, ValueError) as error:
        raise LocalError(
            step="moving the process",
            object=f"process {pid}",
            cause=str(error),
            remedy=f"{session.said(pid) or 'it runs on here'}; remove the cause before another try",
        ) from error


@contextlib.contextmanager
def naming_the_end(session: Session, pid: int) -> Iterator[None]:
    """Within, whatever failed before COMMIT, a process that has ended is what the user is told of: it does not run on
    here."""
    try:
        yield
    except MigrationError as error:
        if session.committed or error.code is ExitCode.NO_PROCESS or not pidfd.is_ending(pid):
            raise
        raise ended(pid, error.step, error.cause) from error


def name_blockers(seen: SourceSnapshot) -> list[Blocker]:
    """A blocker if a name cannot be told to the other side."""
    try:
        messages.pack(migration_of([seen.description()]))
    except LocalError as error:
        return [Blocker(error.object, error.cause, error.remedy)]
    return []


def check(options: ServeOptions, events: Events, seen_by: Sequence[int]) -> ExitCode:
    """--check: list every blocker. Raises LocalError."""
    try:
        seen, blockers = snapshot_source(options.pid, seen_by)
        more = [] if blockers else snapshot_filters(seen)[1]
    except Refused as error:
        return events.checked(options.pid, list(error.blockers))
    blockers += [*more, *witness_blockers(options.pid, seen_by)]
    return events.checked(options.pid, [*blockers, *check_blockers(seen), *name_blockers(seen)])


def snapshot_or_refuse(pid: int, seen_by: Sequence[int]) -> SourceSnapshot:
    """The process as it is now. Raises LocalError, and Refused with all its blockers if one of them is there whatever
    the destination's options are.

    It is read again before it is refused: what it opens and maps meanwhile may look like a blocker."""
    for _ in range(TRIES):
        seen, blockers = snapshot_source(pid, seen_by)
        if not blockers:
            seen, blockers = snapshot_filters(seen)
        blockers += [*witness_blockers(pid, seen_by), *name_blockers(seen)]
        if not blockers and not certain_blockers(seen):
            return seen
    raise Refused([*blockers, *check_blockers(seen)], object=f"process {pid}")


def connect(
    options: ServeOptions, events: Events, session: Session, report: Report, closed: contextlib.ExitStack
) -> Connected:
    """Wait for the destination, or connect to it; `closed` ends what is made here. Raises MigrationError."""
    watch = pidfd.open_pidfd(options.pid)
    roles = meet(options.meeting, "source", events, pid=options.pid, watch=[watch])
    os.close(watch)
    if roles is None:
        raise ended(options.pid, "waiting for the destination")
    # Last of all: a socket that is closed with unread bytes brings a reset, which could overtake our last words.
    closed.callback(roles.close)
    decided = closed.enter_context(decision.connect(roles, Side.SOURCE))
    session.happened(Event.CONNECTED)
    with signals_held():
        # What it makes outlives this process, unless it is ended.
        custody = custodies.start_custody(roles, decided, options.pid)
        closed.callback(custody.end)
    store = closed.enter_context(PageStore())
    client = closed.enter_context(PageClient(store))
    control = ControlChannel(roles.control)
    control.begin_pulses()
    closed.callback(control.end_pulses)
    return Connected(options, events, session, roles, control, store, client, custody, report)


def give_up(connected: Connected, error: MigrationError) -> None:
    """The process runs on: report it, here and to the destination."""
    connected.session.ended_by(error)
    say_what_became_of_it(error, connected.session.said(connected.options.pid))
    connected.report.error = str(error)
    tell(connected.control, error)
    if connected.custody.decide(SourceRecord.NO):
        connected.custody.say()


def say_what_became_of_it(error: MigrationError, said: str) -> None:
    """If the connection failed, whose errors know nothing of processes, add what has become of this one."""
    by_connection = isinstance(error, ConnectionLost) or error.code is ExitCode.TIMEOUT
    if by_connection and "runs on" not in str(error):
        error.remedy = f"{said}; {error.remedy}"


def move(connected: Connected, seen_by: Sequence[int]) -> None:
    """From the connection to the goodbye. Raises MigrationError, with the process running on."""
    # A destination may come after hours, and changes since then need not show at the freeze (an mlock or madvise of a
    # whole mapping, another program at the same addresses).
    seen = replace(snapshot_or_refuse(connected.options.pid, seen_by), leftover=connected.custody.leftover)
    connect_pages(connected, seen)
    connected.session.happened(Event.LOOKED_AT)
    with while_it_lives(connected.control, seen):
        staged = stage(connected, seen)
        copy = copy_live(seen, connected.client, connected.control, connected.events, staged.parameters)
    with contextlib.closing(copy):
        copied = Copied(staged, copy)
        get_ready(copied)
        committed = freeze_and_commit(copied)
        tell_hot(copied)
        connected.events.emit("resumed", connected.options.pid)
        # Still tracked: ending that locks the memory for 20 ms per GiB, during which no page could be read from it.
        serve_until_finished(connected, committed, kept_now(connected, copied.seen.space))


def connect_pages(connected: Connected, seen: SourceSnapshot) -> None:
    """Connect the destination to the page store, which answers nobody before the freeze. Raises OSError."""
    options, roles, client = connected.options, connected.roles, connected.client
    connected.store.add_process(seen.space, options.pid)
    levels = {"auto": COMPRESS_AUTO, "none": COMPRESS_NONE}
    client.compress(levels[options.compress] if isinstance(options.compress, str) else options.compress)
    client.connect(roles.fault, roles.bulk, roles.session, roles.attempt)


def stage(connected: Connected, seen: SourceSnapshot) -> Staged:
    """Greet, describe, wait until the husk stands, and push what cannot be paged on demand. The process runs."""
    control, client, pid = connected.control, connected.client, connected.options.pid
    failpoint("source-connected")
    control.send(messages.Greeting(host=snapshot_host(cpu.describe(), vdso.digest(vdso.own_code()))))
    greeting = control.expect(messages.Greeting, GREETING_SECONDS)
    parameters = messages.parameters_of(greeting)
    connected.report.strategy = parameters.strategy
    limits = [limit for limit in (connected.options.bandwidth_limit, parameters.bandwidth_limit) if limit]
    client.limit(min(limits, default=0))
    other_vdso = greeting.host.vdso != vdso.digest(seen.memory.vdso)
    same_machine = greeting.host.boot_id == seen.descriptors.table.place.boot
    if not same_machine and (blockers := other_host_blockers(pid, seen.files)):
        raise Refused(blockers, object=f"process {pid}")
    addresses = check_addresses(connected, seen, greeting)
    migration = migration_of([seen.description()])
    asked = greeting.challenge
    proof = same_host.answer(asked, connected.roles.session, claim_of(migration)) if asked is not None else b""
    hashes = connected.custody.hashes
    control.send(messages.Description(payload=messages.pack(migration), proof=proof, decision=hashes))
    failpoint("source-described")
    told = control.expect(messages.Staged, STAGING_SECONDS)
    keeping = check_connections(addresses, seen, repairs=told.repairs)
    connected.session.happened(Event.STAGED)
    connected.events.emit("staged", pid)
    seen.pushed.extend(changed_file_pages(pid, seen.memory))
    served = serve_contents(connected.store, seen)
    try:
        client.push(STAGING_PUSH, push_runs(seen.space, seen.pushed, served), remember=True)
    except OSError as error:
        raise push_failed(control, pid, "pushing while the process runs", error) from None
    control.expect(messages.Pushed, STAGING_SECONDS)
    connected.session.happened(Event.PUSHED)
    return Staged(connected, seen, parameters, served, same_machine, other_vdso, keeping)


def check_addresses(connected: Connected, seen: SourceSnapshot, greeting: messages.Greeting) -> connections.Keeping:
    """The addresses that the destination takes. Raises Refused, OSError."""
    pid, table = connected.options.pid, seen.descriptors.table
    found, blockers = connections.listed_addresses(pid, greeting.take_addresses)
    keeping = connections.Keeping(connected.custody.network, tuple(found), connections=False)
    blockers += connections.used_blockers(keeping, pid, table, connected.roles.numbers())
    if blockers:
        raise Refused(blockers, object=f"process {pid}")
    return keeping


def check_connections(
    keeping: connections.Keeping, seen: SourceSnapshot, *, repairs: bool
) -> connections.Keeping | None:
    """What moves besides the process, if anything. Raises Refused, OSError."""
    table = seen.descriptors.table
    keeping = replace(keeping, connections=repairs and bool(sockets_of(table)))
    if not keeping.connections and not keeping.addresses:
        return None
    blockers = connections.signed_blockers(keeping, seen.pid, table)
    if blockers := [*blockers, *connections.shared_port_blockers(keeping, seen.pid, table)]:
        raise Refused(blockers, object=f"process {seen.pid}")
    try:
        connections.prepare(keeping, table)
    except Refused:
        if connections_of(table) or keeping.addresses:
            raise
        # A connection that the process makes meanwhile ends the migration.
        return None
    return keeping


def get_ready(copied: Copied) -> None:
    """Do what is left to do while the process runs."""
    connected, seen, copy = copied.connected, copied.seen, copied.copy
    report = connected.report
    report.strategy, report.tracking, report.rounds = copy.strategy, copy.tracking, copy.done
    if not copied.staged.same_machine:
        flush_beforehand(seen.pid, seen.descriptors.table)
        with contextlib.suppress(OSError):
            flush_written_mappings(seen.pid, seen.memory.mappings)
    connected.control.measure_round_trip()
    failpoint("source-staged")


def freeze_and_commit(copied: Copied) -> handover.Committed:
    """Freeze, and freeze again if a blocker passes by itself, up to COMMIT. On every other way out the process runs on
    as before."""
    connected = copied.connected
    gc.disable()
    with pushing(connected.client) as pusher:
        for attempt in range(MOST_FREEZES):
            if attempt:
                # The pause is random, so that a process with a rhythm of its own is not always caught at the same
                # point.
                time.sleep(random.uniform(0.001, 0.02))
                pusher.wait(connected.options.max_freeze)
            correction = announce(copied)
            with cpu_dma_latency.awake():
                committed = freeze_once(copied, pusher, correction, last=attempt == MOST_FREEZES - 1)
            if committed is not None:
                return committed
    raise AssertionError("the last attempt does not end here")


def announce(copied: Copied) -> int:
    """Announce a freeze, and wait until both sides are prepared for it; returns the number of the push that corrects in
    it, 0 if there is none."""
    connected, copy = copied.connected, copied.copy
    correction = copy.next_correction() if copy.is_tracked else 0
    connected.session.happened(Event.FREEZE)
    connected.custody.ensure()
    connected.custody.at_stake()
    if copied.staged.keeping is not None:
        connections.prepare(copied.staged.keeping, copied.seen.descriptors.table)
    keep(connected.custody.memory.page, kept_now(connected, copied.seen.space))
    connected.control.send(
        messages.Freezing(
            strategy=copy.strategy,
            resume_at_once=copy.resume_at_once,
            tracking=copy.tracking,
            correction=correction,
            payload=messages.pack(copy.done),
        )
    )
    make_own()
    with while_it_lives(connected.control, copied.seen):
        connected.control.expect(messages.Prepared, PREPARING_SECONDS)
    rehearse_often(lambda: rehearse_freeze(copied))
    return correction


def kept_now(connected: Connected, space: int) -> Kept:
    """What another lm-serve would need to go on. Raises OSError."""
    options = connected.options
    session = keep_session(connected.roles, options.meeting.certificates)
    return Kept(session=session, space=space, exit_status=options.exit_status)


def rehearse_freeze(copied: Copied) -> None:
    """Do once, for nothing, what `freeze_once` does."""
    rehearse(copied.seen)
    described = copied.seen.description()
    passing_blockers(described.table, copied.staged.same_machine)
    messages.encode(final(copied.seen, described, 0))
    rehearse_session(Side.SOURCE)


def freeze_once(copied: Copied, pusher: Pusher, correction: int, *, last: bool) -> handover.Committed | None:
    """One freeze, up to COMMIT. None if a blocker passes by itself as soon as the process runs; the `last` freeze does
    not wait for that any more."""
    connected, custody = copied.connected, copied.connected.custody
    deadline = time.monotonic() + connected.options.max_freeze
    connected.account.begin(time.monotonic_ns())
    with (
        signals_held(),
        bounded(connected),
        handover.frozen(copied.seen, connected.session) as state,
        answering(connected),
        handover.refusing(state, custody),
    ):
        connected.account.step("stopping the threads")
        failpoint("source-frozen")
        source = describe(copied, state, pusher, correction, last=last)
        if source is None:
            return None
        send_final(copied, source, pusher, deadline)
        # Beside the wait for READY, which does not come before the push has arrived.
        preparing = pusher.begin(lambda: beside_ready(copied, source))
        failpoint("source-final-sent")
        connected.events.emit("frozen", connected.options.pid)
        handed_over = await_ready(connected, copied.seen, pusher, deadline)
        connected.account.step(SOURCE_WAIT)
        preparing.wait(left(deadline))
        if came := came_since(source.descriptors, handed_over):
            raise Refused(came, object=f"process {source.threads.pid}", step="the frozen process")
        if copied.staged.keeping is not None:
            connections.late_blockers(copied.staged.keeping, source)
        custody.hold(handed_over)
        committed = handover.commit(state, source, connected.control, custody, connected.account)
    # Nothing may fail any more: what cannot be cleaned up is left.
    with contextlib.suppress(MigrationError):
        failpoint("source-decided")
    custody.carry_out()
    source.descriptors.close()
    return committed


def describe(
    copied: Copied, state: handover.Frozen, pusher: Pusher, correction: int, *, last: bool
) -> FrozenSource | None:
    """Describe the frozen process, and give the correction that was announced as soon as the layout is known. None for
    what `freeze_once` says. Raises Refused."""
    seen, staged = copied.seen, copied.staged
    passing = leave_vdso(seen, state.stops) if staged.other_vdso else []
    if passing and not last:
        correct_early(copied, pusher, correction, None)
        return None
    queried = handover.query_threads(state)
    account = copied.connected.account
    account.step("asking the threads")
    if queried.memory is not seen.memory:
        # Memory that the destination makes anew has nothing of what was pushed there.
        copied.connected.client.discard_pushed(seen.space, layout_difference(seen.memory, queried.memory).unmap)
    correct_early(copied, pusher, correction, queried.memory)
    source = handover.describe(state, queried)
    account.step("describing")
    failpoint("source-queried")
    passing += passing_blockers(source.description.table, staged.same_machine)
    if staged.keeping is not None and not (passing or source.blockers):
        # A socket in repair is none that the process may meet.
        handover.park(state, source, copied.connected.custody)
        passing += connections.hold(staged.keeping, source, copied.connected.custody)
    if passing and not last:
        source.descriptors.close()
        return None
    if source.blockers or passing:
        raise Refused([*source.blockers, *passing], object=f"process {seen.pid}", step="the frozen process")
    return source


def send_final(copied: Copied, source: FrozenSource, pusher: Pusher, deadline: float) -> None:
    """Send FINAL, and the pages that are pushed with it. From here on the destination can get ready."""
    connected, seen, description = copied.connected, copied.seen, source.description
    if not copied.staged.same_machine:
        flush_written_files(description.table, source.descriptors.duplicates)
        flush_written_mappings(seen.pid, description.member.memory.mappings)
    serve_new_contents(connected.store, copied.staged.served, source)
    corrected = correct_late(copied, pusher, source)
    # Before the push, whose beginning needs the interpreter: the destination has much to do before it needs the pages.
    described = messages.encode(final(seen, description, corrected))
    connected.session.happened(Event.FINAL)
    connected.control.send_bytes(described, left(deadline))
    connected.account.step("sending the description")
    runs = push_runs(seen.space, [*source.hot, *description.member.changed], description.contents, copied.staged.served)
    pusher.do(lambda: connected.client.push(FINAL_PUSH, runs, changed=True, urgent=True))


def beside_ready(copied: Copied, source: FrozenSource) -> None:
    """Write down what is to be done to descriptors after the handover or without it, and look up what the description
    took from before the freeze. Raises OSError, Refused."""
    keeping, table = copied.staged.keeping, source.description.table
    if keeping is None:
        copied.connected.custody.prepare(source.threads.pid, hold_descriptors(table))
    found = changed_since(source.descriptors)
    if keeping is not None:
        found += connections.used_blockers(keeping, copied.seen.pid, table, copied.connected.roles.numbers())
        found += connections.shared_port_blockers(keeping, copied.seen.pid, table)
    if found:
        raise Refused(found, object=f"process {source.threads.pid}", step="the frozen process")


@contextlib.contextmanager
def bounded(connected: Connected) -> Iterator[None]:
    """Within, the custodian makes sure that even a hanging lm-serve does not freeze the process for ever."""
    connected.custody.freezing(connected.options.max_freeze)
    try:
        yield
    finally:
        connected.custody.thawed()


@contextlib.contextmanager
def answering(connected: Connected) -> Iterator[None]:
    """Within the freeze and after COMMIT, requests for pages get answers; while the process runs here they get none."""
    connected.store.open(True)
    try:
        yield
    finally:
        if not connected.session.committed:
            connected.store.open(False)


def correct_early(copied: Copied, pusher: Pusher, correction: int, memory: AddressSpace | None) -> None:
    """Make the push that was announced, if one was; it is empty if the layout is not the destination's."""
    copy, seen, client = copied.copy, copied.seen, copied.connected.client
    if correction and memory is seen.memory:
        pusher.do(lambda: copy.correct(correction, seen.memory))
    elif correction:
        pusher.do(lambda: client.push(correction, [], urgent=True))


def correct_late(copied: Copied, pusher: Pusher, source: FrozenSource) -> int:
    """Correct what only the description tells; returns the number of that push, 0 if there is nothing to correct."""
    copy, memory = copied.copy, source.description.member.memory
    void = writes_past_the_tracker(source.description.table)
    if not copy.is_to_correct or (copy.is_tracked and memory is copied.seen.memory and not void):
        return 0
    correction = copy.next_correction()
    pusher.do(lambda: copy.correct(correction, memory, void=void))
    return correction


def final(seen: SourceSnapshot, description: MemberParts, corrected: int) -> messages.Final:
    """The message that describes the frozen process, without what the destination has already."""
    whole = migration_of([description], pushed=FINAL_PUSH, corrected=corrected)
    told = without_staged(whole, {seen.space: seen.memory}, seen.files)
    return messages.Final(payload=messages.pack(told))


def push_runs(
    space: int, runs: Iterable[Runs], contents: Iterable[Content], pushed: Iterable[Content] = ()
) -> list[PushRun]:
    """Pages of a process and files to push, as a client of the page store wants them: of a file what is no hole. One
    that was `pushed` as another object, when it had another size, goes as a whole: data may have become a hole.
    """
    spaces = {(one.device, one.inode): one.space for one in pushed}
    pages = [PushRun(space, run.address, run.address + run.pages * PAGE) for run in runs]
    return pages + [
        PushRun(
            one.space,
            0,
            -(-one.size // PAGE) * PAGE,
            present=spaces.get((one.device, one.inode), one.space) == one.space,
        )
        for one in contents
    ]
