"""Finding, in a process that is not ours, what a thread needs to get home by itself (see walk_home.h)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from linux.maps import MapEntry

# x86-64: `syscall; ret`, and rt_sigreturn as glibc (mov $15,%rax) and musl (mov $15,%eax) write it.
SYSCALL_RETURN = b"\x0f\x05\xc3"
SIGNAL_RETURN = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
CHUNK = 4 << 20
RED_ZONE = 128
FRAME_ALIGNMENT = 64


@dataclass(frozen=True)
class Gadgets:
    """Addresses, in the process, of `syscall; ret` and of code that calls rt_sigreturn."""

    syscall_return: int
    signal_return: int


def find_gadgets(pid: int, mappings: Iterable[MapEntry]) -> Gadgets | None:
    """Search the process's own program text, the C library first; None where either is missing. Reads memory."""
    executable = [m for m in mappings if "x" in m.permissions and m.path != "[vsyscall]"]
    executable.sort(key=lambda m: ("libc" not in m.path, "ld-" not in m.path, m.end - m.start))
    syscall_return = signal_return = None
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, text in _pieces(memory.fileno(), executable):
            if syscall_return is None and (at := text.find(SYSCALL_RETURN)) >= 0:
                syscall_return = start + at
            for pattern in SIGNAL_RETURN:
                if signal_return is None and (at := text.find(pattern)) >= 0:
                    signal_return = start + at
            if syscall_return is not None and signal_return is not None:
                return Gadgets(syscall_return, signal_return)
    return None


def _pieces(memory: int, mappings: Iterable[MapEntry]) -> Iterator[tuple[int, bytes]]:
    for mapping in mappings:
        for start in range(mapping.start, mapping.end, CHUNK):
            # Pieces overlap a little, so that no sequence is cut in two.
            length = min(CHUNK + len(SIGNAL_RETURN[0]), mapping.end - start)
            try:
                yield start, os.pread(memory, length, start)
            except OSError:
                break


def frame_address(stack_pointer: int, stack: tuple[int, int], room: int, untouched: bool) -> int | None:
    """Where a frame of `room` bytes may stand while a thread makes a lone call: under the red zone when the thread
    runs on the stack [start, end) that the kernel gave the process, else at its lower end, if no page there was ever
    touched. None where neither holds."""
    start, end = stack
    below = (stack_pointer - RED_ZONE - room) & -FRAME_ALIGNMENT
    if start <= below and stack_pointer <= end:
        return below
    if untouched and not start <= stack_pointer < start + 2 * room:
        return start
    return None
