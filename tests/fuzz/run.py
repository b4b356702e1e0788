"""`python -m tests.fuzz.run TARGET [options of libFuzzer]`: fuzz a target of targets.py with atheris, from its corpus.

What is found goes into the current folder, as libFuzzer does it. `make fuzz` runs all of them.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["live_migration"]):
    from tests.fuzz.mutation import mutate
    from tests.fuzz.targets import CORPUS, TARGETS


# More memory than at the start.
MOST_MIB = 64


def resident_mib() -> int:
    """The memory that this process has, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def main() -> None:
    """Fuzz until libFuzzer's options end it."""
    target, *options = sys.argv[1:]

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, random.Random(seed))[:most]

    words = [sys.argv[0], f"-rss_limit_mb={resident_mib() + MOST_MIB}", *options, str(CORPUS / target)]
    atheris.Setup(words, TARGETS[target], custom_mutator=change if target != "ticket" else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
