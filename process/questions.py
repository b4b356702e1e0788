"""The programs that ask a frozen process about itself, composed while it still runs.

Composing takes longer than running them. What they ask depends on nothing but the process's POSIX timers.
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


@dataclass(frozen=True)
class Questions:
    """A program for the leader, which asks for the process and itself, and one that serves every other thread."""

    of_leader: Program
    of_process: task.ProcessQuestion
    leader_answers: Data
    of_thread: Program
    thread_answers: Data
    seen_by: tuple[int, ...]


def compose_questions(posix_timers: Sequence[PosixTimer], seen_by: Sequence[int] = ()) -> Questions:
    """Compose both programs for a process with these timers, and with witnesses (process/threads/landlock.py)."""
    leader = Program("asking the process")
    of_process = task.query_process(leader, posix_timers)
    leader_answers = threads.query_thread(leader, seen_by)
    thread = Program("asking a thread")
    return Questions(leader, of_process, leader_answers, thread, threads.query_thread(thread, seen_by), tuple(seen_by))


def current_questions(questions: Questions, process: ProcessSnapshot) -> Questions:
    """The questions for the process now that it is frozen: the same, unless it has made or deleted timers meanwhile."""
    now = timers.snapshot_timers(process)
    return questions if now == questions.of_process.posix_timers else compose_questions(now, questions.seen_by)


def programs_for(questions: Questions, tids: Sequence[int]) -> dict[int, Program]:
    """The program of each thread, the leader first."""
    leader, *others = tids
    return {leader: questions.of_leader, **dict.fromkeys(others, questions.of_thread)}


def answers_of(
    questions: Questions, tids: Sequence[int], outcomes: Mapping[int, Outcome]
) -> tuple[task.ProcessAnswers, dict[int, bytes]]:
    """What the process and its threads told, as `task.complete_task` takes it."""
    leader, *others = tids
    told = {tid: threads.answer_thread(outcomes[tid], questions.thread_answers) for tid in others}
    told[leader] = threads.answer_thread(outcomes[leader], questions.leader_answers)
    return task.answer_process(outcomes[leader], questions.of_process), told
