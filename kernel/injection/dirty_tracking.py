"""Which pages of a running process are written to (dirty.h): the two ways of the kernel, found by trying.

The userfaultfd is made inside the process, by a program that closes its descriptor again by itself: whatever happens to
this process meanwhile, nothing stays behind there. Soft-dirty bits need nothing in the process.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.errors import ProcessGone, check
from live_migration.kernel.injection.program import Ending, Program, Result
from live_migration.kernel.injection.source_threads import SourceThreads
from live_migration.kernel.injection.syscall_numbers import (
    SYS_close,
    SYS_getpid,
    SYS_gettid,
    SYS_tgkill,
    SYS_userfaultfd,
)
from live_migration.kernel.tracing import tracee

# UFFD_USER_MODE_ONLY (userfaultfd(2)): allowed to everybody, and enough here, since no write ever waits for an answer.
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | 1


class Tracking(enum.IntEnum):
    """How writes are tracked."""

    USERFAULTFD = lib.LM_DIRTY_USERFAULTFD
    SOFT_DIRTY = lib.LM_DIRTY_SOFT


@dataclass(frozen=True)
class Tracker:
    """Descriptors by which one process's writes are told: its pagemap, and the userfaultfd or clear_refs."""

    kind: Tracking
    pagemap: int
    control: int

    def close(self) -> None:
        """End the tracking; nothing of it stays in the process."""
        os.close(self.pagemap)
        os.close(self.control)


def find_tracking() -> Tracking | None:
    """What this kernel can do, found by trying; None if it tracks nothing."""
    if lib.lm_probe_write_tracking() == 0 and lib.lm_probe_pagemap_scan() == 0:
        return Tracking.USERFAULTFD
    return Tracking.SOFT_DIRTY if lib.lm_probe_soft_dirty() == 0 else None


def make_userfaultfd_program(end_signal: int) -> tuple[Program, Result]:
    """The program for `fetch_userfaultfd`, which makes one, reports it in the middle, and closes it; and its number."""
    program = Program("tracking writes")
    made = program.call("userfaultfd", SYS_userfaultfd, FLAGS, check=False)
    process, thread = program.call("getpid", SYS_getpid), program.call("gettid", SYS_gettid)
    program.call("say so", SYS_tgkill, process, thread, end_signal)
    program.call("close", SYS_close, made, check=False)
    return program, made


def fetch_userfaultfd(threads: SourceThreads, program: Program, made: Result) -> int:
    """Run the program in the stopped leader; the userfaultfd, held here alone, its handshake done.

    Raises OSError, ProcessGone, SyscallFailed."""
    place = threads.tables_address
    code = program.encode(place, threads.address + threads.length - place, Ending.GO_HOME, threads.end_signal)
    tracee.write_memory(threads.pid, place, code.content)
    start = ffi.new("struct lm_source_program *", {"table": code.table, "ending": code.ending})
    check(lib.lm_source_run_half(threads.handle, start, threads.address, threads.end_signal), threads.pid)
    taken = -1
    try:
        memory = tracee.read_memory(threads.pid, place, len(code.content))
        number = check(program.outcome(threads.pid, place, memory).result(made), threads.pid)
        process = pidfd.open_pidfd(threads.pid)
        try:
            taken = pidfd.fetch_descriptor(process, number)
        finally:
            os.close(process)
    finally:
        check(lib.lm_source_run_rest(threads.handle, threads.end_signal), threads.pid)
    try:
        check(lib.lm_dirty_handshake(taken), threads.pid)
    except OSError:
        os.close(taken)
        raise
    return taken


def userfaultfd_tracker(pid: int, userfaultfd: int) -> Tracker:
    """A tracker around a userfaultfd that was made in the process. Raises ProcessGone, OSError."""
    return Tracker(Tracking.USERFAULTFD, _open(pid, "pagemap", os.O_RDONLY), userfaultfd)


def soft_dirty_tracker(pid: int) -> Tracker:
    """A tracker that needs nothing in the process. Raises ProcessGone, OSError."""
    control = _open(pid, "clear_refs", os.O_WRONLY)
    return Tracker(Tracking.SOFT_DIRTY, _open(pid, "pagemap", os.O_RDONLY), control)


def _open(pid: int, name: str, flags: int) -> int:
    try:
        return os.open(f"/proc/{pid}/{name}", flags | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
