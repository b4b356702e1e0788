"""Sleeping threads, seen from outside: when each fell asleep, and in which system call.

The kernel tells when a thread was last running (`se.exec_start` in /proc/PID/sched). If that is not known, the time
counts from the moment at which the sleep was first seen, else all of it is left: too long, never too short.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.proc import read_proc, stat_fields

SWITCHES = re.compile(rb"^voluntary_ctxt_switches:\s*(\d+)$", re.MULTILINE)
EPOLL_WAITS = frozenset({numbers.SYS_epoll_wait, numbers.SYS_epoll_pwait})
MILLISECOND = 1_000_000
MAXIMUM_TIMEOUT = 0x7FFFFFFF
GOES_ON_SECONDS = 0.1
SMALLEST_ADDRESS = 4096
# The clock of a process or thread: a small negative number, of its id and its kind (clock_getcpuclockid(3)).
LOWEST_CLOCK = 0xFE000000


@dataclass(frozen=True)
class Sleep:
    """A sleeping thread: when it fell asleep, by CLOCK_MONOTONIC, how often it had by then, and in which call.

    `began` may be somewhat late, never early. `call` is the system call's number, that of the original call if it goes
    on by restart_syscall(2); None if it is not known.
    """

    switches: int
    began: int
    call: int | None = None


@dataclass(frozen=True)
class Slept:
    """A sleep that the freeze has interrupted: the nanoseconds that it had lasted, at least, and the call if known."""

    nanoseconds: int = 0
    call: int | None = None


NOT_SEEN = Slept()


def snapshot_sleeps(tids: Iterable[int]) -> dict[int, Sleep]:
    """When each of these threads was last running, without those that run now and those of which the kernel does not
    tell.

    The kernel tells it by the clock of the processor that the thread was on, which lags behind by the time that
    interrupts and a hypervisor took. So this thread goes to each of those processors for a moment, to read its clock.
    """
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    looked = {tid: found for tid in tids if (found := _scheduled(tid)) is not None and found[2] == "S"}
    clocks = _processor_clocks({processor for _, _, _, processor in looked.values()})
    return {
        # Without the processor's clock: it has slept at least since now.
        tid: Sleep(switches, min(began + clocks[processor], now) if processor in clocks else now, _sleeping_call(tid))
        for tid, (switches, began, _, processor) in looked.items()
    }


def _scheduled(tid: int) -> tuple[int, int, str, int] | None:
    """Voluntary context switches, time of last running (nanoseconds of its processor's clock), state, processor."""
    try:
        text = read_proc(f"/proc/{tid}/sched").decode(errors="surrogateescape")
        fields = stat_fields(tid)
    except OSError:
        return None
    began = switches = None
    for line in text.splitlines():
        if line.startswith("se.exec_start"):
            began = round(float(line.rpartition(":")[2]) * MILLISECOND)
        elif line.startswith("nr_voluntary_switches"):
            switches = int(line.rpartition(":")[2])
    if began is None or switches is None:
        return None
    return switches, began, fields[0], int(fields[36])


def _switches(tid: int, status: bytes | None = None) -> int | None:
    """Voluntary context switches, and nothing else: while a process stands still, /proc/TID/sched takes too long."""
    try:
        found = SWITCHES.search(read_proc(f"/proc/{tid}/status") if status is None else status)
    except OSError:
        return None
    return int(found[1]) if found else None


def _processor_clocks(processors: Iterable[int]) -> dict[int, int]:
    """What to add to each processor's clock to get CLOCK_MONOTONIC, without those to which this thread may not go."""
    allowed = os.sched_getaffinity(0)
    found = {}
    try:
        for processor in processors:
            try:
                os.sched_setaffinity(0, {processor})
            except OSError:
                continue
            # Yielding sets this thread's own last-running time to now.
            os.sched_yield()
            own = _scheduled(threading.get_native_id())
            if own is not None:
                found[processor] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - own[1]
    finally:
        os.sched_setaffinity(0, allowed)
    return found


def slept(before: Sleep | None, tid: int, frozen_at: int, status: bytes | None = None) -> Slept:
    """What is known of the sleep that the freeze has interrupted at `frozen_at` (CLOCK_MONOTONIC). `status` is the
    thread's /proc/TID/status, if it was read since.

    If there is one voluntary context switch more than in the sleep seen `before`, it is the same sleep: the switch is
    the freeze's own.
    """
    if before is None or _switches(tid, status) != before.switches + 1:
        return NOT_SEEN
    return Slept(max(0, frozen_at - before.began), before.call)


def interrupted_sleeps(before: dict[int, Sleep]) -> dict[int, Sleep]:
    """While the threads stand still: those of these sleeps that the stop has interrupted, and not their own end."""
    return {
        tid: sleep
        for tid, sleep in before.items()
        if _switches(tid) == sleep.switches + 1
    }


def sleeps_gone_on(interrupted: dict[int, Sleep], seconds: float = GOES_ON_SECONDS) -> dict[int, Sleep]:
    """When the threads run again: those of the interrupted sleeps that have gone on, as restart_syscall(2) shows.

    A later stop then finds how long they have lasted in all. This waits for them for a limited time."""
    found = {}
    deadline = time.monotonic() + seconds
    for tid, sleep in interrupted.items():
        while (now := _scheduled(tid)) is not None:
            if now[2] == "S" and now[0] > sleep.switches + 1:
                if _current_call(tid)[:1] == (numbers.SYS_restart_syscall,):
                    found[tid] = Sleep(now[0], sleep.began, sleep.call)
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.0005)
    return found


def longest_epoll_wait(tids: Iterable[int]) -> int:
    """Milliseconds of the longest timeout of an epoll_wait(2) that one of these threads sleeps in; 0 for none.

    A stop makes such a wait begin anew with its whole timeout."""
    longest = 0
    for tid in tids:
        number, *arguments = _current_call(tid) or (-1,)
        if number in EPOLL_WAITS:
            timeout = arguments[3] & 0xFFFFFFFF
            longest = max(longest, timeout if timeout <= MAXIMUM_TIMEOUT else 0)
    return longest


def _current_call(tid: int) -> tuple[int, ...]:
    """Number and six arguments of the system call in which a thread sleeps (proc_pid_syscall(5)); else empty."""
    try:
        number, *words = read_proc(f"/proc/{tid}/syscall").decode().split()
    except (OSError, ValueError):
        return ()
    return (int(number), *(int(word, 16) for word in words[:6])) if number.isdecimal() else ()


def _sleeping_call(tid: int) -> int | None:
    """The call in which a thread sleeps; the original call if it goes on by restart_syscall(2)."""
    call = _current_call(tid)
    if call[:1] != (numbers.SYS_restart_syscall,):
        return call[0] if call else None
    try:
        function = read_proc(f"/proc/{tid}/wchan").decode()
    except OSError:
        return None
    if function in ("", "0"):
        return None
    if function.startswith("futex"):
        return int(numbers.SYS_futex)
    if "poll" in function:
        return int(numbers.SYS_poll)
    # All others that set a restart block: one begins with the number of a clock, the other with an address.
    high, low = divmod(call[1], 1 << 32)
    is_clock = high in (0, 0xFFFFFFFF) and not SMALLEST_ADDRESS <= low < LOWEST_CLOCK
    return int(numbers.SYS_clock_nanosleep if is_clock else numbers.SYS_nanosleep)
