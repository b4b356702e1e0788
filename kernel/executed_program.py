"""Whether a process still executes the same program: an open /proc/PID/mem stays with that program's memory (mem_open
and mem_rw in fs/proc/base.c), while the pid may come to mean anything."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass

from live_migration.kernel.errors import ProcessGone


@dataclass(frozen=True)
class ExecutedProgram:
    """The program that a process executed when this was made. Its descriptor is closed when nothing refers to it."""

    memory: int

    def is_executed(self) -> bool:
        """False once the process has executed another program or has ended: no byte is read then, without an error."""
        try:
            return bool(os.pread(self.memory, 1, 0))
        except OSError:
            return True  # EIO: there is memory, and none of it at this address


def executed_program(pid: int) -> ExecutedProgram:
    """What the process executes. Raises ProcessGone, PermissionError."""
    try:
        program = ExecutedProgram(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    weakref.finalize(program, os.close, program.memory)
    return program
