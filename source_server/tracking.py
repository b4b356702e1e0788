"""Tracking the writes of the running source: begun by a short freeze, ended by closing two descriptors."""

from __future__ import annotations

import os

from linux import tracee
from linux.address_gap import free_range
from linux.dirty_tracking import (
    Tracker,
    Tracking,
    fetch_userfaultfd,
    find_tracking,
    make_userfaultfd_program,
    soft_dirty_tracker,
    userfaultfd_tracker,
)
from linux.errors import SyscallFailed
from linux.source_threads import bring_home, look_threads, map_stub, room_needed, unmap_stub
from source_server.look import SourceLook, frame_of
from source_server.stopping import signals_held

# The flag that a mapping has in smaps while a userfaultfd of ours tells of its writes.
OURS = frozenset({"uw"})


def start_tracking(seen: SourceLook, *, soft: bool = True) -> Tracker | None:
    """A tracker of the process's writes; None where this kernel tracks nothing, or not without `soft`-dirty bits.

    Raises ProcessGone, OSError, TimeoutError, LocalError, SyscallFailed; the process runs on as before."""
    kind = find_tracking()
    if kind is None:
        return None
    if kind is Tracking.SOFT_DIRTY:
        return soft_dirty_tracker(seen.pid) if soft else None
    userfaultfd = _make_userfaultfd(seen)
    try:
        return userfaultfd_tracker(seen.pid, userfaultfd)
    except BaseException:
        os.close(userfaultfd)
        raise


def _make_userfaultfd(seen: SourceLook) -> int:
    """One made by the process itself, whose threads all stand still meanwhile: none of them meets its descriptor."""
    program, made = make_userfaultfd_program(seen.end_signal)
    with signals_held():
        stops = tracee.freeze(seen.pid)
        try:
            threads = look_threads(seen.pid, [stops[0].tid], seen.end_signal)
            frame = frame_of(seen.pid, seen, seen.memory)
            taken = [(mapping.start, mapping.end) for mapping in seen.memory.mappings]
            length = room_needed(threads, {stops[0].tid: program})
            map_stub(threads, seen.gadgets, frame, free_range(taken, length), length)
            try:
                return fetch_userfaultfd(threads, program, made)
            except SyscallFailed as error:
                raise OSError(error.errno, str(error)) from None
            finally:
                bring_home(threads)
                unmap_stub(threads, seen.gadgets, frame)
        finally:
            tracee.thaw(stops, True)
