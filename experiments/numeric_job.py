"""The workload python: a numeric job that steps random number generators, block by block, and knows where each must be.

A block is a page of 64-bit numbers. Working on a block steps every number x to (A x + C) mod 2^64; reading it only adds
its numbers up. After n steps the sum of a block is known from the sum of its first numbers, so at the end every block
is checked without doing the work again.

    python -m live_migration.experiments.numeric_job RECORD BYTES DIRTY_RATE MEASURED COMMAND_FILE

DIRTY_RATE: bytes of blocks that are stepped per second; -1: every block that is worked on. COMMAND_FILE: see
job_at_work.py.
"""

from __future__ import annotations

import random
import sys
import time
from array import array

from live_migration.experiments.job_at_work import work

A, C, MASK = 6364136223846793005, 1442695040888963407, 2**64 - 1
NUMBERS = 512
DEBT_NS = 10_000_000


def first_numbers(block: int) -> array[int]:
    """What a block holds at first."""
    numbers = array("Q")
    numbers.frombytes(random.Random(block).randbytes(NUMBERS * 8))
    return numbers


def stepped_sum(first: int, count: int) -> int:
    """The sum, mod 2^64, of a block's numbers after some steps; `first`: of its first numbers."""
    power = pow(A, count, 1 << 64)
    # (A^count - 1) / (A - 1), exact: the division has no remainder.
    series = (pow(A, count, (A - 1) << 64) - 1) // (A - 1)
    return (power * first + NUMBERS * C * series) & MASK


class Job:
    """The state: blocks in one array each, and how often each was stepped."""

    def __init__(self, size: int, rate: int) -> None:
        self.blocks = [first_numbers(block) for block in range(max(1, size // (NUMBERS * 8)))]
        self.steps = [0] * len(self.blocks)
        self.write_ns = 0 if rate < 0 else 10**9 * NUMBERS * 8 // rate if rate else None
        self.due = time.time_ns()
        self.chosen = random.Random(7)

    def operate(self, now: int) -> None:
        """Work on a block that is chosen at random."""
        block = int(self.chosen.random() * len(self.blocks))
        if self.write_ns is None or now < self.due:
            sum(self.blocks[block])
            return
        self.due = max(self.due + self.write_ns, now - DEBT_NS) if self.write_ns else 0
        numbers = self.blocks[block]
        self.blocks[block] = array("Q", [(A * number + C) & MASK for number in numbers])
        self.steps[block] += 1

    def wrong(self) -> int:
        """How many blocks are not what they must be."""
        return sum(
            sum(numbers) & MASK != stepped_sum(sum(first_numbers(block)), steps)
            for block, (numbers, steps) in enumerate(zip(self.blocks, self.steps, strict=True))
        )


def main(words: list[str]) -> None:
    """See above."""
    record, size, rate, measured, command = words
    work(Job(int(size), int(rate)), record, command, measured=bool(int(measured)))


if __name__ == "__main__":
    main(sys.argv[1:])
