"""A record of operations in a file that is mapped shared: what is written there does not move with a process, and can
be read while it runs. 64-bit words: how many operations, 0, then for each when it ended and how long it took,
nanoseconds of CLOCK_REALTIME."""

from __future__ import annotations

import mmap
import os
from array import array
from pathlib import Path

CAPACITY = 1 << 22
"""Operations; the file is sparse."""
HEADER = 2


class Recorder:
    """Writes the record."""

    def __init__(self, path: Path, capacity: int = CAPACITY) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = (HEADER + 2 * capacity) * 8
        os.ftruncate(file, size)
        self.words = memoryview(mmap.mmap(file, size)).cast("Q")
        os.close(file)
        self.at, self.end = HEADER, HEADER + 2 * capacity

    def add(self, end: int, took: int) -> None:
        """An operation. What comes when the record is full is left out."""
        if self.at < self.end:
            self.words[self.at], self.words[self.at + 1] = end, took
            self.at += 2
            self.words[0] = (self.at - HEADER) // 2


def read_record(path: Path) -> list[tuple[int, int]]:
    """(end, took) of every operation so far. Raises OSError."""
    words = array("Q")
    with path.open("rb") as file:
        words.frombytes(file.read(HEADER * 8))
        words.frombytes(file.read(words[0] * 16))
    return list(zip(words[HEADER::2], words[HEADER + 1 :: 2], strict=True))
