"""System V semaphores that the kernel gives back when a process ends (SEM_UNDO of semop(2)).

The kernel that the process ran on keeps the list of what is to be given back. It would give it back at once when the
source's copy leaves, while the moved process believes that it holds the semaphores. The list cannot be read. kcmp(2)
tells that a process has one, as every process with threads does, and it has entries only where a set has been operated
on since the process began. For a process with threads a set counts if the process was the last to operate on one of its
semaphores, as the holder of a semaphore for which all others wait was.
"""

from __future__ import annotations

import ctypes
import os
import time

from live_migration._lm import lib
from live_migration.kernel.proc import read_proc
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.wire.blockers import Blocker

CLOCK_SLACK_SECONDS = 2
GETPID = 11  # sys/sem.h
MOST_SEMAPHORES = 32_000  # of a set (SEMMSL, semop(2))
SETS = "/proc/sysvipc/sem"


def undo_blockers(process: ProcessSnapshot) -> list[Blocker]:
    """The sets that the process may hold something of; all that come into question where kcmp(2) is not allowed.
    Raises ProcessGone."""
    operated_on = operated_sets()
    if not operated_on:
        return []
    # Field 22 of proc_pid_stat(5): clock ticks since the host was booted.
    start_ticks = int(process.stat[21])
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + start_ticks / os.sysconf("SC_CLK_TCK")
    since = [name for name, operated in operated_on if operated >= started - CLOCK_SLACK_SECONDS]
    pid = process.pid
    if not since or int(lib.lm_has_undo_list(pid)) == 0:
        return []
    if len(os.listdir(f"/proc/{pid}/task")) > 1:
        since = [one for one in since if pid in last_operators(one)]
    if not since:
        return []
    return [
        Blocker(
            object=f"semaphore set {', '.join(map(str, since))}",
            cause="the process may hold a part that the kernel would give back at the end of its copy (SEM_UNDO)",
            remedy="let it give them back first, and remove sets that nobody needs (ipcrm)",
        )
    ]


def last_operators(number: int) -> set[int]:
    """The processes that were the last to operate on a semaphore of the set (semctl(2), GETPID); none for a set that
    has gone or may not be read."""
    semctl = ctypes.CDLL(None).semctl
    found = set()
    for index in range(MOST_SEMAPHORES):
        operator = int(semctl(number, index, GETPID))
        if operator < 0:
            break
        found.add(operator)
    return found


def operated_sets() -> list[tuple[int, int]]:
    """(id, time of the last operation in seconds since 1970) of the semaphore sets of this IPC namespace that were
    operated on (proc_sysvipc_sem(5)). Without System V semaphores in the kernel there are none."""
    try:
        lines = read_proc(SETS).decode().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(int(words[1]), int(words[8])) for words in fields if int(words[8])]
