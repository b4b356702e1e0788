"""What the process touched last comes first: memory that is only read, too, where the kernel tells of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel.memory.referenced import parse_touched
from tests.support.started import begin_move

pytestmark = pytest.mark.timeout(120)
SIZE = 64 << 20
# The memory that is read is mapped first, and so lies above the rest, which plain order fetches before it. It is read
# no more where the process finds itself in another PID namespace: what comes there, comes by itself.
READER = """
import mmap, os, random, sys, time
PAGE, SIZE = mmap.PAGESIZE, int(sys.argv[1])
read = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
rested = mmap.mmap(-1, SIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
for area in (read, rested):
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, SIZE, PAGE):
        area[place] = 1
at, places = 0, random.Random(1).sample(range(0, SIZE, PAGE), SIZE // PAGE)
home = os.readlink("/proc/self/ns/pid")
print("ready", flush=True)
while os.readlink("/proc/self/ns/pid") == home:
    if sum(read[place] for place in places[at:at + 8]) != 8:
        sys.exit("wrong")
    at = (at + 8) % len(places)
time.sleep(3600)
"""


@pytest.fixture
def reader() -> Iterator[int]:
    """The id of the running process."""
    words = ["unshare", "--mount", sys.executable, "-c", READER, str(SIZE)]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def resident(pid: int) -> tuple[int, int]:
    """Bytes that are there of the memory that is read, and of the rest."""
    entries = parse_touched(Path(f"/proc/{pid}/smaps").read_bytes())
    rested, read = (one.resident for one in entries if one.end - one.start == SIZE)
    return read, rested


def resident_in_the_middle(reader: int, folder: Path) -> tuple[int, int]:
    """`resident` when half has come, by post-copy over a slow link."""
    move = begin_move(
        reader,
        (None, None),
        folder,
        serve=["--bandwidth-limit", "64M", "--compress", "none"],
        restore=["--pid", "namespace", "--detach", "--stdio", "null"],
        inside=reader,
    )
    moved = move.restore.event("resumed")["pid"]
    try:
        while sum(found := resident(moved)) < SIZE:
            time.sleep(0.01)
        move.complete(60)
        assert resident(moved) == (SIZE, SIZE)
    finally:
        os.kill(moved, signal.SIGKILL)
    return found


def test_memory_that_is_only_read_comes_first(reader: int, tmp_path: Path) -> None:
    """Some MiB of the rest are under way before the source's word arrives."""
    read, rested = resident_in_the_middle(reader, tmp_path)
    assert read > 0.75 * SIZE, f"{read >> 20} and {rested >> 20} MiB"


def test_a_proc_that_cannot_be_written_to_ends_no_move(reader: int, tmp_path: Path) -> None:
    """As in containers: there what is read stays unknown."""
    within = ["nsenter", f"--target={reader}", "--mount", "--"]
    subprocess.run([*within, "mount", "--bind", "/dev/full", f"/proc/{reader}/clear_refs"], check=True)
    resident_in_the_middle(reader, tmp_path)
