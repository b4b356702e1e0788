"""Whether a process still executes the same program: an open /proc/PID/mem stays with that program's memory (mem_open
and mem_rw in fs/proc/base.c), while the pid may come to mean anything. And whether it has been killed."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass

from live_migration._lm import lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.pidfd import open_pidfd


@dataclass(frozen=True)
class ExecutedProgram:
    """The program that a process executed when this was made. Its descriptors are closed when nothing refers to it."""

    memory: int
    process: int

    def is_executed(self) -> bool:
        """False once the process has executed another program or has ended: no byte is read then, without an error."""
        try:
            return bool(os.pread(self.memory, 1, 0))
        except OSError:
            return True  # EIO: there is memory, and none of it at this address

    def is_ending(self) -> bool:
        """True when it has been killed: what was read of its memory may be wrong, for pages that are gone look as if
        they had never been there."""
        return bool(lib.lm_pidfd_is_ending(self.process))


def executed_program(pid: int) -> ExecutedProgram:
    """What the process executes. Raises ProcessGone, PermissionError."""
    try:
        process = open_pidfd(pid)
    except ProcessLookupError:
        raise ProcessGone(pid) from None
    try:
        program = ExecutedProgram(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC), process)
    except BaseException as error:
        os.close(process)
        if isinstance(error, FileNotFoundError | ProcessLookupError):
            raise ProcessGone(pid) from None
        raise
    for descriptor in (program.memory, process):
        weakref.finalize(program, os.close, descriptor)
    return program
