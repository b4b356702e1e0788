"""Doing once, without effect, what will be done while the process is frozen.

The first run of a piece of Python costs several times the later ones: types of C structures are parsed, attributes
looked up, code specialised. That time belongs before the freeze.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from live_migration.kernel.arch.arch import REGISTERS_SIZE
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.tracing import tracee
from live_migration.process import queries, task, task_restore
from live_migration.process.attributes.credentials import Credentials
from live_migration.process.scope import HostScan
from live_migration.process.task import LiveTask, PendingSignals, ProcessReplies, TaskDescription
from live_migration.process.threads import restore as thread_restore
from live_migration.process.threads import threads
from live_migration.process.threads.sleeps import slept
from live_migration.process.threads.threads import StoppedThread

XSTATE_SIZE = 2688
SOMEWHERE = 0x10000
TIMES = 10
"""The interpreter specialises a function's code when it has run eight times (PEP 659, Python 3.11)."""
SECONDS = 0.05


def rehearse_often(rehearse: Callable[[], None]) -> None:
    """Rehearse until nothing becomes faster by it. If the process is so large that this takes long, its loops have done
    that already."""
    end = time.monotonic() + SECONDS
    for _ in range(TIMES):
        rehearse()
        if time.monotonic() > end:
            return


def rehearse_description(live: LiveTask, queried: queries.Queries, scan: HostScan) -> None:
    """On the source: describe the leader with empty registers and replies. Raises OSError, ProcessGone."""
    description = live.description
    pid = description.host_pid
    empty = StoppedThread(pid, bytes(REGISTERS_SIZE), bytes(XSTATE_SIZE), 0, None)
    stopped = task.snapshot_stopped_task(ProcessSnapshot(pid), [tracee.Stop(pid, 0)], live, [empty])
    slept(live.sleeps.get(pid), pid, description.clocks.monotonic)
    pending = PendingSignals((), {pid: ()}, description.clocks.monotonic)
    of_process = queried.of_process
    of_leader = ProcessReplies(
        bytes(of_process.replies.length), bytes(of_process.timers.length), of_process.posix_timers
    )
    of_threads = {pid: bytes(queried.leader_replies.length)}
    with contextlib.suppress(OSError, ValueError):
        described = task.complete_task(stopped, pending, of_leader, of_threads)
        task.frozen_blockers(described, of_threads, stopped.process, scan)
    for program in (queried.of_leader, queried.of_thread):
        program.encode(SOMEWHERE, program.size())


def rehearse_restoring(described: TaskDescription, present: Credentials, restore_ids: bool) -> None:
    """On the destination: compose what the final description will need, and throw it away."""
    leader = described.threads[0]
    program = Program("rehearsal")
    task_restore.restore_process(program, described, lambda path: path, restore_ids, described)
    task_restore.limit_process(program, described, described.limits.limits, described.limits.limits)
    thread_restore.restore_thread(program, leader, described.pid, present, leader)
    thread_restore.restore_threads(dict.fromkeys((1, 2), (leader, leader)), described.pid, present)
    task_restore.finish_process(program, described, 0)
    program.encode(SOMEWHERE, program.size())
    threads.whole_xstate(leader)
