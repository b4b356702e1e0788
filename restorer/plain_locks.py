"""Locked memory after the last page: plain again.

While pages are missing, mlock(2) would fill them with zeros, so the husk's memory is locked by
mlock2(MLOCK_ONFAULT). A program can tell the two apart by its VmFlags and by pages that it first touches later.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.sigreturn_path import Gadgets, find_gadgets, place_frame, remote_syscall
from live_migration.kernel.injection.syscall_numbers import SYS_mlock
from live_migration.kernel.memory.maps import MapEntry, maps, smaps
from live_migration.kernel.tracing import tracee
from live_migration.process.memory.mappings import Mapping


def locked_ranges(mappings: Iterable[Mapping]) -> list[tuple[int, int]]:
    """What plain mlock(2) has locked of these."""
    return [(one.start, one.end) for one in mappings if "lo" in one.flags and "lf" not in one.flags]


def lock_plainly(pid: int, ranges: list[tuple[int, int]], filtered: bool) -> str:
    """Lock these ranges, which plain mlock(2) had locked at the source, as far as the moved process still has them
    locked. Its leader is stopped for a moment; without such a range nothing is done. Every page must have come.
    `filtered`: it has seccomp filters, which are suspended meanwhile.

    Returns why something could not be locked, or ""."""
    return _in_a_child(lambda: _lock_ranges(pid, ranges, filtered)) if ranges else ""


def _in_a_child(work: Callable[[], str]) -> str:
    """Do the work in a process of its own, which must do no more than that: when it ends, the kernel releases what it
    traces, whatever has failed, and the status of a process that ends meanwhile stays with its parent (ptrace(2))."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode()[: select.PIPE_BUF])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as words:
        said = words.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return said


def _lock_ranges(pid: int, ranges: list[tuple[int, int]], filtered: bool) -> str:
    try:
        gadgets = find_gadgets(pid, maps(pid))
        if gadgets is None:
            return "its program text has no code for it"
        wanted = list(still_locked(ranges, smaps(pid)))
        return _lock(pid, gadgets, wanted, filtered) if wanted else ""
    except ProcessGone:
        return ""
    except (OSError, TimeoutError) as error:
        return str(error)


def still_locked(ranges: Iterable[tuple[int, int]], now: Iterable[MapEntry]) -> Iterator[tuple[int, int]]:
    """The parts of `ranges` that are locked on fault now; the process may have unlocked or unmapped others."""
    on_fault = [entry for entry in now if {"lo", "lf"} <= entry.flags]
    for start, end in ranges:
        for entry in on_fault:
            if entry.start < end and start < entry.end:
                yield max(start, entry.start), min(end, entry.end)


def _lock(pid: int, gadgets: Gadgets, ranges: list[tuple[int, int]], filtered: bool) -> str:
    failed = ""
    tracee.seize(pid, tracee.TRACESYSGOOD | (tracee.SUSPEND_SECCOMP if filtered else 0))
    stopped = tracee.stop(pid)
    try:
        stack = next(((one.start, one.end) for one in reversed(maps(pid)) if one.path == "[stack]"), None)
        frame = place_frame(pid, gadgets, stack)
        if frame is None:
            return "its first stack is full to the last page"
        for start, end in ranges:
            try:
                remote_syscall(pid, gadgets, frame, SYS_mlock, start, end - start)
            except OSError as error:
                failed = f"{start:x}-{end:x}: {error.strerror}"
    finally:
        tracee.thaw([stopped], True)
    return failed
