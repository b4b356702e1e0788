"""The programs by which a frozen process tells about itself, composed while it still runs.

Composing takes longer than running them. What they query depends on nothing but the process's POSIX timers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from live_migration.kernel.injection.program import Data, Outcome, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process import task
from live_migration.process.attributes import timers
from live_migration.process.attributes.timers import PosixTimer
from live_migration.process.threads import threads

NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Queries:
    """A program for the leader, about the process and itself, and one that serves every other thread."""

    of_leader: Program
    of_process: task.ProcessQuery
    leader_replies: Data
    of_thread: Program
    thread_replies: Data
    seen_by: tuple[int, ...]
    left_out: frozenset[int]


def compose_queries(
    posix_timers: Sequence[PosixTimer], seen_by: Sequence[int] = (), left_out: frozenset[int] = NOTHING
) -> Queries:
    """Compose both programs for a process with these timers, and with witnesses (process/threads/landlock.py); system
    calls that are `left_out` are not made."""
    leader = Program("querying the process")
    of_process = task.query_process(leader, posix_timers, left_out)
    leader_replies = threads.query_thread(leader, seen_by, left_out)
    thread = Program("querying a thread")
    of_thread = threads.query_thread(thread, seen_by, left_out)
    return Queries(leader, of_process, leader_replies, thread, of_thread, tuple(seen_by), left_out)


def current_queries(queries: Queries, process: ProcessSnapshot) -> Queries:
    """The queries for the process now that it is frozen: the same, unless it has made or deleted timers meanwhile."""
    now = timers.snapshot_timers(process)
    if now == queries.of_process.posix_timers:
        return queries
    return compose_queries(now, queries.seen_by, queries.left_out)


def programs_for(queries: Queries, tids: Sequence[int]) -> dict[int, Program]:
    """The program of each thread, the leader first."""
    leader, *others = tids
    return {leader: queries.of_leader, **dict.fromkeys(others, queries.of_thread)}


def replies_of(
    queries: Queries, tids: Sequence[int], outcomes: Mapping[int, Outcome]
) -> tuple[task.ProcessReplies, dict[int, bytes]]:
    """The replies of the process and its threads, as `task.complete_task` takes it."""
    leader, *others = tids
    replies = {tid: threads.reply_thread(outcomes[tid], queries.thread_replies) for tid in others}
    replies[leader] = threads.reply_thread(outcomes[leader], queries.leader_replies)
    return task.reply_process(outcomes[leader], queries.of_process), replies
