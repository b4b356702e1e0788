"""lm-restore's worker: the order of events on the destination. It reads like the picture in docs/design.md.

    connect -> preflight -> stage the husk -> STAGED -> eager pages -> FINAL -> apply -> READY -> COMMIT -> resume
        -> faults and prefetch -> FINISHED -> goodbye

Before READY every way out destroys the husk, and the source runs on. Between READY and COMMIT only the source decides.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from live_migration.kernel import cpu_dma_latency
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.errors import ProcessGone, SyscallFailed
from live_migration.kernel.injection.program import ProgramTooLarge
from live_migration.kernel.named_network import inside, open_named
from live_migration.pager.pager import Pager, PagerState
from live_migration.process.attributes import clocks
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.contents import Content, new_contents
from live_migration.process.descriptors.opening import open_descriptors
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import is_same_machine
from live_migration.process.descriptors.written_files import compare_written_files
from live_migration.process.member import Member
from live_migration.process.memory import vdso
from live_migration.process.memory.mapped_files import compare_written_mappings
from live_migration.process.migration import (
    Migration,
    check_references,
    claim_of,
    out_of_reach,
    table_of,
    whole_table,
    with_staged,
)
from live_migration.process.rehearsal import rehearse_often
from live_migration.restorer import network
from live_migration.restorer import stage as build
from live_migration.restorer.allowed import allowed_blockers
from live_migration.restorer.custody import Decided, HuskEnds, start_custody
from live_migration.restorer.finish import follow
from live_migration.restorer.frontend_events import FrontendEvents
from live_migration.restorer.frontend_line import Line
from live_migration.restorer.husk_process import end_husk, is_killed, start_husk
from live_migration.restorer.kept import Kept, keep, with_process
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.phases import Armed, Connected, Frozen, Running, Staged, Started, reached, tell, write
from live_migration.restorer.preflight import Peer, new_file_blockers, preflight
from live_migration.restorer.room import grown_blockers
from live_migration.restorer.rounds import correct, drop_discarded, memory_ranges, take_freezing, take_rounds
from live_migration.restorer.waiting import (
    LAST_WORDS_SECONDS,
    check_arrived,
    expect,
    interrupted_by_frontend,
    last_words,
    lost_pages,
    receive_push,
    stopped,
)
from live_migration.wire import decision, messages
from live_migration.wire.account import DESTINATION_WAIT, RESUMING
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import LocalError, MigrationError, Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.host import snapshot_host
from live_migration.wire.kept_session import keep_session
from live_migration.wire.meeting import meet
from live_migration.wire.report import Report
from live_migration.wire.same_host import make_secret
from live_migration.wire.session import Event, Session, State, begin
from live_migration.wire.session import rehearse as rehearse_session

GREETING_SECONDS = 30.0
IMPOSSIBLE = (ArithmeticError, LookupError, TypeError, ValueError)
FINAL_SECONDS = 3600.0
COMPARED_AGAIN_SECONDS = 0.2
TICK_MS = 100
LOOK_SECONDS = 0.1
STALE_NS = 2_000_000_000
STAGING_PUSH = 1
IN_DOUBT = (
    "the connection ended after READY, and nobody here can know whether the source has handed over: process {pid} is "
    "kept, stopped, and the source is asked until it answers; {said}"
)


def migrate(options: RestoreOptions, line: Line) -> int:
    """Take the process over; the exit status of the worker. Raises MigrationError before the handover."""
    connected = connect(options, line)
    try:
        with naming_failures(connected.session):
            staged = stage(start(connected))
            frozen = freeze(staged, take_rounds(staged))
            apply_final(frozen)
            armed = arm(frozen)
        frozen_ns = await_commit(armed)
    except MigrationError as error:
        give_up(connected, error)
        raise
    except BaseException as error:
        # A bug, which leaves nothing behind either.
        give_up(connected, unexpected(error))
        raise
    running = resume(armed, frozen_ns, armed.frozen.staged.connected.account.step(DESTINATION_WAIT))
    return follow(running)


def connect(options: RestoreOptions, line: Line) -> Connected:
    """Connect to the source, or wait for it. Raises MigrationError."""
    namespace = named_network(options.netns)
    strategy = options.parameters.strategy
    report = Report(side="destination", outcome="failed", strategy=strategy, pid=0, started=time.time())
    session = begin(Side.DESTINATION, lambda text: line.send("note", text=text, level=0))
    roles = meet(options.meeting, "destination", FrontendEvents(line), watch=[line.fileno()])
    if roles is None:
        line.hear()
        raise stopped(line, session)
    decided = decision.connect(roles, Side.DESTINATION)
    session.happened(Event.CONNECTED)
    words: dict[str, object] = {"stdio": options.stdio, "files": options.files, "tcp": options.tcp}
    words["path_map"] = options.map_path
    words["take_addresses"] = tuple(one.address for one in options.take_address)
    described = msgspec.convert({**words, "allowed_paths": options.allow_path}, DescriptorOptions)
    control = ControlChannel(roles.control)
    control.begin_pulses()
    return Connected(options, described, line, roles, decided, control, session, report, namespace)


def named_network(name: str) -> int:
    """The network namespace of that name, -1 for none. Raises LocalError (USAGE)."""
    try:
        return open_named(name) if name else -1
    except OSError as error:
        raise LocalError(
            step="reading the options",
            object=f"--netns {name}",
            cause=f"there is no such network namespace that lm-restore may enter ({error.strerror})",
            remedy="name one of those that `ip netns list` shows, and run lm-restore as root",
            code=ExitCode.USAGE,
        ) from None


@contextlib.contextmanager
def naming_failures(session: Session) -> Iterator[None]:
    """Within, a failure to restore the process becomes a MigrationError that says so; what is described may be
    impossible in many ways, a number that is too large for instance."""
    try:
        yield
    except (SyscallFailed, OSError, ProcessGone, ProgramTooLarge, *IMPOSSIBLE) as error:
        raise LocalError(
            step="restoring the process",
            object="the husk",
            cause=str(error),
            remedy=f"{session.row.said}; remove the cause before another try",
        ) from error


def unexpected(error: BaseException) -> LocalError:
    """What the other side is told of an error that nobody has thought of."""
    return LocalError(
        step="restoring the process",
        object="lm-restore",
        cause=f"an error of its own ({type(error).__name__})",
        remedy="look at what it says",
        code=ExitCode.BUG,
    )


def give_up(connected: Connected, error: MigrationError) -> None:
    """Before COMMIT: nothing of the husk is left, and the source is told why."""
    connected.report.error = str(error)
    connected.session.ended_by(error)
    if connected.session.may_destroy():
        for take_back in connected.undo:
            with contextlib.suppress(OSError):
                take_back()
    tell(connected.control, error)
    write(connected)


def start(connected: Connected) -> Started:
    """Greet, take the description, find every blocker, and start the husk."""
    failpoint("destination-connected")
    greeting = expect(connected, messages.Greeting, GREETING_SECONDS)
    here = snapshot_host(cpu.describe(), vdso.digest(vdso.own_code()))
    # The source reads its clocks when it has received this message.
    asked = clocks.snapshot_clocks()
    options, control, line = connected.options, connected.control, connected.line
    with contextlib.closing(make_secret()) as secret:
        taken = connected.descriptor_options.take_addresses
        control.send(
            messages.Greeting(
                host=here, parameters=options.parameters, challenge=secret.challenge(), take_addresses=taken
            )
        )
        message = expect(connected, messages.Description, GREETING_SECONDS)
    described = unpack_migration(message.payload)
    if not secret.is_proven(connected.roles.session, claim_of(described), message.proof):
        described = out_of_reach(described)
    task = only_member(described).task
    failpoint("destination-described")
    # What is not allowed is not even looked for.
    blockers = allowed_blockers(described, options.allow_uid, connected.descriptor_options)
    if not blockers:
        with inside(connected.network):
            blockers = preflight(described, Peer(greeting.host, here), options, connected.descriptor_options)
    if blockers:
        raise Refused(blockers, object=f"process {task.host_pid}")
    offsets = clocks.offsets_for(task.clocks, asked, clocks.read_offsets())
    with inside(connected.network):
        husk = start_husk(task, options.pid, offsets)
    connected.undo.append(functools.partial(end_husk, husk))
    ends = HuskEnds(husk.pid, husk.pidfd, len(task.threads))
    changed = network.open_network(options.take_address, connected.network)
    custody = start_custody(line.page, connected.roles, connected.decision, message.decision, ends, changed)
    connected.undo.append(custody.end)
    connected.session.told = custody.tell
    if husk.namespace:
        asked_for = options.pid == "namespace"
        text = f"id {task.pid} is the process's own in a PID namespace; this host knows it as {husk.pid}"
        line.send("note", text=text, level=1 if asked_for else 0)
    failpoint("destination-husk")
    connected.session.happened(Event.HUSK_STARTED)
    return Started(connected, described, husk, custody)


def unpack_migration(payload: msgspec.Raw) -> Migration:
    """What the source describes. ProtocolError if it is no description, or does not hold together."""
    migration = messages.unpack(payload, Migration)
    try:
        check_references(migration)
    except ValueError as error:
        raise messages.broken(str(error)) from None
    return migration


def only_member(migration: Migration) -> Member:
    """The member of a migration that moves one process."""
    if len(migration.members) != 1:
        raise messages.broken(f"it describes {len(migration.members)} processes")
    return migration.members[0]


def stage(started: Started) -> Staged:
    """Fill the husk while the source runs, and take in what cannot be paged on demand."""
    connected, described, husk, custody = started.connected, started.described, started.husk, started.custody
    member = only_member(described)
    table = table_of(described, member)
    pager = Pager()
    connected.undo.append(pager.close)
    with inside(connected.network):
        opened = open_descriptors(table, connected.descriptor_options, process=husk.pid)
    connected.undo.append(opened.undo)
    building = build.stage(husk, member, table, connected.descriptor_options, opened)
    roles = connected.roles
    session = keep_session(roles, connected.options.meeting.certificates)
    kept = Kept(session=session, strategy=connected.report.strategy)
    staged = Staged(connected, described, husk, custody, building, pager, kept)
    pager.add_space(member.space, building.userfaultfd, husk.pid)
    pager.connect(roles.fault, roles.bulk, roles.session, roles.attempt)
    pager.set_ranges(memory_ranges(member.memory), member.space)
    add_contents(staged, described.contents)
    keep(pager, with_process(kept, described.members, building.threads))
    pager.start()
    failpoint("destination-staged")
    if connected.descriptor_options.tcp == "keep" and not opened.context.reaches_sockets:
        custody.network.prepare(table)
    repairs = staged.repairs
    connected.control.send(messages.Staged(pid=husk.pid, repairs=repairs))
    connected.session.happened(Event.STAGED)
    connected.line.send("staged", pid=husk.pid, source_pid=member.task.host_pid)
    for sentence in building.warnings + custody.prepare():
        connected.line.send("note", text=sentence, level=0)
    custody.rehearse(len(building.threads))
    build.rehearse(building)
    with interrupted_by_frontend(connected):
        receive_push(staged, STAGING_PUSH)
    failpoint("destination-pushed")
    connected.control.send(messages.Pushed(push=STAGING_PUSH))
    connected.session.happened(Event.PUSHED)
    return staged


def add_contents(staged: Staged, contents: Iterable[Content]) -> None:
    """Tell the pager where the content of files without a path goes."""
    for content in contents:
        staged.pager.add_object(content.space, build.content_descriptor(staged.building, content), content.size)


def freeze(staged: Staged, announced: messages.Freezing) -> Frozen:
    """Rehearse, and wait for the frozen process, as often as a freeze is announced. The frontend may still stop
    everything."""
    session = staged.connected.session
    held = contextlib.ExitStack()
    message: messages.Freezing | messages.Final = announced
    gc.disable()
    held.enter_context(cpu_dma_latency.awake())
    due: Any = messages.Freezing | messages.Final
    while isinstance(message, messages.Freezing):
        session.happened(Event.FREEZE)
        announced = message
        rehearse_often(functools.partial(rehearse, staged.building))
        take_freezing(staged, announced)
        message = expect(staged.connected, due, FINAL_SECONDS)
    account = staged.connected.account
    account.begin(time.monotonic_ns())
    session.happened(Event.FINAL)
    staged.custody.final_came()
    final = take_final(staged.described, messages.unpack(message.payload, Migration))
    account.step("reading the description")
    failpoint("destination-final")
    frozen = Frozen(staged, final, announced.resume_at_once, time.time(), held)
    if not frozen.is_short:
        say_frozen(frozen)
    return frozen


def take_final(staged: Migration, final: Migration) -> Migration:
    """The final description with what the live one has told already."""
    if [member.space for member in final.members] != [member.space for member in staged.members]:
        raise messages.broken("it describes other processes than before")
    final = with_staged(final, {member.space: member.memory for member in staged.members}, staged.mapped_files)
    # Where they run was proven for the live description, or not.
    members = [replace(one, place=before.place) for one, before in zip(final.members, staged.members, strict=True)]
    return replace(final, members=members)


def rehearse(building: build.Construction) -> None:
    """Do once, for nothing, what will be done while the process stands still."""
    build.rehearse(building)
    rehearse_session(Side.DESTINATION)


def say_frozen(frozen: Frozen) -> None:
    """Tell the frontend that the freeze has begun. If it is over in milliseconds, that comes with its end, for the
    frontend needs a processor to pass it on."""
    source_pid = only_member(frozen.final).task.host_pid
    line = frozen.staged.connected.line
    line.send("frozen", pid=frozen.staged.husk.pid, source_pid=source_pid, time=frozen.since)


def apply_final(frozen: Frozen) -> None:
    """Apply what has changed since staging, and for a strategy that resumes when complete, fetch every page."""
    staged, final, account = frozen.staged, frozen.final, frozen.staged.connected.account
    building, pager, described = staged.building, staged.pager, staged.connected.descriptor_options
    member = only_member(final)
    table = table_of(final, member)
    appeared = allowed_blockers(final, staged.connected.options.allow_uid, described) or [
        *descriptor_blockers(whole_table(final), described),
        *new_file_blockers(final, staged.described, described),
        *grown_blockers(member, building.staged, staged.husk.pid, staged.connected.options.max_memory),
    ]
    if appeared:
        raise Refused(appeared, object=f"process {member.task.host_pid}", step="the frozen process")
    if staged.repairs:
        network.hold(staged.custody.network, table)
    with inside(staged.connected.network):
        build.apply_layout(building, member, table)
    if not member.as_staged:
        pager.set_ranges(memory_ranges(member.memory), member.space)
    add_contents(staged, new_contents(final.contents, staged.described.contents))
    account.step("laying out")
    correct(staged, final.corrected, member.memory)
    receive_push(staged, final.pushed)
    drop_discarded(staged, member.memory)
    account.step("receiving pages")
    failpoint("destination-laid-out")
    build.apply_threads(building, member, table, staged.custody)
    account.step("restoring the threads")
    failpoint("destination-restored")
    blockers = compare_written(final, described, same_machine=False)
    # Checked only when there is a difference: it reads a file while the process is frozen.
    if blockers and is_same_machine(member.place):
        blockers = compare_written(final, described, same_machine=True)
    if blockers:
        # A process that runs again at the source writes again: then that is why the files differ.
        different = Refused(blockers, step="comparing written files", code=ExitCode.FILES)
        raise last_words(staged.connected, COMPARED_AGAIN_SECONDS) or different
    account.step("comparing files")
    if not frozen.resume_at_once:
        pager.prefetch_start()
        wait_until_complete(staged)
        account.step("completing the memory")


def compare_written(final: Migration, options: DescriptorOptions, *, same_machine: bool) -> list[Blocker]:
    """How what the process writes to, by a descriptor or a mapping, differs here from the source's."""
    return [
        *compare_written_files(whole_table(final), options, same_machine),
        *compare_written_mappings(final.mapped_files, options, same_machine),
    ]


def wait_until_complete(staged: Staged) -> None:
    """Wait for the last page while the source is frozen."""
    connected, pager = staged.connected, staged.pager
    while (state := pager.wait(PagerState.RUNNING, TICK_MS / 1000)) is PagerState.RUNNING:
        connected.line.hear()
        if connected.line.is_to_stop:
            raise stopped(connected.line, connected.session)
        check_arrived(staged)
    if state is not PagerState.COMPLETE:
        raise last_words(connected, LAST_WORDS_SECONDS) or lost_pages(pager.cause, connected.session)


def arm(frozen: Frozen) -> Armed:
    """Everything is restored: see to it that from now on our death leaves the process as it is."""
    staged = frozen.staged
    handed_over = sorted(staged.building.opened.handed_over)
    ready = messages.encode(messages.Ready(payload=messages.pack(handed_over)))
    if staged.repairs or staged.connected.options.take_address:
        begun = staged.building.opened.context.begun
        staged.custody.write_begun(staged.husk.pid, network.begun_tables(staged.custody.network, begun))
    staged.custody.arm()
    staged.connected.session.happened(Event.ARMED)
    return Armed(frozen, ready)


def await_commit(armed: Armed) -> int:
    """READY, and the decision: how long the freeze has lasted when COMMIT comes, in nanoseconds (0: not known).
    Raises MigrationError when the source decided not to hand over.

    Only the source's two tokens tell what it decided. Any end of the connection, even an orderly one, leaves that in
    doubt: COMMIT may have been said and lost. Then the husk is kept, stopped, and the source is asked until it answers.
    """
    frozen = armed.frozen
    connected, custody, husk = frozen.staged.connected, frozen.staged.custody, frozen.staged.husk
    session = connected.session
    failpoint("destination-ready")
    connected.control.send_bytes(armed.ready)
    connected.account.step("getting ready")
    session.happened(Event.READY)
    stale_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + STALE_NS
    reached(connected, "destination-waiting")
    while True:
        decided, frozen_ns = custody.ask(LOOK_SECONDS, stale_ns)
        if decided is Decided.COMMIT:
            session.happened(Event.COMMIT)
            return frozen_ns
        if decided is Decided.NO:
            session.happened(Event.ABORTED)
            if custody.by_hand:
                raise ended_by_hand(husk.pid, ExitCode.IN_DOUBT)
            raise last_words(connected, LAST_WORDS_SECONDS) or not_handed_over(husk.pid)
        if is_killed(husk):
            session.happened(Event.ENDED_BY_HAND)
            raise ended_by_hand(husk.pid, session.row.code)
        if not custody.is_connected and session.state is State.READY:
            session.happened(Event.LOST)
            say_in_doubt(frozen)


def say_in_doubt(frozen: Frozen) -> None:
    """Nobody here can know whether the source has handed over: keep everything, and say so."""
    connected, husk = frozen.staged.connected, frozen.staged.husk
    frozen.held.close()
    write(connected)
    connected.line.send("stalled", pid=husk.pid, cause="the connection to the source is lost")
    said = connected.session.said(husk.pid)
    connected.line.send("note", text=IN_DOUBT.format(pid=husk.pid, said=said), level=0)


def not_handed_over(pid: int) -> LocalError:
    """The source said NO, and not why."""
    return LocalError(
        step="the handover",
        object=f"process {pid}",
        cause="the source has decided not to hand over",
        remedy="it runs on there; look at what lm-serve says, and try again",
        code=ExitCode.LOST_BEFORE,
    )


def ended_by_hand(pid: int, code: ExitCode) -> LocalError:
    """Somebody has ended the husk while nobody knew."""
    return LocalError(
        step="the handover",
        object=f"process {pid}",
        cause="was ended here while nobody knew whether the source had handed over",
        remedy="it runs on at the source if the source has not handed over",
        code=code,
    )


def resume(armed: Armed, frozen_ns: int, received: int) -> Running:
    """Let the process run. It is the only copy now: a failure here is reported, and nothing is taken back. `frozen_ns`
    as await_commit has it, `received`: when (CLOCK_MONOTONIC)."""
    frozen, staged = armed.frozen, armed.frozen.staged
    connected, husk, custody = staged.connected, staged.husk, staged.custody
    reached(connected, "destination-committed")
    custody.begin()
    custody.send_signals()
    custody.make_final(0, 1)
    reached(connected, "destination-letting-go")
    custody.make_final(1)
    custody.detach()
    connected.session.happened(Event.RESUMED)
    resume_ns = connected.account.step(RESUMING) - received
    custody.say_resumed()
    reached(connected, "destination-resumed")
    report = connected.report
    # What is heard late does not say it: then it is by the clock, from when the final description came.
    known = (frozen_ns + resume_ns) / 1e6
    report.downtime_ms = known if frozen_ns else (time.time() - frozen.since) * 1e3
    report.pid = husk.pid
    connected.control.post(messages.Resumed(pid=husk.pid, resume_ns=resume_ns))
    frozen.held.close()
    if frozen.is_short:
        say_frozen(frozen)
    connected.line.send("resumed", pid=husk.pid, downtime_ms=report.downtime_ms)
    for address in custody.network.resumed():
        connected.line.send("note", text=f"address {address} could not be added here; add it (ip address add)", level=0)
    kept = with_process(replace(staged.kept, resume_ns=resume_ns), frozen.final.members, staged.building.threads)
    return Running(connected, husk, custody, staged.pager, kept, frozen.resume_at_once)
