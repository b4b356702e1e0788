"""The destination's side of process/task.py: preflight, and the rows that make the husk the process that was described.

preflight_task(description, ...)                       every obstacle
create_threads(program, ...)                           rows in the husk's first thread
rebuild_process(program, description, ...)             rows in the first thread, when all threads exist
rebuild_thread(program, thread, ...)                   rows in each thread
finish_process(program, description, ...)              last rows in the first thread: what must come late
continue_call, final_state                             ptrace, thread by thread
sent_after_resume                                      signals that no row can queue
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
from _lm import lib

from linux.program import Program
from process import attributes, credentials, limits, signals, timers
from process.credentials import Credentials
from process.status import parse_status, read_status
from process.task import TaskDescription
from wire.obstacles import Obstacle


def preflight_task(
    task: TaskDescription, present: Credentials, map_path: Callable[[bytes], bytes], restore_ids: bool
) -> list[Obstacle]:
    """On the destination: what of a live description the worker, with its credentials, cannot give."""
    return [
        *credentials.preflight_credentials(task.credentials, present),
        *limits.preflight_limits(task.limits, map_path),
        *timers.ids_within_reach(task.timers, restore_ids),
    ]


def rebuild_process(
    program: Program,
    task: TaskDescription,
    map_path: Callable[[bytes], bytes],
    restore_ids: bool,
    staged: TaskDescription | None = None,
) -> None:
    """Rows for the husk's first thread, when all threads exist: directories, actions of signals, timers (unarmed).

    `staged` is the description that such rows have run for already: then only what differs. Signals that wait
    are queued at
    the end (`finish_process`).
    """
    if staged is None or staged.limits != task.limits:
        limits.rebuild_directories(program, task.limits, map_path)
    signals.rebuild_actions(program, task.signals, staged.signals if staged else None)
    known = timers.identities(staged.timers) if staged else None
    if known is None:
        timers.create_timers(program, task.timers.posix_timers, restore_ids)
    elif known != timers.identities(task.timers):
        timers.delete_timers(program, staged.timers.posix_timers if staged else ())
        timers.create_timers(program, task.timers.posix_timers, restore_ids)


def finish_process(
    program: Program,
    task: TaskDescription,
    reachable_limits: tuple[tuple[int, int], ...],
    present_limits: tuple[tuple[int, int], ...],
    elapsed: int,
) -> None:
    """The last rows for the first thread, after its own `rebuild_thread`: settings that its credentials reset, limits,
    personality, the process's pending signals, and timers, armed with what is left after `elapsed`
    nanoseconds.
    """
    attributes.rebuild_attributes(program, task.attributes)
    limits.rebuild_personality(program, task.limits)
    limits.rebuild_limits(program, reachable_limits, present_limits)
    signals.queue_signals(program, task.signals.pending, task.pid)
    timers.arm_timers(program, task.timers, elapsed)


def present_credentials() -> Credentials:
    """The credentials of this process, securebits included, which a husk starts with."""
    held = credentials.look_credentials(parse_status(read_status(os.getpid())))
    return msgspec.structs.replace(held, secure_bits=int(lib.lm_own_secure_bits()))
