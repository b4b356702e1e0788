"""What can go wrong with another process: one exception each, with a message that names the object."""

from __future__ import annotations

import errno
import os
import signal


class ProcessGone(Exception):
    """The process or thread does not exist any more; `status` is its wait status where a tracer learned
    it."""

    def __init__(self, pid: int, status: int | None = None) -> None:
        super().__init__(pid, status)
        self.pid = pid
        self.status = status

    def __str__(self) -> str:
        if self.status is None:
            return f"process {self.pid} is gone"
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            known = {member.value: member.name for member in signal.Signals}
            return f"process {self.pid} was killed by {known.get(number, f'signal {number}')}"
        return f"process {self.pid} exited with status {os.waitstatus_to_exitcode(self.status)}"


class SyscallFailed(Exception):
    """A row of a program of system calls failed in the process, and the program ended there."""

    def __init__(self, program: str, label: str, row: int, error: int, pid: int) -> None:
        super().__init__(program, label, row, error, pid)
        self.program = program
        self.label = label
        self.row = row
        self.errno = error
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"{self.program} in process {self.pid}: {self.label}: {os.strerror(self.errno)}"
            f" (errno {self.errno}, row {self.row})"
        )


def check(result: int, pid: int) -> int:
    """Turn a C function's 0-or-more, or -errno, into its value, OSError, or ProcessGone for ESRCH."""
    if result >= 0:
        return result
    if result == -errno.ESRCH:
        raise ProcessGone(pid)
    raise OSError(-result, os.strerror(-result), f"process {pid}")


def check_errno(result: int) -> int:
    """Turn a C function's 0-or-more, or -errno, into its value or OSError, even where no process is to blame."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
