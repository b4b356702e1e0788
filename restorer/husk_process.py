"""The husk as a process: its start, its namespace, its end."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from linux import tracee
from linux.pidfd import open_pidfd
from process import clocks
from process.task import TaskDescription

HUSK = Path(__file__).resolve().parent / "bin" / "husk"
INIT = Path(__file__).resolve().parent / "bin" / "init"
ALL_CHILDREN = 0x40000000


@dataclass
class HuskProcess:
    """A started husk, stopped and traced. `pidfd_number` is where it holds a pidfd of this process."""

    pid: int
    pidfd: int
    pidfd_number: int
    offsets: clocks.Offsets | None
    init: int = 0
    line: int = -1


def start_husk(task: TaskDescription, pid_mode: str, offsets: clocks.Offsets | None) -> HuskProcess:
    mine = open_pidfd(os.getpid())
    number = 3
    pid = os.posix_spawn(
        HUSK,
        [str(HUSK)],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, mine, 60),
            *[(os.POSIX_SPAWN_CLOSE, n) for n in range(3)],
            (os.POSIX_SPAWN_DUP2, 60, 3),
            (os.POSIX_SPAWN_CLOSE, 60),
        ],
    )
    while os.readlink(f"/proc/{pid}/exe") != str(HUSK):
        time.sleep(0.001)
    tracee.seize(pid, tracee.TRACESYSGOOD | tracee.EXITKILL)
    tracee.stop(pid)
    return HuskProcess(pid, open_pidfd(pid), number, offsets)


def end_husk(husk: HuskProcess) -> None:
    """Kill and reap the husk with all its threads. Traced threads have to be reaped one by one (ptrace(2))."""
    os.kill(husk.pid, signal.SIGKILL)
    while True:
        try:
            found, status = os.waitpid(-1, ALL_CHILDREN)
        except ChildProcessError:
            return
        if found == husk.pid and not os.WIFSTOPPED(status):
            return


def husk_ended(husk: HuskProcess) -> int:
    """Reap the moved process; its status, 128 + n for one that signal n ended."""
    _, status = os.waitpid(husk.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
