"""A process without its memory and descriptors: the one place where the rest of this folder's parts meet.

On the source:

    live     snapshot_task(process)                                everything /proc tells; the sleeps under way
    frozen   snapshot_stopped_task(process, stops, live)           what ptrace and /proc tell of the stopped threads
             query_process, query_thread(program)                  rows run in the leader, and in each thread
             snapshot_pending_signals(stopped)                     after the query of the timers
             complete_task(stopped, pending, replies...)       the description that travels

The destination's side is process/task_restore.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from live_migration._lm import ffi
from live_migration.kernel.arch.arch import Registers, instructions
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import Data, Outcome, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.tracing import tracee
from live_migration.process import family
from live_migration.process.attributes import credentials, limits, prctl, semaphores, signals, timers
from live_migration.process.attributes.clocks import Clocks, snapshot_clocks
from live_migration.process.attributes.credentials import Credentials
from live_migration.process.attributes.limits import Limits
from live_migration.process.attributes.prctl import Attributes, MemoryPlan
from live_migration.process.attributes.session import Session, snapshot_session
from live_migration.process.attributes.signals import Signals
from live_migration.process.attributes.status import proof
from live_migration.process.attributes.timers import PosixTimer, Timers
from live_migration.process.scope import HostScan
from live_migration.process.threads import interrupted, scheduling, threads
from live_migration.process.threads.filters import Filter
from live_migration.process.threads.injection import injection_blockers
from live_migration.process.threads.landlock import landlock_blockers
from live_migration.process.threads.own_state import (
    changed_namespace_blockers,
    for_children_blockers,
    look_at_threads,
    namespaces_of,
    own_state_blockers,
)
from live_migration.process.threads.sleeps import NOT_SEEN, Sleep, Slept, slept, snapshot_sleeps
from live_migration.process.threads.threads import StoppedThread, Thread, ThreadOutside
from live_migration.wire.blockers import Blocker

CAP_SYS_ADMIN = 21
ONLY_64_BIT = "only 64-bit code can be moved: end that part of the program before the move"


class TaskDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A process's threads and attributes. `pid` is its id as it sees itself, `host_pid` as the source host does.

    The first of `threads` is the leader. In a live description they lack what only a stopped thread can tell. Seccomp
    `filters` are told only there.
    """

    pid: int
    host_pid: int
    clocks: Clocks
    threads: tuple[Thread, ...]
    credentials: Credentials
    limits: Limits
    attributes: Attributes
    memory_plan: MemoryPlan
    signals: Signals = Signals()
    timers: Timers = Timers()
    filters: tuple[Filter, ...] = ()


@dataclass(frozen=True)
class LiveTask:
    """The snapshot of the running process, with what makes the frozen one short. `chains` are the seccomp filters of
    each thread, by its id for the host and the leader first; those of new threads come in the freeze. `namespaces` are
    the inodes of the leader's."""

    process: ProcessSnapshot
    description: TaskDescription
    outside: dict[int, ThreadOutside]
    proof: bytes
    sleeps: dict[int, Sleep]
    session: Session
    namespaces: dict[str, int]
    chains: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoppedTask:
    """The frozen process before anything runs in it; `asleep` has the sleeps, by host thread id.

    `blockers` have come since the live snapshot, and running anything would harm the process."""

    process: ProcessSnapshot
    threads: tuple[StoppedThread, ...]
    stopped: bool
    clocks: Clocks
    outside: dict[int, ThreadOutside]
    description: TaskDescription
    asleep: dict[int, Slept]
    session: Session
    chains: dict[int, tuple[int, ...]]
    blockers: list[Blocker] = field(default_factory=list)


@dataclass(frozen=True)
class PendingSignals:
    """The signals that wait, read after the query of the timers; `monotonic` is when, by the process's clock.
    """

    shared: tuple[bytes, ...]
    of_threads: dict[int, tuple[bytes, ...]]
    monotonic: int


@dataclass(frozen=True)
class ProcessQuery:
    """Where the replies of `query_process` stand."""

    replies: Data
    timers: Data
    posix_timers: tuple[PosixTimer, ...]


@dataclass(frozen=True)
class ProcessReplies:
    """The leader's reply, as raw structures."""

    replies: bytes
    timers: bytes
    posix_timers: tuple[PosixTimer, ...]


def snapshot_task(process: ProcessSnapshot) -> LiveTask:
    """Read a running process from outside. Raises ProcessGone, PermissionError without the right to trace it."""
    pid = process.pid
    outside = _snapshot_outside(process)
    description = TaskDescription(
        pid=outside[pid].tid,
        host_pid=pid,
        clocks=snapshot_clocks(process),
        threads=tuple(
            Thread(
                tid=thread.tid,
                host_tid=thread.host_tid,
                name=thread.name,
                scheduling=thread.scheduling,
                credentials=thread.credentials,
                robust_list=thread.robust_list,
                robust_list_length=thread.robust_list_length,
            )
            for thread in outside.values()
        ),
        credentials=outside[pid].credentials,
        limits=limits.snapshot_limits(process),
        attributes=Attributes(),
        memory_plan=prctl.snapshot_memory_plan(process),
        signals=Signals(stopped=process.status["State"].startswith("T")),
        timers=Timers(posix_timers=timers.snapshot_timers(process)),
    )
    # The leader's credentials are of the same moment as the proof that they have not changed.
    known = proof(process.status_text)
    return LiveTask(
        process,
        description,
        outside,
        known,
        snapshot_sleeps(outside),
        snapshot_session(process),
        namespaces_of(pid),
    )


def _snapshot_outside(process: ProcessSnapshot) -> dict[int, ThreadOutside]:
    """All threads, the leader first. Raises ProcessGone when the leader has ended."""
    found = {process.pid: threads.snapshot_thread_outside(process, process.pid)}
    for tid in process.thread_ids:
        if tid == process.pid:
            continue
        try:
            found[tid] = threads.snapshot_thread_outside(process, tid)
        except ProcessGone:
            continue
    return found


def task_blockers(live: LiveTask, scan: HostScan) -> list[Blocker]:
    """The blockers of the running process beside `family.process_blockers`. Slow: it reads all processes of the host.
    Raises ProcessGone, OSError."""
    description, process = live.description, live.process
    pid = process.pid
    return [
        *family.sharing_blockers(process, scan),
        *own_state_blockers(pid, live.outside, administrators(live.outside)),
        *for_children_blockers(pid, live.namespaces),
        *semaphores.undo_blockers(process),
        *credentials.namespace_blockers(process),
        *limits.limits_blockers(process, description.limits),
        *timers.timer_blockers(description.timers, description.pid, [one.tid for one in description.threads]),
    ]


def snapshot_stopped_task(
    process: ProcessSnapshot, stops: Sequence[tracee.Stop], live: LiveTask, looked: Sequence[StoppedThread] = ()
) -> StoppedTask:
    """Read the frozen process, the leader's stop first, before any program runs in it. `process` is a snapshot of it
    that was begun when it stood still.

    `looked` are the threads, if the caller has read them already (`threads.stopped_thread`), in the order of `stops`.
    This is short, since little of what `live` knows is read again. Raises ProcessGone, OSError.
    """
    pid, description, outside, session = process.pid, live.description, live.outside, live.session
    clocks = snapshot_clocks(process)
    blockers: list[Blocker] = []
    if proof(process.status_text) != live.proof:
        blockers += family.seccomp_blockers(process)
        session = snapshot_session(process)
        leader = msgspec.structs.replace(outside[pid], credentials=credentials.snapshot_credentials(process.status))
        outside = {**outside, pid: leader}
    tids = [stop.tid for stop in stops]
    may_have_changed = administrators(outside)
    # Another one than those that are known may have been an administrator, too.
    closely = look_at_threads(pid, tids, {*may_have_changed, *(tid for tid in tids if tid not in outside)})
    blockers += injection_blockers(tids, description.filters, live.chains, closely.calls)
    blockers += own_state_blockers(pid, closely.state, closely.namespaces)
    if pid in may_have_changed:
        blockers += changed_namespace_blockers(pid, live.namespaces)
    present_limits = limits.reread(process, description.limits)
    if limits.directories(present_limits) != limits.directories(description.limits):
        blockers += limits.limits_blockers(process, present_limits)
    if any(tid not in outside for tid in tids):
        outside = {**_snapshot_outside(process), **{tid: outside[tid] for tid in tids if tid in outside}}
    states = tuple(looked) or tuple(threads.snapshot_stopped_thread(tid) for tid in tids)
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return StoppedTask(
        process=process,
        threads=states,
        stopped=any(stop.kind is tracee.StopKind.GROUP for stop in stops),
        clocks=clocks,
        outside=outside,
        description=msgspec.structs.replace(description, limits=present_limits),
        asleep={
            tid: slept(live.sleeps.get(tid), tid, now, process.status_text if tid == pid else None)
            for tid, thread in zip(tids, states, strict=True)
            if interrupted.needs_time(Registers(thread.registers))
        },
        session=session,
        chains=live.chains,
        blockers=blockers,
    )


def administrators(outside: Mapping[int, ThreadOutside]) -> list[int]:
    """The threads that have CAP_SYS_ADMIN, or may have it."""
    return [tid for tid, thread in outside.items() if thread.credentials.permitted >> CAP_SYS_ADMIN & 1]


def snapshot_pending_signals(stopped: StoppedTask) -> PendingSignals:
    """The pending signals of the frozen process, after `query_process` has run.

    In this order a timer that runs out meanwhile is seen in both places, and can be recognised
    (`timers.expired_by`).
    """
    tids = [thread.host_tid for thread in stopped.threads]
    return PendingSignals(
        shared=signals.snapshot_pending(tids[0], shared=True),
        of_threads=signals.snapshot_pending_of(tids),
        monotonic=snapshot_clocks(stopped.process).monotonic,
    )


def late_signals(stopped: StoppedTask, described: PendingSignals, now: PendingSignals) -> list[tuple[int | None, int]]:
    """(thread id as the process sees it, or None, signal) for all that has come between two readings: to be sent at the
    destination.
    """
    found: list[tuple[int | None, int]] = []
    for tid, queue in now.of_threads.items():
        late = signals.late_signals(queue, described.of_threads.get(tid, ()))
        found += [(stopped.outside[tid].tid, signals.signal_number(information)) for information in late]
    late = signals.late_signals(now.shared, described.shared)
    return found + [(None, signals.signal_number(information)) for information in late]


def query_process(
    program: Program, posix_timers: Sequence[PosixTimer], left_out: Container[int] = ()
) -> ProcessQuery:
    """Rows for the frozen leader: actions of signals, limits, prctl settings, timers. They change nothing.

    `posix_timers` are those of `timers.snapshot_timers`, read again when frozen: it is one small file. System calls
    that are `left_out` are not made.
    """
    replies = program.reserve(int(ffi.sizeof("lm_process_replies")))
    signals.query_actions(program, replies + int(ffi.offsetof("lm_process_replies", "actions")))
    limits.query_limits(program, replies + int(ffi.offsetof("lm_process_replies", "limits")))
    prctl.query_attributes(program, replies, left_out)
    return ProcessQuery(replies, timers.query_timers(program, posix_timers), tuple(posix_timers))


def reply_process(outcome: Outcome, query: ProcessQuery) -> ProcessReplies:
    """The leader's reply."""
    return ProcessReplies(outcome.read(query.replies), outcome.read(query.timers), query.posix_timers)


def complete_task(
    stopped: StoppedTask,
    pending: PendingSignals,
    replies: ProcessReplies,
    thread_replies: Mapping[int, bytes],
    path_at: Callable[[int], str] = lambda address: "",
) -> TaskDescription:
    """The whole description; `thread_replies` are by host thread id (`threads.reply_thread`).

    `path_at` tells of which file the code at an address is; without it some timeouts begin again.

    Raises OSError when the time of an interrupted call cannot be read from the process's memory.
    """
    raw = replies.replies
    current_timers = timers.reply_timers(replies.timers, replies.posix_timers)
    alarm, expired = timers.expired_by(current_timers, pending.monotonic - stopped.clocks.monotonic)
    actions_offset = int(ffi.offsetof("lm_process_replies", "actions"))
    actions_size = signals.SIGNALS * int(ffi.sizeof("lm_kernel_sigaction"))
    limits_offset = int(ffi.offsetof("lm_process_replies", "limits"))
    shared = signals.without_expired(pending.shared, alarm, expired)
    usual = scheduling.usual_slice()
    alike: dict[tuple[bytes, Credentials], Thread] = {}
    unchanged = _unchanged(stopped)
    whole = []
    for thread in stopped.threads:
        outside, replies_of_thread = stopped.outside[thread.host_tid], thread_replies[thread.host_tid]
        own = signals.without_expired(pending.of_threads.get(thread.host_tid, ()), alarm, expired)
        takes_signal = signals.takes_any(thread.signal_mask, (*own, *shared))
        registers, call = _registers_to_resume(stopped, thread, takes_signal, path_at)
        common = (threads.common_part(replies_of_thread), outside.credentials)
        changed = thread.host_tid not in unchanged and _have_changed(stopped, thread.host_tid)
        like = None if changed else alike.get(common)
        if like is None:
            held = None if changed else threads.known_credentials(outside, replies_of_thread)
            if held is not None:
                like = alike[common] = threads.thread_like(replies_of_thread, held, usual)
            else:
                held = threads.credentials_again(stopped.process, thread.host_tid, replies_of_thread)
                like = threads.thread_like(replies_of_thread, held, usual)
        chain = stopped.chains.get(thread.host_tid, ())
        whole.append(
            threads.complete_thread(like, outside, thread, registers, own, replies_of_thread, call, chain)
        )
    description = stopped.description
    return msgspec.structs.replace(
        description,
        # From before the query: the timers told what was left of them then or a little later, so it is never too short.
        clocks=stopped.clocks,
        threads=tuple(whole),
        credentials=whole[0].credentials,
        limits=msgspec.structs.replace(
            description.limits,
            limits=limits.reply_limits(raw[limits_offset : limits_offset + 16 * len(limits.LIMITS)]),
            personality=whole[0].personality,
        ),
        attributes=prctl.reply_attributes(raw),
        memory_plan=msgspec.structs.replace(description.memory_plan, program_break=prctl.reply_break(raw)),
        signals=Signals(
            actions=signals.reply_actions(raw[actions_offset : actions_offset + actions_size]),
            pending=shared,
            stopped=stopped.stopped,
        ),
        timers=current_timers,
        filters=(),
    )


def _unchanged(stopped: StoppedTask) -> set[int]:
    """The leader, and the threads of which one pass over all shows that they have, of the credentials that they do not
    tell themselves, what they are known to have: the same as the leader."""
    pid = stopped.process.pid
    leader = credentials.only_in_status(stopped.outside[pid].credentials)
    known = {tid: one.credentials for tid, one in stopped.outside.items() if tid != pid}
    tids = [one.host_tid for one in stopped.threads if one.host_tid in known]
    tids = [tid for tid in tids if credentials.may_change_unseen(known[tid])]
    same = credentials.showing(stopped.process, tids)
    return {pid, *(tid for tid in same if credentials.only_in_status(known[tid]) == leader)}


def _have_changed(stopped: StoppedTask, tid: int) -> bool:
    """Are credentials of a thread, of those that it does not tell itself, others than before the freeze? Those of the
    leader are known (`snapshot_stopped_task`)."""
    known = stopped.outside[tid].credentials
    if not credentials.may_change_unseen(known):
        return False
    return not credentials.shows(stopped.process.read(f"task/{tid}/status"), known)


def _registers_to_resume(
    stopped: StoppedTask, thread: StoppedThread, takes_signal: bool, path_at: Callable[[int], str]
) -> tuple[Registers, interrupted.InterruptedCall | None]:
    registers = Registers(thread.registers)
    code = b""
    reader = interrupted.Reader(stopped.process.pid)
    if interrupted.needs_time(registers):
        length = instructions.NUMBER_ROOM
        try:
            code = reader(registers.instruction_pointer - length, length)
        except OSError:
            code = b""
    in_library = interrupted.is_c_library(path_at(registers.instruction_pointer)) if code else False
    seen = stopped.asleep.get(thread.host_tid, NOT_SEEN)
    return interrupted.registers_to_resume(registers, takes_signal, code, reader, seen, in_library)


def frozen_blockers(
    task: TaskDescription, thread_replies: Mapping[int, bytes], process: ProcessSnapshot, scan: HostScan
) -> list[Blocker]:
    """Blockers that only the frozen process could tell: keyrings, 32-bit code, new children. `process` is a snapshot of
    it."""
    found = []
    fine: set[bytes] = set()
    for thread in task.threads:
        if not Registers(thread.registers).is_64_bit:
            found.append(Blocker(object=f"thread {thread.tid}", cause="it runs 32-bit code", remedy=ONLY_64_BIT))
        replies = thread_replies[thread.host_tid]
        common = threads.common_part(replies)
        if common in fine:
            continue
        confined = landlock_blockers(thread.tid, threads.witnesses_of(replies))
        found += confined
        if not confined and not threads.keyring_of(replies):
            fine.add(common)
        elif threads.keyring_of(replies):
            found.append(
                Blocker(
                    object=f"keyring of thread {thread.tid}",
                    cause="a thread or process keyring (keyrings(7)) belongs to the kernel that made it",
                    remedy="keep the keys in a session keyring, or revoke them",
                )
            )
    found += timers.timer_blockers(task.timers, task.pid, [thread.tid for thread in task.threads])
    found += family.child_blockers(process.pid, scan)
    found += semaphores.undo_blockers(process)
    return found
