"""Threads that spend nearly all of their time in the vdso are led out of it, in every freeze, and notice nothing."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel.arch.arch import Registers
from live_migration.kernel.injection.return_detour import return_place
from live_migration.kernel.injection.source_threads import SourceThreads, unmap_stub
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.tracing import tracee
from live_migration.process.memory.vdso import entry_points, own_code
from live_migration.source_server import vdso_exit
from live_migration.source_server.snapshot import SourceSnapshot, snapshot_source
from live_migration.source_server.vdso_exit import is_inside, leave_vdso
from tests.kernel.home_help import Target, kill_at_random
from tests.kernel.husks import kill_and_reap, wait_until

pytestmark = pytest.mark.timeout(600)
SOURCE = Path(__file__).resolve().parent / "clock_program.c"
THREADS = 3
LED_OUT = 300
HANDLERS = 40
STEPPING_SECONDS = 60
MOST_FREEZES = 5000
WORD = 8
SINGLE_STEP = 9  # PTRACE_SINGLESTEP


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clock") / "clock_program"
    options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-mno-red-zone", "-pthread"]
    subprocess.run(["gcc", *options, "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def target(binary: Path, tmp_path: Path) -> Iterator[Target]:
    started = Target(binary, tmp_path, THREADS)
    yield started
    started.end()


def known(pid: int) -> SourceSnapshot:
    seen, _ = snapshot_source(pid)
    return seen


def where(seen: SourceSnapshot, stops: list[tracee.Stop]) -> list[bool]:
    """Which of the threads are in the middle of the vdso."""
    return [is_inside(seen.memory, tracee.get_registers(stop.tid).instruction_pointer) for stop in stops]


def test_a_thread_that_is_always_in_the_vdso_is_led_out_at_the_first_freeze(target: Target) -> None:
    seen = known(target.pid)
    led_out = 0
    for _ in range(MOST_FREEZES):
        stops = tracee.freeze(target.pid)
        led_out += sum(where(seen, stops))
        assert leave_vdso(seen, stops) == []
        assert not any(where(seen, stops))
        assert not [one for one in maps(target.pid) if one.permissions == "rwxp"]
        tracee.thaw(stops, True)
        # Beside other programs a thread may not have run since it was let go.
        if led_out >= LED_OUT:
            break
    assert led_out >= LED_OUT
    target.check_runs()


@pytest.mark.parametrize("disturbed", [False, True], ids=["quiet", "signals"])
def test_threads_outlive_who_leads_them_out(disturbed: bool, target: Target) -> None:
    seen = known(target.pid)
    chance = random.Random(2)

    def work() -> None:
        while True:
            stops = tracee.freeze(target.pid)
            left = leave_vdso(seen, stops)
            # A handler may have interrupted the vdso, and ends when it runs.
            assert disturbed or not left
            tracee.thaw(stops, True)
            time.sleep(chance.choice((0, 0, 0.0005)))

    kill_at_random(target, work, disturbed)


def test_a_handler_begins_while_its_thread_is_led_out(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frame is then where the thread's remote syscalls had theirs before, and if the tracer dies in one, nobody
    puts back what was there."""
    seen = known(target.pid)
    begun = 0

    def unmap_below(threads: SourceThreads) -> None:
        assert threads.frame < tracee.get_registers(threads.pid).stack_pointer
        unmap_stub(threads)

    monkeypatch.setattr(vdso_exit, "unmap_stub", unmap_below)
    for _ in range(MOST_FREEZES):
        stops = tracee.freeze(target.pid)
        leader = next(one for one in stops if one.tid == target.pid)
        begun += all(where(seen, [leader]))
        target.disturb()
        leave_vdso(seen, stops)
        tracee.thaw(stops, True)
        target.check_runs()
        if begun >= HANDLERS:
            break
    assert begun >= HANDLERS
    wait_until(lambda: target.handled() == target.signals)


def test_what_looks_like_a_frame_may_be_any_data(target: Target) -> None:
    memory = known(target.pid).memory
    for stack_pointer in (0, 8, memory.mappings[0].start, memory.mappings[-1].end, 1 << 47, (1 << 64) - 8):
        assert vdso_exit.interrupted_places(target.pid, memory, stack_pointer) == []


def test_a_stopped_process_stays_stopped(target: Target) -> None:
    seen = known(target.pid)
    os.kill(target.pid, 19)
    time.sleep(0.05)
    for _ in range(3):
        stops = tracee.freeze(target.pid)
        assert leave_vdso(seen, stops) == []
        tracee.thaw(stops, True)
    before = target.counters()
    time.sleep(0.05)
    assert target.counters() == before
    os.kill(target.pid, 18)
    target.check_runs()


@pytest.mark.parametrize("name", ["clock_gettime", "time", "gettimeofday", "clock_getres", "getcpu"])
def test_the_return_address_is_found_at_every_instruction(name: str, binary: Path, tmp_path: Path) -> None:
    """As single steps see it, which know the calls and the returns."""
    image = own_code()
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), 19)
        os._exit(1)
    try:
        os.waitpid(pid, os.WUNTRACED)
        tracee.seize(pid)
        tracee.stop(pid)
        start = next(one.start for one in maps(pid) if one.path == "[vdso]")
        entry = start + next(one.offset for one in entry_points(image) if one.name == name)
        state = tracee.get_registers(pid)
        stack = (state.stack_pointer - 4096) & -16
        back = state.instruction_pointer
        tracee.write_memory(pid, stack - WORD, back.to_bytes(WORD, "little"))
        arguments = (1, stack, 0) if name.startswith("clock") else (stack + 64, stack, 0)
        state = state.replaced(
            instruction_pointer=entry, stack_pointer=stack - WORD, syscall_number=-1, arguments=arguments
        )
        tracee.set_registers(pid, state)
        steps = check_every_step(pid, image, start, back)
        assert steps > 3
    finally:
        kill_and_reap(pid)


def check_every_step(pid: int, image: bytes, start: int, back: int) -> int:
    """Step until it is at `back`; how many instructions of the vdso were seen.

    The kernel changes the clock's data every few milliseconds, and who reads it meanwhile begins again: stepped slowly,
    that may go on for a while."""
    from live_migration._lm import lib

    end = time.monotonic() + STEPPING_SECONDS
    places: list[int] = []
    steps = 0
    last: Registers | None = None
    while True:
        state = tracee.get_registers(pid)
        if state.instruction_pointer == back:
            return steps
        offset = state.instruction_pointer - start
        assert 0 <= offset < len(image)
        if last is None or (
            state.stack_pointer == last.stack_pointer - WORD
            and int.from_bytes(tracee.read_memory(pid, state.stack_pointer, WORD), "little")
            == last.instruction_pointer + 5
        ):
            places.append(state.stack_pointer)
        while places and state.stack_pointer > places[-1]:
            places.pop()
        assert return_place(image, offset, state) == places[-1], hex(offset)
        steps += 1
        last = state
        assert lib.lm_trace(SINGLE_STEP, pid, 0) == 0
        tracee.wait(pid)
        assert time.monotonic() < end, f"{steps} steps"
