"""Threads in the middle of the vdso, when the destination's kernel has another one: they are let out of it.

There the source's code becomes a bridge (process/memory/bridge.py), which only some places can be gone on from. A
thread that stands elsewhere is let run for a moment, alone among the frozen ones, until it has left. A handler of a
signal may have interrupted the code, too, and would return into it: signal frames are looked for on the stacks.
"""

from __future__ import annotations

import os
import random
import time

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.memory.pagemap import present_runs
from live_migration.kernel.tracing import tracee
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.memory.vdso import NAME, is_passable
from live_migration.wire.blockers import Blocker

# A thread that does nothing but read clocks is inside nearly always.
TRIES = 50
LONGEST_RUN = 0.0005
RED_ZONE = 128
# How much of a stack is searched, in bytes: a handler that needs more of it is not looked for.
SEARCHED = 1 << 20
WORD = 8
# In a signal frame's struct sigcontext_64 (asm/sigcontext.h) one after the other: rsp, rip, eflags, and in one word cs,
# gs, fs and ss, which are the same in every 64-bit program.
SEGMENTS = (0x33 | 0x2B << 48).to_bytes(WORD, "little")
REMEDY = "try again, or run the same kernel on both hosts"
OTHER = "the kernel's vdso code, of which the destination's kernel has another version"


def leave_vdso(pid: int, stops: list[tracee.Stop], memory: AddressSpace) -> list[Blocker]:
    """Let the threads of a frozen process out of the vdso; `stops` are afterwards those of now. `memory` is the live
    look. What is in the way after that passes by itself.

    Raises ProcessGone when the process has ended, OSError."""
    if not any(mapping.name == NAME for mapping in memory.kernel_mappings()):
        return []
    found: list[Blocker] = []
    if let_run(pid, stops, memory):
        # Who ran may have made a thread, which nobody has stopped, or have ended.
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


def let_run(pid: int, stops: list[tracee.Stop], memory: AddressSpace) -> bool:
    """Let each thread that is inside run until it is not, some times at most; whether any has run."""
    ran = False
    for index, stop in enumerate(stops):
        for _ in range(TRIES):
            last = stops[index]
            if last.kind is not tracee.StopKind.INTERRUPT:
                break
            try:
                if not is_inside(memory, tracee.get_registers(stop.tid).instruction_pointer):
                    break
                ran = True
                tracee.release(last)
                time.sleep(random.uniform(0, LONGEST_RUN))
                stops[index] = tracee.stop(stop.tid)
            except ProcessGone:
                if stop.tid == pid:
                    raise
                break
    return ran


def is_inside(memory: AddressSpace, place: int) -> bool:
    """Whether a bridge cannot be gone on from at the address `place`."""
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
        # A stack may have grown since the live look, so its present start does not count.
        end = next((m.end for m in memory.mappings if bottom < m.end), bottom)
        if end in seen or end == bottom:
            continue
        seen.add(end)
        for top, place in _signal_frames(pid, bottom - RED_ZONE, min(end, bottom + SEARCHED)):
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
            at = content.find(SEGMENTS)
            while at >= 0:
                top, place, flags = (
                    int.from_bytes(content[at - n * WORD : at - (n - 1) * WORD], "little") for n in (3, 2, 1)
                )
                if at % WORD == 0 and at >= 3 * WORD and flags >> 22 == 0 and flags & 2 and first + at >= start:
                    found.append((top, place))
                at = content.find(SEGMENTS, at + 1)
    return found
