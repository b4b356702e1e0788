"""Tracking the writes of the running source: a short freeze begins it, and closing two descriptors ends it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from live_migration.kernel.errors import SyscallFailed
from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.injection.dirty_tracking import (
    Tracker,
    Tracking,
    fetch_userfaultfd,
    find_tracking,
    make_userfaultfd_program,
    soft_dirty_tracker,
    userfaultfd_tracker,
)
from live_migration.kernel.injection.program import Program, Result
from live_migration.kernel.injection.source_threads import (
    bring_home,
    map_stub,
    room_needed,
    snapshot_threads,
    unmap_stub,
)
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.seccomp import Call
from live_migration.kernel.tracing import tracee
from live_migration.process.attributes import limits
from live_migration.process.threads import sleeps
from live_migration.process.threads.injection import injection_blockers, may_be_killed, suspend_filters
from live_migration.source_server.same_program import check_same_program
from live_migration.source_server.snapshot import SourceSnapshot, frame_of, room_refused
from live_migration.source_server.stopping import signals_held
from live_migration.wire.errors import Refused

# The flag that a mapping has in smaps while a userfaultfd of ours tells of its writes.
OURS = frozenset({"uw"})


@contextlib.contextmanager
def brief_freeze(seen: SourceSnapshot) -> Iterator[list[tracee.Stop]]:
    """Within, the process stands still; afterwards it is as before, and the record of its threads' sleeps is right.

    Raises ProcessGone, OSError, TimeoutError, LocalError."""
    with signals_held():
        stops = tracee.freeze(seen.pid)
        try:
            check_same_program(seen, "tracking what it writes to")
            asleep = sleeps.interrupted_sleeps(seen.task.sleeps)
            yield stops
        finally:
            tracee.thaw(stops, True)
    gone_on = sleeps.sleeps_gone_on(asleep)
    others = sleeps.snapshot_sleeps(stop.tid for stop in stops if stop.tid not in gone_on)
    seen.task.sleeps.clear()
    seen.task.sleeps.update(others | gone_on)


def start_tracking(seen: SourceSnapshot, *, soft: bool = True) -> Tracker | None:
    """A tracker of the process's writes; None if this kernel tracks nothing, or not without `soft`-dirty bits, or if
    the process may not open another descriptor, or if its seccomp filters might kill it for that.

    Raises ProcessGone, OSError, TimeoutError, LocalError, SyscallFailed; the process runs on as before."""
    kind = find_tracking()
    if kind is None or (kind is not Tracking.SOFT_DIRTY and not limits.room_for_descriptor(ProcessSnapshot(seen.pid))):
        return None
    if kind is Tracking.SOFT_DIRTY:
        return soft_dirty_tracker(seen.pid) if soft else None
    program, made = make_userfaultfd_program(seen.end_signal)
    calls = [Call(number, arguments) for number, arguments in program.calls()]
    if may_be_killed(seen.task.description.filters, seen.task.chains, seen.pid, calls):
        return None
    userfaultfd = _make_userfaultfd(seen, program, made)
    try:
        return userfaultfd_tracker(seen.pid, userfaultfd)
    except BaseException:
        os.close(userfaultfd)
        raise


def _make_userfaultfd(seen: SourceSnapshot, program: Program, made: Result) -> int:
    """A userfaultfd that the process makes itself. All its threads stand still meanwhile, so none of them meets the
    descriptor."""
    with brief_freeze(seen) as stops:
        live = seen.task
        if found := injection_blockers((stop.tid for stop in stops), live.description.filters, live.chains):
            raise Refused(found, object=f"process {seen.pid}", step="tracking what it writes to")
        suspend_filters([stops[0].tid], live.chains)
        threads = snapshot_threads(seen.pid, [stops[0].tid], seen.end_signal, seen.leftover)
        # Not those of the live snapshot: under a stack that has grown since there is live memory.
        mappings = maps(seen.pid)
        frame = frame_of(seen.pid, seen, mappings)
        taken = [(mapping.start, mapping.end) for mapping in mappings]
        length = room_needed(threads, {stops[0].tid: program})
        with room_refused(seen.pid, length):
            map_stub(threads, seen.gadgets, frame, free_range(taken, length), length)
        try:
            return fetch_userfaultfd(threads, program, made)
        except SyscallFailed as error:
            raise OSError(error.errno, str(error)) from None
        finally:
            bring_home(threads)
            unmap_stub(threads)
