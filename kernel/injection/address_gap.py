"""Free ranges of an address space."""

from __future__ import annotations

from collections.abc import Iterable

# x86-64 user space with four-level page tables; programs and the kernel fill it from both ends, hardly ever here.
FIRST_CHOICE = 0x2000_0000_0000
STEP = 0x0100_0000_0000
FINE_STEP = 0x0004_0000_0000
LAST_CHOICE = 0x7000_0000_0000
MARGIN = 1 << 30


def free_range(taken: Iterable[tuple[int, int]], length: int) -> int:
    """An address where `length` bytes are free with a GiB of room on either side, given the ranges [start, end)
    that are taken. Raises LookupError when the space is too full for that."""
    ranges = list(taken)
    for step in (STEP, FINE_STEP):
        for address in range(FIRST_CHOICE, LAST_CHOICE, step):
            low, high = address - MARGIN, address + length + MARGIN
            if all(end <= low or start >= high for start, end in ranges):
                return address
    raise LookupError(f"no free range of {length} bytes in the address space")
