"""The destination's side of process/task.py: preflight, and the rows that make the husk the process that was described.

preflight_task(description, ...)                       every blocker
create_threads(program, ...)                           rows in the husk's first thread
restore_process(program, description, ...)             rows in the first thread, when all threads exist
restore_thread(program, thread, ...)                   rows in each thread
finish_process(program, description, ...)              last rows in the first thread: what must come late
sent_after_resume                                      signals that no row can queue
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import msgspec

from live_migration._lm import lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.attributes import credentials, limits, prctl, signals, timers
from live_migration.process.attributes.credentials import Credentials
from live_migration.process.task import TaskDescription
from live_migration.process.threads import scheduling, threads
from live_migration.process.threads.filters import filter_blockers
from live_migration.wire.blockers import Blocker

CAP_SYS_NICE = 23


def preflight_task(
    task: TaskDescription, present: Credentials, map_path: Callable[[bytes], bytes], restore_ids: bool
) -> list[Blocker]:
    """Blockers on the destination: what of a live description this worker, with credentials `present`, cannot give."""
    own = threads.snapshot_thread_outside(ProcessSnapshot(os.getpid()), threading.get_native_id()).scheduling
    may_schedule = bool(present.effective >> CAP_SYS_NICE & 1)
    different = dict.fromkeys((task.credentials, *(thread.credentials for thread in task.threads)))
    return [
        *(one for held in different for one in credentials.preflight_credentials(held, present)),
        *limits.preflight_limits(task.limits, map_path),
        *filter_blockers(task.filters, (thread.filters for thread in task.threads), present),
        *timers.ids_within_reach(task.timers, restore_ids),
        *(
            blocker
            for thread in task.threads
            for blocker in scheduling.preflight_scheduling(thread.tid, thread.scheduling, own, may_schedule)
        ),
    ]


def warnings(task: TaskDescription, present: Credentials, given_limits: tuple[tuple[int, int], ...]) -> list[str]:
    """Sentences on what the moved process will have less of, although it can go on."""
    allowed = os.sched_getaffinity(0)
    return [
        *credentials.credential_warnings(task.credentials, present),
        *limits.limit_warnings(task.limits.limits, given_limits),
        *(
            text
            for thread in task.threads
            for text in scheduling.scheduling_warnings(thread.tid, thread.scheduling, allowed)
        ),
    ]


def restore_process(
    program: Program,
    task: TaskDescription,
    map_path: Callable[[bytes], bytes],
    restore_ids: bool,
    staged: TaskDescription | None = None,
    final: bool = True,
) -> None:
    """Rows for the husk's first thread, when all threads exist: directories, actions of signals, timers (unarmed).

    Not `final` means staging: without the directories, since a change of the root could not be taken back, and without
    timers whose ids can only be counted up to. `staged` is the description that was staged: then only what differs.
    """
    if final:
        limits.restore_directories(program, task.limits, map_path)
    signals.restore_actions(program, task.signals, staged.signals if staged else None)
    if not restore_ids:
        if final:
            timers.create_timers(program, task.timers.posix_timers, restore_ids)
    elif staged is None or timers.identities(staged.timers) != timers.identities(task.timers):
        timers.delete_timers(program, staged.timers.posix_timers if staged else ())
        timers.create_timers(program, task.timers.posix_timers, restore_ids)


def limit_process(
    program: Program,
    task: TaskDescription,
    reachable_limits: tuple[tuple[int, int], ...],
    present_limits: tuple[tuple[int, int], ...],
) -> None:
    """Rows for the first thread, after `restore_process` and before its own `restore_thread`: the process's pending
    signals, what it locks of mappings to come, and its limits, which credentials may be needed to raise.

    All that is limited (descriptors, mappings, threads, queued signals of other threads) must be there by then.
    """
    signals.queue_signals(program, task.signals.pending, task.pid)
    if task.attributes.future_locks:
        program.call("mlockall", numbers.SYS_mlockall, task.attributes.future_locks)
    limits.restore_limits(program, reachable_limits, present_limits)


def finish_process(program: Program, task: TaskDescription, elapsed: int) -> None:
    """The last rows for the first thread, after its own `restore_thread`: settings that a change of credentials resets,
    and timers, armed with what is left after `elapsed` nanoseconds.
    """
    prctl.restore_attributes(program, task.attributes, len(task.threads))
    passed = timers.since_read(task.timers, task.clocks.monotonic, elapsed)
    timers.arm_timers(program, task.timers, passed, task.clocks.boottime - task.clocks.monotonic)


def present_credentials() -> Credentials:
    """The credentials of this process, securebits included, which a husk starts with."""
    held = credentials.snapshot_credentials(ProcessSnapshot(os.getpid()).status)
    return msgspec.structs.replace(held, secure_bits=int(lib.lm_own_secure_bits()))
