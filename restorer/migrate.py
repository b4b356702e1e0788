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
from collections.abc import Iterable
from typing import Any, NoReturn

import msgspec

from live_migration.kernel import cpu_dma_latency
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.errors import ProcessGone, SyscallFailed
from live_migration.kernel.injection.program import ProgramTooLarge
from live_migration.pager.pager import Pager, PagerState
from live_migration.process.attributes import clocks
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.contents import Content, new_contents
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import is_same_machine
from live_migration.process.descriptors.written_files import compare_written_files
from live_migration.process.member import Member
from live_migration.process.memory import vdso
from live_migration.process.memory.mapped_files import compare_written_mappings
from live_migration.process.migration import Migration, check_references, table_of, whole_table, with_staged
from live_migration.process.rehearsal import rehearse_often
from live_migration.restorer import stage as build
from live_migration.restorer.custody import start_custody
from live_migration.restorer.finish import follow
from live_migration.restorer.frontend_events import FrontendEvents
from live_migration.restorer.frontend_line import Line
from live_migration.restorer.husk_process import end_husk, is_killed, start_husk
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.preflight import Peer, new_file_blockers, preflight
from live_migration.restorer.rounds import correct, drop_discarded, memory_ranges, take_freezing, take_rounds
from live_migration.restorer.run import Run, reached, tell, write
from live_migration.restorer.waiting import (
    LAST_WORDS_SECONDS,
    expect,
    interrupted_by_frontend,
    last_words,
    lost_pages,
    receive_push,
    stopped,
)
from live_migration.wire import messages
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import LocalError, MigrationError, Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.handshake import Side
from live_migration.wire.host import snapshot_host
from live_migration.wire.meeting import meet
from live_migration.wire.report import Report
from live_migration.wire.session import Event, State, begin
from live_migration.wire.session import rehearse as rehearse_session

GREETING_SECONDS = 30.0
FINAL_SECONDS = 3600.0
COMPARED_AGAIN_SECONDS = 0.2
TICK_MS = 100
LOOK_SECONDS = 0.1
STAGING_PUSH = 1
IN_DOUBT = (
    "the connection ended after READY ({cause}), and nobody here can know whether the source has handed over: process "
    "{pid} is kept, stopped; look at what lm-serve says: {said}"
)


def migrate(options: RestoreOptions, line: Line) -> int:
    """Take the process over; the exit status of the worker. Raises MigrationError before the handover."""
    strategy = options.parameters.strategy
    report = Report(side="destination", outcome="failed", strategy=strategy, pid=0, started=time.time())
    events = FrontendEvents(line)
    session = begin(Side.DESTINATION, lambda text: line.send("note", text=text, level=0))
    roles = meet(options.meeting, "destination", events, watch=[line.fileno()])
    if roles is None:
        line.hear()
        raise stopped(line, session)
    session.happened(Event.CONNECTED)
    words = {"stdio": options.stdio, "files": options.files, "tcp": options.tcp, "path_map": options.map_path}
    described = msgspec.convert(words, DescriptorOptions)
    run = Run(options, described, line, roles, ControlChannel(roles.control), session, report)
    try:
        ready = hand_over(run)
        commit = await_commit(run, ready)
    except MigrationError as error:
        report.error = str(error)
        session.ended_by(error)
        if session.may_destroy():
            destroy(run)
        tell(run.control, error)
        write(run)
        raise
    resume(run, commit, time.monotonic_ns())
    return follow(run)


def hand_over(run: Run) -> bytes:
    """Everything up to READY, which it returns. Raises MigrationError, after which the husk has to be destroyed."""
    try:
        stage(run, prepare(run))
        apply_final(run)
        return arm(run)
    except SyscallFailed as error:
        raise cannot_build(run, str(error)) from error
    except (OSError, ProcessGone, ProgramTooLarge, LookupError) as error:
        raise cannot_build(run, str(error)) from error


def prepare(run: Run) -> Member:
    """Greet, take the description and find every blocker; the process that is moved."""
    failpoint("destination-connected")
    greeting = expect(run, messages.Greeting, GREETING_SECONDS)
    here = snapshot_host(cpu.describe(), vdso.digest(vdso.own_code()))
    # The source reads its clocks when this message has come to it.
    asked = clocks.snapshot_clocks()
    run.control.send(messages.Greeting(host=here, parameters=msgspec.to_builtins(run.options.parameters)))
    payload = expect(run, messages.Description, GREETING_SECONDS).payload
    run.staged = unpack_migration(payload)
    process = only_member(run.staged)
    failpoint("destination-described")
    blockers = preflight(run.staged, Peer(greeting.host, here), run.options, run.descriptor_options)
    if blockers:
        raise Refused(blockers, object=f"process {process.task.pid}")
    offsets = clocks.offsets_for(process.task.clocks, asked, clocks.read_offsets())
    run.husk = start_husk(process.task, run.options.pid, offsets)
    threads = len(process.task.threads)
    run.custody = start_custody(run.line.page, run.control.fileno(), run.husk.pid, run.husk.pidfd, threads)
    run.session.told = run.custody.tell
    if run.husk.namespace:
        asked_for = run.options.pid == "namespace"
        text = f"id {process.task.pid} is the process's own in a PID namespace; this host knows it as {run.husk.pid}"
        run.line.send("note", text=text, level=1 if asked_for else 0)
    failpoint("destination-husk")
    run.session.happened(Event.HUSK_STARTED)
    return process


def unpack_migration(payload: msgspec.Raw) -> Migration:
    """What the source describes. ProtocolError if it is none, or does not hold together."""
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


def stage(run: Run, member: Member) -> None:
    """Fill the husk while the source runs, and take in what cannot be paged on demand."""
    assert run.husk is not None
    assert run.custody is not None
    assert run.staged is not None
    husk, table = run.husk, table_of(run.staged, member)
    run.building = build.stage(husk.pid, husk.pidfd_number, member, table, run.descriptor_options, husk.offsets)
    run.pager = Pager()
    run.pager.add_space(member.space, run.building.userfaultfd, husk.pid)
    run.pager.connect(run.roles.fault, run.roles.bulk, run.roles.session, run.roles.attempt)
    run.pager.set_ranges(memory_ranges(member.memory), member.space)
    add_contents(run, run.staged.contents)
    run.pager.start()
    failpoint("destination-staged")
    run.control.send(messages.Staged(pid=husk.pid))
    run.session.happened(Event.STAGED)
    run.line.send("staged", pid=husk.pid)
    for sentence in run.building.warnings + run.custody.prepare():
        run.line.send("note", text=sentence, level=0)
    run.custody.rehearse(len(run.building.threads))
    build.rehearse(run.building)
    with interrupted_by_frontend(run):
        receive_push(run, STAGING_PUSH)
    failpoint("destination-pushed")
    run.control.send(messages.Pushed(push=STAGING_PUSH))
    run.session.happened(Event.PUSHED)


def add_contents(run: Run, contents: Iterable[Content]) -> None:
    """Tell the pager where the content of files without a path goes."""
    assert run.building is not None
    assert run.pager is not None
    for content in contents:
        run.pager.add_object(content.space, build.content_descriptor(run.building, content), content.size)


def wait_for_final(run: Run) -> Migration:
    """Wait for the freeze. The frontend may still stop everything."""
    assert run.building is not None
    message: messages.Freezing | messages.Final = take_rounds(run)
    gc.disable()
    run.while_frozen.enter_context(cpu_dma_latency.awake())
    due: Any = messages.Freezing | messages.Final
    while isinstance(message, messages.Freezing):
        run.session.happened(Event.FREEZE)
        rehearse_often(functools.partial(rehearse, run.building))
        take_freezing(run, message)
        message = expect(run, due, FINAL_SECONDS)
    run.session.happened(Event.FINAL)
    return take_final(run, messages.unpack(message.payload, Migration))


def take_final(run: Run, final: Migration) -> Migration:
    """The final description with what the live one has told already."""
    assert run.staged is not None
    staged = run.staged.members
    if [member.space for member in final.members] != [member.space for member in staged]:
        raise messages.broken("it describes other processes than before")
    return with_staged(final, {member.space: member.memory for member in staged}, run.staged.mapped_files)


def rehearse(building: build.Construction) -> None:
    """Do once, for nothing, what will be done while the process stands still."""
    build.rehearse(building)
    rehearse_session(Side.DESTINATION)


def apply_final(run: Run) -> None:
    """Apply what has changed since staging, and for a strategy that resumes when complete, fetch every page."""
    assert run.building is not None
    assert run.custody is not None
    assert run.pager is not None
    assert run.staged is not None
    final = wait_for_final(run)
    run.final = final
    member = only_member(final)
    table = table_of(final, member)
    failpoint("destination-final")
    run.frozen = time.time()
    if not (run.resume_at_once and run.custody.guarded):
        say_frozen(run)
    appeared = [
        *descriptor_blockers(whole_table(final), run.descriptor_options),
        *new_file_blockers(final, run.staged, run.descriptor_options),
    ]
    if appeared:
        raise Refused(appeared, object=f"process {member.task.pid}", step="the frozen process")
    build.apply_layout(run.building, member, table)
    if not member.as_staged:
        run.pager.set_ranges(memory_ranges(member.memory), member.space)
    add_contents(run, new_contents(final.contents, run.staged.contents))
    correct(run, final.corrected, member.memory)
    receive_push(run, final.pushed)
    drop_discarded(run, member.memory)
    failpoint("destination-laid-out")
    build.apply_threads(run.building, member, table, run.custody)
    failpoint("destination-built")
    blockers = compare_written(run, final, same_machine=False)
    # Asked for when there is a difference alone: a file that is read, while the process is frozen.
    if blockers and is_same_machine(member.place):
        blockers = compare_written(run, final, same_machine=True)
    if blockers:
        # A process that runs again at the source writes again: then this is not the reason.
        different = Refused(blockers, step="comparing written files", code=ExitCode.FILES)
        raise last_words(run, COMPARED_AGAIN_SECONDS) or different
    run.building.opened.close()
    if not run.resume_at_once:
        run.pager.prefetch_start()
        wait_until_complete(run)


def say_frozen(run: Run) -> None:
    """Tell the frontend that the freeze has begun. Where it is over in milliseconds that comes with its end, for the
    frontend     wants a processor to pass it on."""
    assert run.building is not None
    run.line.send("frozen", pid=run.building.husk.pid, time=run.frozen)


def compare_written(run: Run, final: Migration, *, same_machine: bool) -> list[Blocker]:
    """How what the process writes to, by a descriptor or a mapping, differs here from the source's."""
    return [
        *compare_written_files(whole_table(final), run.descriptor_options, same_machine),
        *compare_written_mappings(final.mapped_files, run.descriptor_options, same_machine),
    ]


def wait_until_complete(run: Run) -> None:
    """Wait for the last page while the source is frozen."""
    assert run.pager is not None
    while (state := run.pager.wait(PagerState.RUNNING, TICK_MS / 1000)) is PagerState.RUNNING:
        run.line.hear()
        if run.line.is_to_stop:
            raise stopped(run.line, run.session)
    if state is not PagerState.COMPLETE:
        raise last_words(run, LAST_WORDS_SECONDS) or lost_pages(run.pager.cause, run.session)


def arm(run: Run) -> bytes:
    """Everything is built: see to it that from now on our death leaves the process be. READY, as it will be sent."""
    assert run.building is not None
    assert run.custody is not None
    handed_over = sorted(run.building.opened.handed_over)
    ready = messages.encode(messages.Ready(payload=messages.pack(handed_over)))
    run.custody.arm(ready)
    run.session.happened(Event.ARMED)
    return ready


def await_commit(run: Run, ready: bytes) -> messages.Commit:
    """READY, and the source's decision. Raises MigrationError when it decided not to hand over.

    Only words tell what the source decided: COMMIT, or that it gives up. Any end of the connection, an orderly one too,
    leaves it in doubt: COMMIT may have been sent and lost. Then the husk is kept, stopped, and lm-restore waits."""
    failpoint("destination-ready")
    run.control.send_bytes(ready)
    run.session.happened(Event.READY)
    reached(run, "destination-waiting")
    try:
        ahead = run.control.look_ahead()
        if isinstance(ahead, messages.Commit):
            # Known to the custodian before it is taken out of the socket, where it could find it.
            run.session.happened(Event.COMMIT)
            run.control.skip()
            return ahead
        commit = run.control.expect(messages.Commit)
    except MigrationError as error:
        if run.session.ended_by(error) is State.IN_DOUBT:
            wait_in_doubt(run, str(error))
        raise
    run.session.happened(Event.COMMIT)
    return commit


def wait_in_doubt(run: Run, cause: str) -> NoReturn:
    """Nobody here can know whether the source has handed over: keep everything, say so, and wait.

    Raises LocalError when the process that was kept has been ended by hand."""
    assert run.husk is not None
    run.while_frozen.close()
    write(run)
    run.line.send("stalled", pid=run.husk.pid, cause=cause)
    said = run.session.said(run.husk.pid)
    run.line.send("note", text=IN_DOUBT.format(pid=run.husk.pid, cause=cause, said=said), level=0)
    while not is_killed(run.husk):
        time.sleep(LOOK_SECONDS)
    run.session.happened(Event.ENDED_BY_HAND)
    raise LocalError(
        step="the handover",
        object=f"process {run.husk.pid}",
        cause="was ended here while nobody knew whether the source had handed over",
        remedy="it runs on at the source if it had not",
        code=run.session.row.code,
    )


def resume(run: Run, commit: messages.Commit, received: int) -> None:
    """Let the process run. It is the only copy now: whatever fails here is said, and nothing is taken back."""
    assert run.husk is not None
    assert run.custody is not None
    reached(run, "destination-committed")
    run.custody.send_signals()
    run.custody.make_final(0, 1)
    reached(run, "destination-letting-go")
    run.custody.make_final(1)
    run.custody.detach()
    run.session.happened(Event.RESUMED)
    resume_ns = time.monotonic_ns() - received
    reached(run, "destination-resumed")
    run.report.downtime_ms = (commit.frozen_ns + commit.round_trip_ns // 2 + resume_ns) / 1e6
    run.report.pid = run.husk.pid
    with contextlib.suppress(MigrationError):
        run.control.send(messages.Resumed(pid=run.husk.pid, resume_ns=resume_ns))
    run.while_frozen.close()
    if run.resume_at_once and run.custody.guarded:
        say_frozen(run)
    run.line.send("resumed", pid=run.husk.pid, downtime_ms=run.report.downtime_ms)


def destroy(run: Run) -> None:
    """Before COMMIT: nothing of the husk is left."""
    if run.husk is not None:
        end_husk(run.husk)
    if run.custody is not None:
        run.custody.end()
    if run.pager is not None:
        run.pager.close()
    if run.building is not None:
        run.building.opened.undo()


def cannot_build(run: Run, cause: str) -> LocalError:
    """A step of restoring failed."""
    return LocalError(
        step="restoring the process",
        object="the husk",
        cause=cause,
        remedy=f"{run.session.row.said}; look at the cause and try again",
    )
