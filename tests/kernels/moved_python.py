"""A Python program that is moved: it computes, keeps what it has, and watches that its clock never goes back.

It speaks the language of tests/programs/check.h: `ready`, `moved` and `result` in the folder that is its argument."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

ENTRIES = 20_000


def main(folder: Path) -> str:
    """Work until the move is over; the verdict."""
    kept = {number: hashlib.sha256(str(number).encode()).digest() for number in range(ENTRIES)}
    (folder / "ready").touch()
    last, rounds = time.monotonic(), 0
    while rounds < 3:
        for number, content in kept.items():
            if number % 100 == 0:
                now = time.monotonic()
                if now < last:
                    return f"failed: the clock went back from {last} to {now}"
                last = now
            if content != hashlib.sha256(str(number).encode()).digest():
                return f"failed: entry {number} is not what it was"
        rounds = rounds + 1 if (folder / "moved").exists() else 0
    return "passed"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    verdict = main(place)
    (place / "unfinished").write_text(verdict + "\n")
    (place / "unfinished").rename(place / "result")
