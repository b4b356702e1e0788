"""Threads of a process that is not ours get home, whatever happens to their tracer and when."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.sigreturn_path import (
    Gadgets,
    choose_place,
    find_padding,
    frame_room,
    remote_syscall,
)
from live_migration.kernel.injection.source_threads import (
    SourceThreads,
    ThreadState,
    bring_home,
    choose_end_signal,
    map_stub,
    park,
    room_needed,
    run_in_source,
    settle,
    snapshot_threads,
    thread_states,
    unmap_stub,
)
from live_migration.kernel.injection.syscall_numbers import (
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_mmap,
    SYS_munmap,
    SYS_sched_yield,
)
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.tracing import tracee
from tests.kernel.home_help import Target, frame_on_stack, gadgets_of, in_a_child, kill_at_random, stack_of
from tests.kernel.vector_state import vector_registers

pytestmark = pytest.mark.timeout(600)
SOURCE = Path(__file__).resolve().parent / "home_program.c"
MAP_FIXED_NOREPLACE = 0x100000
END_SIGNAL = choose_end_signal(0) or 0


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home") / "home_program"
    options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-mno-red-zone", "-fomit-frame-pointer", "-pthread"]
    subprocess.run(["gcc", *options, "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def targets(binary: Path, tmp_path: Path) -> Iterator[Callable[[int, int], Target]]:
    started: list[Target] = []

    def start(computing: int, sleeping: int) -> Target:
        started.append(Target(binary, tmp_path, 1 + computing + sleeping, str(computing), str(sleeping)))
        return started[-1]

    yield start
    for target in started:
        target.end()


@pytest.mark.parametrize("place", ["stack", "padding"])
@pytest.mark.parametrize("disturbed", [False, True], ids=["quiet", "signals"])
def test_remote_syscalls_outlive_their_tracer(
    place: str, disturbed: bool, targets: Callable[[int, int], Target]
) -> None:
    target = targets(0, 1)
    pid = target.pid
    gadgets = gadgets_of(pid)
    assert gadgets.leave_return
    assert gadgets.padding

    def work() -> None:
        tracee.seize(pid)
        while True:
            stopped = tracee.stop(pid)
            frame = gadgets.padding if place == "padding" else frame_on_stack(pid, gadgets)
            for _ in range(50):
                assert remote_syscall(pid, gadgets, frame, SYS_getpid) == pid
            tracee.thaw([stopped])

    kill_at_random(target, work, disturbed)


def test_a_remote_syscall_puts_everything_back(targets: Callable[[int, int], Target]) -> None:
    target = targets(0, 0)
    pid = target.pid
    gadgets = gadgets_of(pid)
    tracee.seize(pid)
    stopped = tracee.stop(pid)
    before = tracee.get_registers(pid), tracee.get_signal_mask(pid), vector_registers(tracee.get_xstate(pid))
    for frame in (gadgets.padding, frame_on_stack(pid, gadgets)):
        content = tracee.read_memory(pid, frame, frame_room())
        assert remote_syscall(pid, gadgets, frame, SYS_getppid) == os.getpid()
        assert tracee.read_memory(pid, frame, frame_room()) == content
    with pytest.raises(OSError, match="Invalid argument"):
        remote_syscall(pid, gadgets, gadgets.padding, SYS_munmap, 1, 1)
    after = tracee.get_registers(pid), tracee.get_signal_mask(pid), vector_registers(tracee.get_xstate(pid))
    assert after == before
    tracee.thaw([stopped], True)
    target.check_runs()


def test_padding_is_zero_and_outside_every_segment(targets: Callable[[int, int], Target]) -> None:
    pid = targets(0, 0).pid
    entries = maps(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        place = find_padding(memory.fileno(), entries)
        assert place == gadgets_of(pid).padding
        inside = next(one for one in entries if one.start <= place < one.end)
        assert inside.permissions == "r-xp"
        assert place % 64 == 0
        assert place + frame_room() <= inside.end
        assert not any(os.pread(memory.fileno(), inside.end - place, place))
        # Where no first page tells the end of the text, there is none.
        assert find_padding(memory.fileno(), [one for one in entries if one.offset]) == 0


def test_places_for_a_frame(targets: Callable[[int, int], Target]) -> None:
    target = targets(0, 0)
    pid = target.pid
    gadgets = gadgets_of(pid)
    start, end = stack_of(pid)
    room = frame_room()
    assert choose_place(pid, gadgets, (start, end), end - 64, room) == (end - 64 - 128 - room) & -64
    # On a stack of its own: the lower end of the kernel's, as long as it was never touched.
    tracee.write_memory(pid, start, b"\1")
    grown = choose_place(pid, gadgets, (start, end), 4096, room)
    assert grown == start - room
    assert stack_of(pid)[0] <= start - room
    # Full to the last page, and another mapping too near for it to grow.
    start = stack_of(pid)[0]
    tracee.seize(pid)
    stopped = tracee.stop(pid)
    near = (start & -mmap.PAGESIZE) - (64 << 10)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    frame = frame_on_stack(pid, gadgets)
    assert remote_syscall(pid, gadgets, frame, SYS_mmap, near, mmap.PAGESIZE, mmap.PROT_READ, flags, -1, 0) == near
    assert choose_place(pid, gadgets, (start, end), start + 64, room) == gadgets.padding
    assert choose_place(pid, gadgets, None, 4096, room) == gadgets.padding
    # A frame that is larger than most has no place in the padding.
    assert choose_place(pid, gadgets, None, 4096, room + 64) is None
    tracee.thaw([stopped], True)
    target.check_runs()


def test_what_is_under_a_stack_that_has_grown_stays(targets: Callable[[int, int], Target]) -> None:
    """Who takes the stack for shorter than it is finds memory in use where it would let it grow."""
    pid = targets(0, 0).pid
    start, end = stack_of(pid)
    room = frame_room()
    used = start + room
    tracee.write_memory(pid, start, b"\1" * (room + 64))
    assert choose_place(pid, gadgets_of(pid), (used, end), used + 64, room) == start
    assert tracee.read_memory(pid, start, room) == b"\1" * room


def frozen_threads(pid: int, gadgets: Gadgets) -> tuple[list[tracee.Stop], SourceThreads]:
    """Freeze it and map the stub, with what an earlier tracer has left behind taken away."""
    stops = tracee.freeze(pid)
    threads = snapshot_threads(pid, [stop.tid for stop in stops], END_SIGNAL)
    frame = frame_on_stack(pid, gadgets)
    for left in maps(pid):
        if left.permissions == "rwxp":
            remote_syscall(pid, gadgets, frame, SYS_munmap, left.start, left.end - left.start)
    length = room_needed(threads, programs_for(threads))
    map_stub(threads, gadgets, frame, free_range([(one.start, one.end) for one in maps(pid)], length), length)
    return stops, threads


def programs_for(threads: SourceThreads) -> dict[int, Program]:
    programs = {}
    for tid in threads.tids:
        programs[tid] = program = Program("telling ids")
        program.call("gettid", SYS_gettid)
        for _ in range(20):
            program.call("yield", SYS_sched_yield)
    return programs


@pytest.mark.parametrize("disturbed", [False, True], ids=["quiet", "signals"])
def test_programs_in_all_threads_outlive_their_tracer(disturbed: bool, targets: Callable[[int, int], Target]) -> None:
    target = targets(2, 3)
    pid = target.pid
    gadgets = gadgets_of(pid)

    def work() -> None:
        while True:
            stops, threads = frozen_threads(pid, gadgets)
            for _ in range(10):
                run_in_source(threads, programs_for(threads))
            bring_home(threads)
            unmap_stub(threads)
            tracee.thaw(stops, True)

    kill_at_random(target, work, disturbed)


def test_programs_in_all_threads_leave_no_trace(targets: Callable[[int, int], Target]) -> None:
    target = targets(2, 3)
    pid = target.pid
    gadgets = gadgets_of(pid)
    stops, threads = frozen_threads(pid, gadgets)
    before = states_of(threads)
    programs = {}
    rows = {}
    for tid in threads.tids:
        programs[tid] = Program("telling ids")
        rows[tid] = programs[tid].call("gettid", SYS_gettid)
    outcomes = run_in_source(threads, programs)
    assert [outcomes[tid].result(rows[tid]) for tid in threads.tids] == threads.tids
    bring_home(threads)
    unmap_stub(threads)
    again = snapshot_threads(pid, threads.tids, END_SIGNAL)
    assert states_of(again) == before
    assert not [one for one in maps(pid) if one.permissions == "rwxp"]
    tracee.thaw(stops, True)
    target.check_runs()


def states_of(threads: SourceThreads) -> list[ThreadState]:
    """Every thread's state, of the vector state what is defined."""
    found = list(thread_states(threads))
    return [replace(one, xstate=vector_registers(one.xstate)) for one in found]


def parked_by_a_dead_tracer(target: Target, settled: bool) -> int:
    """Park the target's threads and lose the tracer; the address of the word that they wait for."""
    reader, writer = os.pipe()
    gadgets = gadgets_of(target.pid)

    def work() -> None:
        _, threads = frozen_threads(target.pid, gadgets)
        park(threads)
        if settled:
            settle(threads)
        os.write(writer, threads.flag_address.to_bytes(8, "little"))
        die()

    child = in_a_child(work, writer)
    os.close(writer)
    with open(reader, "rb", buffering=0) as words:
        assert words.read(1) == b"+"
        said = words.read(200)
    os.waitpid(child, 0)
    assert len(said) == 8, said
    return int.from_bytes(said, "little")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_parked_threads_wait_for_the_word_and_go_home_by_2(targets: Callable[[int, int], Target]) -> None:
    target = targets(2, 3)
    word = parked_by_a_dead_tracer(target, settled=False)
    before = target.counters()
    target.disturb()
    time.sleep(0.05)
    assert target.counters() == before
    assert target.handled() == 0
    tracee.write_memory(target.pid, word, (2).to_bytes(4, "little"))
    target.check_runs()
    assert target.handled() == 1


def test_parked_threads_stay_for_good_by_1(targets: Callable[[int, int], Target]) -> None:
    target = targets(2, 3)
    word = parked_by_a_dead_tracer(target, settled=True)
    assert tracee.read_memory(target.pid, word, 4) == (1).to_bytes(4, "little")
    before = target.counters()
    for number in (signal.SIGTERM, signal.SIGRTMIN, signal.SIGSTOP, signal.SIGCONT):
        os.kill(target.pid, number)
    time.sleep(0.05)
    assert target.counters() == before
    assert target.process.poll() is None
    tracee.write_memory(target.pid, word, (2).to_bytes(4, "little"))
    time.sleep(0.05)
    assert target.counters() == before
