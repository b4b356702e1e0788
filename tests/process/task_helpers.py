"""Stopped processes for the tests of process/: children that were frozen, and husks, with programs run in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Outcome, Program, ProgramArea, run_in_husk
from live_migration.kernel.tracing import tracee

HUSK = Path(__file__).resolve().parents[2] / "restorer" / "bin" / "husk"
AREA_SIZE = 1 << 20
READ_WRITE_EXECUTE = 7
PRIVATE_ANONYMOUS = 0x22


@dataclass
class Held:
    """A process whose every thread is stopped and traced by the test."""

    pid: int
    stops: list[tracee.Stop]


def remote_syscall(tid: int, number: int, *arguments: int) -> int:
    """One system call in a stopped thread. Raises OSError when it fails."""
    words = ffi.new("uint64_t[6]", [*arguments, 0, 0, 0, 0, 0, 0][:6])
    result = ffi.new("int64_t *")
    error = lib.lm_program_call(tid, number, words, result)
    if error or -4096 < result[0] < 0:
        raise OSError(-(error or result[0]), os.strerror(-(error or result[0])))
    return int(result[0])


@contextlib.contextmanager
def area_in(tid: int) -> Iterator[ProgramArea]:
    """Memory for programs in a stopped process, unmapped afterwards."""
    arguments = (0, AREA_SIZE, READ_WRITE_EXECUTE, PRIVATE_ANONYMOUS, (1 << 64) - 1, 0)
    address = remote_syscall(tid, numbers.SYS_mmap, *arguments)
    tracee.write_memory(tid, address, bytes(ffi.buffer(lib.lm_stub_code(), lib.LM_STUB_ROOM)))
    try:
        yield ProgramArea(address, AREA_SIZE, address)
    finally:
        with contextlib.suppress(OSError):
            remote_syscall(tid, numbers.SYS_munmap, address, AREA_SIZE)


def run(tid: int, area: ProgramArea, program: Program) -> Outcome:
    """Run a program in a stopped thread, whose registers come back as they were."""
    before = tracee.get_registers(tid)
    outcome = run_in_husk(tid, area, program)
    tracee.set_registers(tid, before)
    return outcome


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[Held]:
    """Stop every thread of a process, and let it go on afterwards."""
    stops = tracee.freeze(pid)
    try:
        yield Held(pid, stops)
    finally:
        tracee.thaw(stops, detach_too=True)


@contextlib.contextmanager
def python_child(source: str) -> Iterator[subprocess.Popen[str]]:
    """A python3 that runs `source`; it is ready when it has printed a line. Killed at the end."""
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def husk() -> Iterator[int]:
    """A stopped, traced process of the smallest program; killed at the end."""
    pid = os.fork()
    if pid == 0:
        os.execv(HUSK, ["husk"])
    try:
        while os.readlink(f"/proc/{pid}/exe") != str(HUSK):
            pass
        tracee.seize(pid, tracee.TRACESYSGOOD | tracee.EXITKILL)
        tracee.stop(pid)
        yield pid
    finally:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        os.kill(pid, 9)
        # A leader can be reaped only after its threads.
        for tid in sorted(tids, key=lambda one: one == pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(tid, 0x40000000)
