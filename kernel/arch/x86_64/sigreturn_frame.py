"""x86-64: signal frames, found on stacks (struct sigcontext_64, asm/sigcontext.h)."""

from __future__ import annotations

WORD = 8
# One after the other there: rsp, rip, eflags, and in one word cs, gs, fs and ss, which are the same in every 64-bit
# program.
_SEGMENTS = (0x33 | 0x2B << 48).to_bytes(WORD, "little")
_FLAGS_ALWAYS, _FLAGS_END = 2, 22


def signal_frames(stack: bytes) -> list[tuple[int, int, int]]:
    """What looks like a signal frame in a part of a stack (its address and length are multiples of 8): where the frame
    is, and the stack pointer and the address to which the handler returns."""
    found = []
    at = stack.find(_SEGMENTS)
    while at >= 0:
        top, place, flags = (int.from_bytes(stack[at - n * WORD : at - (n - 1) * WORD], "little") for n in (3, 2, 1))
        if at % WORD == 0 and at >= 3 * WORD and flags >> _FLAGS_END == 0 and flags & _FLAGS_ALWAYS:
            found.append((at, top, place))
        at = stack.find(_SEGMENTS, at + 1)
    return found
