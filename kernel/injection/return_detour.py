"""Running a stopped thread to the end of the function that it is in, and stopping it there.

No breakpoint and no single step may do that: without a tracer their SIGTRAP kills. Instead, the thread's return address
is changed to a detour of ours (`instructions.detour`). It makes a system call, at whose entry the tracer stops the
thread and puts it where it wanted to return to. When the tracer is dead, the detour leads there by itself.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from live_migration.kernel.arch.arch import Registers, instructions
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.tracing import tracee
from live_migration.kernel.tracing.call_frames import find_frame

WORD = 8
HIGHEST = (1 << 64) - WORD
POLL_SECONDS = 20e-6


@dataclass(frozen=True)
class Detour:
    """Our code at `address`, which leads to `back`, and the place on the stack where `back` is the return address."""

    address: int
    place: int
    back: int


def return_place(image: bytes, offset: int, registers: Registers) -> int:
    """Where the return address of a thread stands that is at `offset` of a loaded ELF image.

    Raises ValueError if the image does not tell."""
    frame = find_frame(image, offset)
    place = registers.dwarf_register(frame.register) + frame.offset - WORD
    if not 0 < place <= HIGHEST:
        raise ValueError(f"the return address would stand at {place:#x}")
    return place


def run_to_return(last: tracee.Stop, place: int, room: int, deadline: float) -> tracee.Stop:
    """Run a stopped thread until it returns to the address that stands at `place`; its stop afterwards.

    `room`: DETOUR_ROOM bytes of executable memory in the process. They are needed no more when this function returns,
    but may be when it raises. The thread may stop earlier: at the first instruction of a handler when a signal comes,
    after a system call that the function makes, and at the `deadline` (time.monotonic) wherever it is. Its stack is as
    if it had not been changed. Raises ProcessGone, OSError, TimeoutError."""
    tid = last.tid
    detour = Detour(room, place, int.from_bytes(tracee.read_memory(tid, place, WORD), "little"))
    tracee.write_memory(tid, room, instructions.detour(detour.back))
    tracee.write_memory(tid, place, detour.address.to_bytes(WORD, "little"))
    try:
        stop = _run(tid, deadline)
        # The registers come first: the frame of a handler that is about to run would keep an address within the detour.
        _leave(tid, detour)
        return tracee.stop(tid, stop)
    finally:
        with contextlib.suppress(ProcessGone, OSError):
            if tracee.read_memory(tid, place, WORD) == detour.address.to_bytes(WORD, "little"):
                tracee.write_memory(tid, place, detour.back.to_bytes(WORD, "little"))


def _run(tid: int, deadline: float) -> tracee.Stop:
    """Let the thread run to a stop of its own, or stop it at the deadline."""
    while True:
        tracee.resume_to_syscall(tid)
        while (stop := tracee.peek(tid)) is None:
            if time.monotonic() > deadline:
                tracee.interrupt(tid)
                last = tracee.peek(tid, 0)
                assert last is not None
                return last
            time.sleep(POLL_SECONDS)
        # It may have been interrupted twice before, or be stopped with its whole process.
        if stop.event != tracee.EVENT_STOP or time.monotonic() > deadline:
            return stop


def _leave(tid: int, detour: Detour) -> None:
    """Put a stopped thread that is in the detour at its end."""
    state = tracee.get_registers(tid)
    if detour.address <= state.instruction_pointer < detour.address + instructions.DETOUR_ROOM:
        tracee.set_registers(tid, state.after_detour(detour.address, detour.back))
