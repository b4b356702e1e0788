"""What a dead lm-serve has left in a process is taken away, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.source_server.leftover import main, take_away

LENGTH = 40960
PROGRAM = f"""
import ctypes, mmap, sys, threading, time
text = sys.stdin.buffer.readline()
memory = mmap.mmap(-1, {LENGTH}, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
content = bytes.fromhex(text.decode())
if any(content):
    memory[: len(content)] = content
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
count = [0]
def work():
    while True:
        count[0] += 1
threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
threads += [threading.Thread(target=time.sleep, args=(3600,), daemon=True)]
for thread in threads:
    thread.start()
print(address, flush=True)
for line in sys.stdin:
    before = count[0]
    while count[0] == before:
        time.sleep(0.001)
    print(threading.active_count(), flush=True)
"""
Start = Callable[[bytes], tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that maps memory with such a content; its address too."""
    started = []

    def begin(content: bytes) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        print(content.hex(), file=process.stdin, flush=True)
        return process, int(process.stdout.readline())

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def is_mapped(process: subprocess.Popen[str], address: int) -> bool:
    return f"{address:x}-{address + LENGTH:x} rwxp" in Path(f"/proc/{process.pid}/maps").read_text()


def goes_on(process: subprocess.Popen[str]) -> bool:
    """All its threads are there, and those that have work go on with it."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    return int(process.stdout.readline()) == 4


@pytest.mark.parametrize("content", [bytes(16), bytes(ffi.buffer(lib.lm_stub_code(), lib.LM_STUB_ROOM))])
def test_the_mapping_is_taken_away(start: Start, content: bytes) -> None:
    """Nothing stands in it yet, or the stub."""
    process, address = start(content)
    assert is_mapped(process, address)
    assert main([f"{number:x}" for number in (process.pid, address, LENGTH)]) == 0
    assert not is_mapped(process, address)
    assert goes_on(process)
    assert take_away(process.pid, address, LENGTH), "there is nothing to do any more"


def test_no_other_mapping_is(start: Start) -> None:
    process, address = start(b"somebody else's")
    assert take_away(process.pid, address, LENGTH)
    assert is_mapped(process, address)
    assert goes_on(process)
