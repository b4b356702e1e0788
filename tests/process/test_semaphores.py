"""Which semaphores may have to be given back, told apart from those of everybody else on the host."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.attributes.semaphores import undo_blockers

SETS = """
import ctypes, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
if "threads" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if "holds" in sys.argv or "operates" in sys.argv:
    number = libc.semget(0, 1, 0o1600)
    libc.semop(number, struct.pack("hhh", 0, 1, 0x1000 if "holds" in sys.argv else 0), 1)
    print(number, flush=True)
print("ready", flush=True)
sys.stdin.read()
if "holds" in sys.argv or "operates" in sys.argv:
    libc.semctl(number, 0, 0)
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SETS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def threads_of_our_own() -> Iterator[None]:
    """With a thread, this process has a list of semaphores to be undone, as lm-serve has."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.parametrize("words", [["single"], ["threads"]])
def test_what_others_operate_on_is_no_blocker(words: list[str], threads_of_our_own: None) -> None:
    with start(*words) as process, start("operates") as other:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            assert other.stdout
            other.stdout.readline()
            assert not undo_blockers(ProcessSnapshot(process.pid))
        finally:
            process.communicate()
            other.communicate()


@pytest.mark.parametrize("words", [["holds"], ["holds", "threads"]])
def test_what_the_process_holds_is_one(words: list[str], threads_of_our_own: None) -> None:
    with start(*words) as process:
        try:
            assert process.stdout
            number = process.stdout.readline().strip()
            (found,) = undo_blockers(ProcessSnapshot(process.pid))
            assert number in found.object
        finally:
            process.communicate()
