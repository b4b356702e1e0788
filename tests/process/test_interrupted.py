"""Calls that the freeze interrupts go on in another process: for what was left of their time, with the right result."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel.arch.arch import REGISTERS_SIZE, Registers
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.proc import read_proc
from live_migration.kernel.tracing import tracee
from live_migration.process.threads import interrupted, sleeps
from live_migration.process.threads.sleeps import Sleep
from tests.kernel.husks import wait_until
from tests.process import task_helpers as helpers

CALLER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int count, char **words) {
    struct timespec time = {2, 0}, left = {0, 0};
    struct pollfd entry = {.fd = 0, .events = POLLIN};
    struct epoll_event event;
    int word = 7, epoll = epoll_create1(0);
    char byte;
    long result = -2;
    double start;

    puts("ready");
    fflush(stdout);
    start = now();
    if (strcmp(words[1], "nanosleep") == 0)
        result = syscall(SYS_nanosleep, &time, NULL);
    if (strcmp(words[1], "nanosleep_left") == 0)
        result = syscall(SYS_nanosleep, &time, &left);
    if (strcmp(words[1], "clock_nanosleep") == 0)
        result = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, NULL);
    if (strcmp(words[1], "futex") == 0)
        result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &time, NULL, 0);
    if (strcmp(words[1], "futex_absolute") == 0) {
        clock_gettime(CLOCK_MONOTONIC, &time);
        time.tv_sec += 2;
        result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 7, &time, NULL, FUTEX_BITSET_MATCH_ANY);
    }
    if (strcmp(words[1], "futex_like_poll") == 0) {
        clock_gettime(CLOCK_MONOTONIC, &time);
        time.tv_sec += 2;
        word = 0;
        result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &time, NULL, FUTEX_BITSET_MATCH_ANY);
    }
    if (strcmp(words[1], "poll") == 0)
        result = poll(&entry, 1, 2000);
    if (strcmp(words[1], "epoll_wait") == 0)
        result = epoll_wait(epoll, &event, 1, 2000);
    if (strcmp(words[1], "read") == 0)
        result = read(0, &byte, 1);
    printf("%ld %d %.3f\n", result, result < 0 ? errno : 0, now() - start);
    return 0;
}
"""
CLONE_TRACED = 0x2000 | signal.SIGCHLD
WHOLE, FIRST_PART = 2.0, 1.0
"""Seconds. Half of it is left for a busy machine, before the freeze and after the waking."""


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caller")
    (folder / "caller.c").write_text(CALLER)
    subprocess.run(["cc", "-O1", "-Wall", "-o", folder / "caller", folder / "caller.c"], check=True)
    return folder / "caller"


@pytest.fixture
def running(caller: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [caller, request.param], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.communicate()


def moved(pid: int, write_first: int | None = None, *, stopped_before: bool = False) -> int:
    """Freeze the caller in its call, copy it, and let the copy go on with the call as described; returns its id."""
    time.sleep(FIRST_PART)
    if stopped_before:
        tracee.thaw(tracee.freeze(pid), True)
        time.sleep(0.1)
    before = sleeps.snapshot_sleeps([pid]).get(pid)
    stops = tracee.freeze(pid)
    assert [stop.tid for stop in stops] == [pid]
    state = tracee.get_registers(pid)
    asleep = sleeps.slept(before, pid, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    code = tracee.read_memory(pid, state.instruction_pointer - 7, 7)
    final, call = interrupted.registers_to_resume(state, False, code, interrupted.Reader(pid), asleep, in_library=True)
    xstate = tracee.get_xstate(pid)
    copy = helpers.remote_syscall(pid, numbers.SYS_clone, CLONE_TRACED, 0, 0, 0, 0)
    tracee.wait(copy)
    tracee.set_options(copy, tracee.TRACESYSGOOD)
    if write_first is not None:
        os.write(write_first, b"x")
    if call is not None:
        with helpers.area_in(copy) as area:
            final = interrupted.continue_call(copy, area, call, final)
            # The area goes while the call's state stays: as after the move.
            tracee.set_registers(copy, final.replaced(syscall_number=-1))
    tracee.set_xstate(copy, xstate)
    tracee.set_signal_mask(copy, 0)
    tracee.set_registers(copy, final)
    os.kill(pid, signal.SIGKILL)
    tracee.detach(copy)
    return copy


def told(child: subprocess.Popen[str]) -> tuple[int, int, float]:
    assert child.stdout is not None
    result, error, seconds = child.stdout.readline().split()
    return int(result), int(error), float(seconds)


SLEEPS = ["nanosleep", "nanosleep_left", "clock_nanosleep", "futex", "futex_absolute", "poll", "epoll_wait"]


@pytest.mark.parametrize("running", SLEEPS, indirect=True)
def test_a_sleep_lasts_for_what_was_left(running: subprocess.Popen[str], request: pytest.FixtureRequest) -> None:
    moved(running.pid)
    result, error, seconds = told(running)
    name = request.node.callspec.params["running"]
    assert (result, error) == {"futex": (-1, 110), "futex_absolute": (-1, 110)}.get(name, (0, 0))
    # Whatever the machine's load, it never wakes before its time, and not after a second whole sleep.
    assert WHOLE <= seconds < WHOLE + FIRST_PART


@pytest.mark.parametrize("running", [*SLEEPS, "futex_like_poll"], indirect=True)
def test_a_sleep_that_has_gone_on_once_is_not_taken_for_another_call(
    running: subprocess.Popen[str], request: pytest.FixtureRequest
) -> None:
    moved(running.pid, stopped_before=True)
    result, error, seconds = told(running)
    name = request.node.callspec.params["running"]
    assert (result, error) == ((-1, 110) if name.startswith("futex") else (0, 0))
    # The stop before is not told by the kernel: what had been slept before it may be slept again.
    assert WHOLE <= seconds < 2 * WHOLE + FIRST_PART


def test_a_call_that_nothing_tells_is_seen_to_fail() -> None:
    blank = Registers(bytes(REGISTERS_SIZE))
    state = blank.replaced(result=-516, syscall_number=int(numbers.SYS_restart_syscall))
    reader = interrupted.Reader(os.getpid())
    final, call = interrupted.registers_to_resume(state, False, bytes(7), reader, sleeps.NOT_SEEN)
    assert call is None
    assert (final.result, final.syscall_number) == (-errno.EINTR, -1)


@pytest.mark.parametrize("running", ["poll"], indirect=True)
def test_a_poll_whose_event_has_come_returns_it(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    moved(running.pid, running.stdin.fileno())
    result, error, seconds = told(running)
    assert (result, error) == (1, 0)
    assert seconds < WHOLE


@pytest.mark.parametrize("running", ["read"], indirect=True)
def test_a_read_goes_on_waiting(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    moved(running.pid)
    os.write(running.stdin.fileno(), b"x")
    assert told(running)[:2] == (1, 0)


def test_a_sleep_that_was_not_seen_counts_nothing() -> None:
    assert sleeps.slept(None, os.getpid(), 10) == sleeps.NOT_SEEN
    switches = 0
    woken = sleeps.slept(Sleep(switches, 5), os.getpid(), 10)
    assert woken == sleeps.NOT_SEEN, "it has woken in between"


def test_the_beginning_of_a_sleep_is_found() -> None:
    asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    asleep = b"%d " % numbers.SYS_clock_nanosleep
    child = subprocess.Popen(["sleep", "100"])
    try:
        wait_until(lambda: read_proc(f"/proc/{child.pid}/syscall").startswith(asleep))
        time.sleep(0.5)
        sleep = sleeps.snapshot_sleeps([child.pid])[child.pid]
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        assert asked < sleep.began <= now - 200_000_000
    finally:
        child.kill()
        child.wait()
