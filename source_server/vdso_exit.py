"""Leading threads out of the middle of the vdso, when the destination's kernel has another one.

There the source's code becomes a bridge (process/memory/bridge.py), and a thread can go on from only some places in it.
A thread that stands elsewhere is run to the function's return, alone among the frozen ones. A handler of a signal may
have interrupted the code too, and would return into it: this module searches the stacks for signal frames.
"""

from __future__ import annotations

import os
import time

from live_migration.kernel.arch.arch import RED_ZONE, signal_frames
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.injection.return_detour import return_place, run_to_return
from live_migration.kernel.injection.source_threads import (
    SourceThreads,
    map_stub,
    room_needed,
    snapshot_threads,
    unmap_stub,
)
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.memory.pagemap import present_runs
from live_migration.kernel.tracing import tracee
from live_migration.process.memory.mappings import PAGE, AddressSpace
from live_migration.process.memory.vdso import NAME, is_passable
from live_migration.source_server.snapshot import SourceSnapshot, frame_of
from live_migration.wire.blockers import Blocker

# A function of the vdso calls one of its own at most, and takes a microsecond; but a thread may have to wait for a
# processor.
MOST_RETURNS = 4
LONGEST_SECONDS = 0.2
# How much of a stack is searched, in bytes: a handler that needs more of it is not found.
SEARCHED = 1 << 20
REMEDY = "try again, or run the same kernel on both hosts"
OTHER = "the kernel's vdso code, of which the destination's kernel has another version"


def leave_vdso(seen: SourceSnapshot, stops: list[tracee.Stop]) -> list[Blocker]:
    """Lead the threads of a frozen process out of the vdso, and set `stops` to their stops after that. Blockers that
    are left pass by themselves.

    Raises ProcessGone when the process has ended, LocalError, OSError, TimeoutError."""
    pid, memory = seen.pid, seen.memory
    if not any(mapping.name == NAME for mapping in memory.kernel_mappings()):
        return []
    found: list[Blocker] = []
    if any(_offset_inside(memory, stop) is not None for stop in stops):
        run_out(seen, stops)
        # A thread may have ended; and one that has gone further than it was led may have made another.
        there = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
        if there != {stop.tid for stop in stops}:
            return [Blocker(f"process {pid}", "makes or ends threads while it is being frozen", "try again")]
    for stop in stops:
        state = tracee.get_registers(stop.tid)
        if is_inside(memory, state.instruction_pointer):
            found.append(Blocker(f"thread {stop.tid}", f"is in the middle of {OTHER}", REMEDY))
        elif any(is_inside(memory, place) for place in interrupted_places(pid, memory, state.stack_pointer)):
            found.append(Blocker(f"a signal handler of thread {stop.tid}", f"has interrupted {OTHER}", REMEDY))
    return found


def run_out(seen: SourceSnapshot, stops: list[tracee.Stop]) -> None:
    """Run each thread that is inside to the return of its function, one after the other."""
    # Aborts restartable sequences, which a remote syscall would end without a word (kernel/tracing/rseq.h).
    threads = snapshot_threads(seen.pid, [stop.tid for stop in stops], seen.end_signal)
    mappings = maps(seen.pid)
    length = room_needed(threads, {}) + PAGE
    address = free_range([(mapping.start, mapping.end) for mapping in mappings], length)
    map_stub(threads, seen.gadgets, frame_of(seen.pid, seen, mappings), address, length)
    deadline = time.monotonic() + LONGEST_SECONDS
    for index in range(len(stops)):
        _run_out(seen.memory, threads, stops, index, deadline)
    # The leader has run, and may be in a handler by now, whose frame stands where its remote syscalls had theirs.
    threads.frame = frame_of(seen.pid, seen, maps(seen.pid))
    # Not where something has failed: a thread might be on the detour.
    unmap_stub(threads)


def _run_out(
    memory: AddressSpace, threads: SourceThreads, stops: list[tracee.Stop], index: int, deadline: float
) -> None:
    tid = stops[index].tid
    try:
        for _ in range(MOST_RETURNS):
            offset = _offset_inside(memory, stops[index])
            if offset is None:
                return
            try:
                place = return_place(memory.vdso, offset, tracee.get_registers(tid))
            except ValueError:
                return
            stops[index] = run_to_return(stops[index], place, threads.tables_address, deadline)
    except ProcessGone:
        if tid == threads.pid:
            raise


def _offset_inside(memory: AddressSpace, stop: tracee.Stop) -> int | None:
    """The offset in the vdso of a thread that cannot stay there."""
    place = tracee.get_registers(stop.tid).instruction_pointer
    if not is_inside(memory, place):
        return None
    return next(place - one.start for one in memory.kernel_mappings() if one.name == NAME)


def is_inside(memory: AddressSpace, place: int) -> bool:
    """Whether a thread cannot go on in a bridge from the address `place`."""
    for mapping in memory.kernel_mappings():
        if mapping.name == NAME and mapping.start <= place < mapping.start + mapping.length:
            return not is_passable(memory.vdso, place - mapping.start)
    return False


def interrupted_places(pid: int, memory: AddressSpace, stack_pointer: int) -> list[int]:
    """The addresses to which the signal handlers that stand on a thread's stacks return, one stack after the other.

    Raises ProcessGone, OSError."""
    found = []
    seen: set[int] = set()
    waiting = [stack_pointer]
    while waiting:
        bottom = waiting.pop()
        # A stack may have grown since the live snapshot, so the start known from there does not count.
        end = next((m.end for m in memory.mappings if bottom < m.end), bottom)
        if end in seen or end == bottom:
            continue
        seen.add(end)
        # What looks like a frame may be any data, and its stack pointer any number.
        for top, place in _signal_frames(pid, max(0, bottom - RED_ZONE), min(end, bottom + SEARCHED)):
            found.append(place)
            waiting.append(top)
    return found


def _signal_frames(pid: int, start: int, end: int) -> list[tuple[int, int]]:
    """The stack pointer and the address to return to of each signal frame in [start, end)."""
    found = []
    page = os.sysconf("SC_PAGESIZE")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for first, last in present_runs(pid, [(start & -page, -(-end // page) * page)]):
            content = os.pread(memory.fileno(), last - first, first)
            found += [(top, place) for at, top, place in signal_frames(content) if first + at >= start]
    return found
