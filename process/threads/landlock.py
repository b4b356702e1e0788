"""Landlock domains of threads (landlock(7)): nothing shows them from outside, and no other process can be given one.

A thread in a domain may not examine processes outside of it. So each stopped thread compares a witness with itself
(kernel/witness.py, kcmp(2)). Without a domain that is allowed, for a witness has the thread's ids and no more rights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Data, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.witness import witness
from live_migration.wire.blockers import Blocker

MOST_WITNESSES: int = lib.LM_MOST_WITNESSES
"""Threads with more different ids than that count as confined."""
ALLOWED, NOT_ASKED = 0, 1


def ids_of_threads(process: ProcessSnapshot) -> list[tuple[int, int]]:
    """The different pairs of real user and group id of the threads, the leader's first. Raises ProcessGone."""
    found: dict[tuple[int, int], None] = {}
    for tid in (process.pid, *process.thread_ids):
        try:
            status = process.thread_status(tid)
        except ProcessGone:
            if tid == process.pid:
                raise
            continue
        found[int(status["Uid"].split()[0]), int(status["Gid"].split()[0])] = None
    return list(found)


@contextmanager
def witnesses(pid: int) -> Iterator[tuple[int, ...]]:
    """Within, there is a witness for each pair of ids, by its id in the process's PID namespace. There is none for a
    process that is gone, and none if lm-serve lacks the right to make one (`witness_blockers`)."""
    with ExitStack() as stack:
        try:
            ids = ids_of_threads(ProcessSnapshot(pid))[:MOST_WITNESSES]
            found = tuple(stack.enter_context(witness(pid, user, group)) for user, group in ids)
        except (ProcessGone, OSError):
            found = ()
        yield found


def witness_blockers(pid: int, seen_by: Sequence[int]) -> list[Blocker]:
    """A blocker if the kernel has Landlock and there are no witnesses: nobody can tell whether there is a domain."""
    if seen_by or lib.lm_landlock_version() < 0:
        return []
    return [
        Blocker(
            object=f"process {pid}",
            cause="lm-serve may not make a process with the same ids, which would tell whether this one is in "
            "a Landlock domain",
            remedy="run lm-serve as root, or with CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID",
        )
    ]


def query_witnesses(program: Program, place: Data, seen_by: Sequence[int]) -> None:
    """Rows by which a stopped thread examines the witnesses; `place` takes LM_MOST_WITNESSES results."""
    size = int(ffi.sizeof("int64_t"))
    for index in range(len(seen_by), MOST_WITNESSES if seen_by else 0):
        program.store(place + index * size, NOT_ASKED)
    for index, one in enumerate(seen_by):
        result = program.call("kcmp", numbers.SYS_kcmp, one, one, int(lib.KCMP_VM), 0, 0, check=False)
        program.store(place + index * size, result)


def landlock_blockers(tid: int, replies: Sequence[int]) -> list[Blocker]:
    """The blocker of a thread that may examine none of the witnesses; `replies` are what `query_witnesses` brought, all
    of it 0 if there were none."""
    if ALLOWED in replies:
        return []
    return [
        Blocker(
            object=f"thread {tid}",
            cause="it is in a Landlock domain (landlock(7)), or a security module keeps it apart in another way, and "
            "the kernel gives no such domain to another process",
            remedy="run the program without it",
        )
    ]
