"""What the process touched last comes first: memory that is only read, too, where the kernel tells of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.machines import begin_move
from linux.referenced import parse_touched

pytestmark = pytest.mark.timeout(120)
SIZE = 32 << 20
# The memory that is read is mapped first, and so lies above the rest, which plain order fetches before it. It is read
# no more once the process is told to rest: what comes then, comes by itself.
READER = """
import mmap, os, random, sys, time
PAGE, SIZE = mmap.PAGESIZE, int(sys.argv[2])
read = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
rested = mmap.mmap(-1, SIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
for area in (read, rested):
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, SIZE, PAGE):
        area[place] = 1
places = random.Random(1).sample(range(0, SIZE, PAGE), SIZE // PAGE)
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    if sum(read[place] for place in places[:256]) != 256:
        sys.exit("wrong")
    places = places[256:] + places[:256]
time.sleep(3600)
"""


@dataclass(frozen=True)
class Reader:
    """The running process, and the file that tells it to rest."""

    pid: int
    rest: Path


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    rest = tmp_path / "rest"
    words = ["unshare", "--mount", sys.executable, "-c", READER, str(rest), str(SIZE)]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Reader(process.pid, rest)
        finally:
            process.kill()


def resident(pid: int) -> tuple[int, int]:
    """Bytes that are there of the memory that is read, and of the rest."""
    entries = parse_touched(Path(f"/proc/{pid}/smaps").read_bytes())
    rested, read = (one.resident for one in entries if one.end - one.start == SIZE)
    return read, rested


def resident_in_the_middle(reader: Reader, folder: Path, *more: str) -> tuple[int, int]:
    """`resident` when half has come, by post-copy over a slow link."""
    move = begin_move(
        reader.pid,
        (None, None),
        folder,
        serve=["--bandwidth-limit", "32M", "--compress", "none"],
        restore=["--pid", "namespace", "--detach", "--stdio", "null", *more],
        inside=reader.pid,
    )
    move.serve.event("frozen")
    reader.rest.touch()
    moved = move.restore.event("resumed")["pid"]
    try:
        while sum(found := resident(moved)) < SIZE:
            time.sleep(0.01)
        move.complete(60)
        assert resident(moved) == (SIZE, SIZE)
    finally:
        os.kill(moved, signal.SIGKILL)
    return found


@pytest.mark.parametrize(("order", "hot"), [("hot", True), ("order", False)])
def test_memory_that_is_only_read_comes_first(order: str, hot: bool, reader: Reader, tmp_path: Path) -> None:
    read, rested = resident_in_the_middle(reader, tmp_path, "--prefetch", order)
    assert (read > rested) == hot, f"{read >> 20} and {rested >> 20} MiB"


def test_a_proc_that_cannot_be_written_to_ends_no_move(reader: Reader, tmp_path: Path) -> None:
    """As in containers: there what is read stays unknown."""
    within = ["nsenter", f"--target={reader.pid}", "--mount", "--"]
    subprocess.run([*within, "mount", "--bind", "/dev/full", f"/proc/{reader.pid}/clear_refs"], check=True)
    read, rested = resident_in_the_middle(reader, tmp_path)
    assert read < rested
