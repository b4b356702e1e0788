"""System V semaphores that the kernel gives back when a process ends (SEM_UNDO of semop(2)).

What is to be given back belongs to the kernel that the process ran on, which would do it at once when the source's copy
leaves, while the moved process believes that it holds them. The list cannot be read. It exists where kcmp(2) tells that
a process has one (every process with threads does), and has entries only where a semaphore set has been operated on
since the process began.
"""

from __future__ import annotations

import os
import time

from live_migration._lm import lib
from live_migration.kernel.proc import read_proc
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.wire.blockers import Blocker

CLOCK_SLACK_SECONDS = 2
SETS = "/proc/sysvipc/sem"


def undo_blockers(process: ProcessSnapshot) -> list[Blocker]:
    """The sets that the process may hold something of. Raises ProcessGone, and OSError where kcmp(2) is not allowed."""
    operated_on = operated_sets()
    if not operated_on:
        return []
    # Field 22 of proc_pid_stat(5): clock ticks since the host was booted.
    start_ticks = int(process.stat[21])
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + start_ticks / os.sysconf("SC_CLK_TCK")
    since = [name for name, operated in operated_on if operated >= started - CLOCK_SLACK_SECONDS]
    # This process has no list, so that both compare as equal where the other has none either.
    if not since or int(lib.lm_kcmp(process.pid, os.getpid(), lib.KCMP_SYSVSEM, 0, 0)) == 0:
        return []
    return [
        Blocker(
            object=f"semaphore set {', '.join(map(str, since))}",
            cause="the process may hold some of it that the kernel would give back at the end of its copy (SEM_UNDO)",
            remedy="let it give them back first, and remove sets that nobody needs (ipcrm)",
        )
    ]


def operated_sets() -> list[tuple[int, int]]:
    """(id, time of the last operation in seconds since 1970) of the semaphore sets of this IPC namespace that were
    operated on (proc_sysvipc_sem(5)). Without System V semaphores in the kernel there are none."""
    try:
        lines = read_proc(SETS).decode().splitlines()[1:]
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [(int(words[1]), int(words[8])) for words in fields if int(words[8])]
