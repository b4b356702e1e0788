"""AMX tiles, which only some threads may have, are part of a thread's way home."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel.injection.sigreturn_path import frame_room, remote_syscall
from live_migration.kernel.injection.syscall_numbers import SYS_getpid, SYS_getppid
from live_migration.kernel.tracing import tracee
from tests.kernel.home_help import frame_on_stack, gadgets_of, in_a_child
from tests.kernel.vector_state import XSTATE_BV, vector_registers

pytestmark = pytest.mark.timeout(120)
TILES_SOURCE = Path(__file__).resolve().parent / "tiles_program.c"
TILES = 1 << 17 | 1 << 18


def test_a_frame_has_room_for_what_tiles_hold_and_not_for_their_bits() -> None:
    """A bit of XSTATE_BV may come and go with nothing in the tiles; the place of a frame is chosen once."""
    room = frame_room()
    image = bytearray(1 << 14)
    image[XSTATE_BV : XSTATE_BV + 8] = TILES.to_bytes(8, "little")
    assert frame_room(bytes(image)) == room
    image[-1] = 1
    assert frame_room(bytes(image)) >= room + len(image) - 4096
    image[XSTATE_BV : XSTATE_BV + 8] = bytes(8)
    assert frame_room(bytes(image)) >= room + len(image) - 4096


@contextlib.contextmanager
def tiles_program(folder: Path, content: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running tiles_program, killed at the end."""
    binary = folder / "tiles_program"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-mamx-tile", "-o", binary, TILES_SOURCE], check=True)
    process = subprocess.Popen([binary, content], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    with process:
        assert process.stdout is not None
        if process.stdout.read(6) != b"ready\n":
            pytest.skip("this processor or kernel has no AMX")
        try:
            yield process
        finally:
            process.kill()


def check_tiles(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x")
    assert process.stdout.read(5) == b"kept\n"


@pytest.mark.parametrize("content", ["full", "empty", "empty with bits"])
def test_tiles_outlive_a_remote_syscall(content: str, tmp_path: Path) -> None:
    with tiles_program(tmp_path, content.split()[0]) as process:
        pid = process.pid
        tracee.seize(pid)
        stopped = tracee.stop(pid)
        image = bytearray(tracee.get_xstate(pid))
        if content == "empty with bits":
            image[XSTATE_BV + 2] |= TILES >> 16
            tracee.set_xstate(pid, bytes(image))
            assert tracee.get_xstate(pid) == bytes(image)
        before = vector_registers(tracee.get_xstate(pid))
        gadgets = gadgets_of(pid)
        frame = frame_on_stack(pid, gadgets)
        above = tracee.read_memory(pid, tracee.get_registers(pid).stack_pointer - 128, 128)
        for _ in range(3):
            assert remote_syscall(pid, gadgets, frame, SYS_getppid) == os.getpid()
        assert tracee.read_memory(pid, tracee.get_registers(pid).stack_pointer - 128, 128) == above
        assert vector_registers(tracee.get_xstate(pid)) == before
        tracee.thaw([stopped], True)
        check_tiles(process)


def test_tiles_get_home_by_their_frame(tmp_path: Path) -> None:
    """A tracer that dies in a remote syscall leaves the frame to bring the tiles back."""
    with tiles_program(tmp_path, "full") as process:
        pid = process.pid
        gadgets = gadgets_of(pid)

        def work() -> None:
            tracee.seize(pid)
            tracee.stop(pid)
            frame = frame_on_stack(pid, gadgets)
            while True:
                remote_syscall(pid, gadgets, frame, SYS_getpid)

        chance = random.Random(1)
        for _ in range(40):
            reader, writer = os.pipe()
            child = in_a_child(work, writer)
            os.close(writer)
            with open(reader, "rb", buffering=0) as words:
                assert words.read(1) == b"+"
                time.sleep(chance.uniform(0.001, 0.006))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                assert words.read(200) == b""
            check_tiles(process)
