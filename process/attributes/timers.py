"""Timers of a process: the three interval timers and POSIX timers with their ids.

Times are the nanoseconds that were left when the process told them. A timer may run out after it was read and before
the pending signals are read; its time tells that (`expired_by`). The destination arms timers last. On clocks that only
go forward it sets them to the moment at which they are due, be it over: then the kernel counts what has been missed
(timer_getoverrun(2)), and a periodic timer's phase is as before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Data, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.wire.blockers import Blocker

SECOND = 1_000_000_000
MICROSECOND = 1_000
INTERVAL_TIMERS = 3
ALARM_TIMER = 0  # ITIMER_REAL
# Without PR_TIMER_CREATE_RESTORE_IDS the ids are counted up to, two rows for each.
HIGHEST_COUNTED_ID = 20_000
KNOWN_CLOCKS = frozenset({0, 1, 2, 3, 7, 8, 9, 11})  # clock_gettime(2)
# How the kernel shows a timer on the processor time of the thread that created it (include/linux/posix-timers_types.h).
OWN_THREAD_CLOCK = -2
PROCESSOR_CLOCKS = frozenset({2, 3})
CLOCK_MONOTONIC, CLOCK_BOOTTIME = 1, 7
TIMER_ABSTIME = 1
NOTIFICATIONS = {"signal": "SIGEV_SIGNAL", "none": "SIGEV_NONE", "thread": "SIGEV_THREAD"}
ENTRY = re.compile(
    r"ID: (?P<id>\d+)\nsignal: (?P<signal>\d+)/(?P<value>[0-9a-f]+)\n"
    r"notify: (?P<notify>\w+)/(?P<kind>tid|pid)\.(?P<owner>-?\d+)\nClockID: (?P<clock>-?\d+)\n"
)


class IntervalTimer(msgspec.Struct, frozen=True, kw_only=True):
    """One of getitimer(2)'s timers, in nanoseconds (they count microseconds); remaining 0 is not armed."""

    remaining: int = 0
    interval: int = 0


class PosixTimer(msgspec.Struct, frozen=True, kw_only=True):
    """A timer of timer_create(2). `thread` is the id that SIGEV_THREAD_ID names, 0 for the process."""

    identifier: int
    clock: int
    signal: int
    value: int
    notify: int
    thread: int
    remaining: int = 0
    interval: int = 0


class Timers(msgspec.Struct, frozen=True, kw_only=True):
    """All timers of a process. `read_at`: its CLOCK_MONOTONIC in nanoseconds just after it told their times."""

    interval_timers: tuple[IntervalTimer, ...] = (IntervalTimer(), IntervalTimer(), IntervalTimer())
    posix_timers: tuple[PosixTimer, ...] = ()
    read_at: int = 0


def snapshot_timers(process: ProcessSnapshot) -> tuple[PosixTimer, ...]:
    """The POSIX timers in /proc/PID/timers (proc_pid_timers(5)), without their times."""
    return parse_timers(process.read("timers").decode())


def parse_timers(text: str) -> tuple[PosixTimer, ...]:
    """The timers told by the text of /proc/PID/timers, in the order of their ids."""
    found = []
    for entry in ENTRY.finditer(text):
        to_thread = entry["kind"] == "tid"
        notify = int(getattr(lib, NOTIFICATIONS[entry["notify"]]))
        found.append(
            PosixTimer(
                identifier=int(entry["id"]),
                clock=int(entry["clock"]),
                signal=int(entry["signal"]),
                value=int(entry["value"], 16),
                notify=notify | (int(lib.SIGEV_THREAD_ID) if to_thread else 0),
                thread=int(entry["owner"]) if to_thread else 0,
            )
        )
    return tuple(sorted(found, key=lambda timer: timer.identifier))


def query_timers(program: Program, posix_timers: Sequence[PosixTimer]) -> Data:
    """Rows that query the time left of every timer. They come before the pending signals are read."""
    interval_size = int(ffi.sizeof("lm_interval_setting"))
    size = int(ffi.sizeof("lm_timer_setting"))
    clock = INTERVAL_TIMERS * interval_size + len(posix_timers) * size
    place = program.reserve(clock + int(ffi.sizeof("lm_timespec")))
    for kind in range(INTERVAL_TIMERS):
        program.call("getitimer", numbers.SYS_getitimer, kind, place + kind * interval_size, check=False)
    for index, timer in enumerate(posix_timers):
        target = place + INTERVAL_TIMERS * interval_size + index * size
        program.call("timer_gettime", numbers.SYS_timer_gettime, timer.identifier, target, check=False)
    program.call("clock_gettime", numbers.SYS_clock_gettime, CLOCK_MONOTONIC, place + clock)
    return place


def reply_timers(replies: bytes, posix_timers: Sequence[PosixTimer]) -> Timers:
    """The timers with the times that `query_timers` brought."""
    interval_size = int(ffi.sizeof("lm_interval_setting"))
    size = int(ffi.sizeof("lm_timer_setting"))
    intervals = ffi.from_buffer("lm_interval_setting[]", replies[: INTERVAL_TIMERS * interval_size])
    clock = INTERVAL_TIMERS * interval_size + len(posix_timers) * size
    settings = ffi.from_buffer("lm_timer_setting[]", replies[INTERVAL_TIMERS * interval_size : clock])
    moment = ffi.new("lm_timespec *")
    ffi.memmove(moment, replies[clock:], ffi.sizeof("lm_timespec"))
    return Timers(
        interval_timers=tuple(
            IntervalTimer(
                remaining=reply.it_value.tv_sec * SECOND + reply.it_value.tv_usec * MICROSECOND,
                interval=reply.it_interval.tv_sec * SECOND + reply.it_interval.tv_usec * MICROSECOND,
            )
            for reply in intervals
        ),
        posix_timers=tuple(
            msgspec.structs.replace(
                timer,
                remaining=reply.it_value.tv_sec * SECOND + reply.it_value.tv_nsec,
                interval=reply.it_interval.tv_sec * SECOND + reply.it_interval.tv_nsec,
            )
            for timer, reply in zip(posix_timers, settings, strict=True)
        ),
        read_at=moment.tv_sec * SECOND + moment.tv_nsec,
    )


def timer_blockers(timers: Timers, process_id: int, thread_ids: Sequence[int]) -> list[Blocker]:
    """Blockers: timers that cannot be made again, on the clock of another process, or for a thread that has ended."""
    blockers = []
    for timer in timers.posix_timers:
        name = f"timer {timer.identifier}"
        owner = clock_owner(timer.clock)
        if owner is not None and owner not in (0, process_id, *thread_ids):
            blockers.append(
                Blocker(
                    object=name,
                    cause=f"it counts the processor time of process {owner}, which stays",
                    remedy="delete the timer before the move",
                )
            )
        elif timer.clock == OWN_THREAD_CLOCK and not timer.thread and len(thread_ids) > 1:
            blockers.append(
                Blocker(
                    object=name,
                    cause="it counts the processor time of one of several threads, and the kernel does not tell which",
                    remedy="create it with SIGEV_THREAD_ID, or on the clock that pthread_getcpuclockid(3) names",
                )
            )
        elif timer.clock >= 0 and timer.clock not in KNOWN_CLOCKS:
            blockers.append(
                Blocker(
                    object=name,
                    cause=f"it is on clock {timer.clock}, which other hosts do not have",
                    remedy="use CLOCK_MONOTONIC or CLOCK_REALTIME",
                )
            )
        if timer.thread and timer.thread not in thread_ids:
            blockers.append(
                Blocker(
                    object=name,
                    cause=f"it signals thread {timer.thread}, which has ended",
                    remedy="delete the timer before the move",
                )
            )
    return blockers


def clock_owner(clock: int) -> int | None:
    """The process or thread id in a CPU-time clock's number (clock_getcpuclockid(3)), None for other clocks."""
    return ~(clock >> 3) if clock < 0 else None


def _clock_to_create(timer: PosixTimer) -> int:
    """The clock's number as the first thread has to name it: another thread's processor time by that one's id."""
    if timer.clock == OWN_THREAD_CLOCK and timer.thread:
        return ~timer.thread << 3 | 6
    return timer.clock


def create_timers(program: Program, posix_timers: Sequence[PosixTimer], restore_ids: bool) -> None:
    """Rows that create the timers with their ids, unarmed, in a process that never had any.

    `restore_ids`: the kernel offers PR_TIMER_CREATE_RESTORE_IDS; otherwise it hands out ids counting up from 0, and
    those in between are used up. Threads that timers name must exist.
    """
    if not posix_timers:
        return

    def switch(state: int) -> None:
        label = "PR_TIMER_CREATE_RESTORE_IDS"
        program.call(label, numbers.SYS_prctl, int(lib.PR_TIMER_CREATE_RESTORE_IDS), state, 0, 0, 0)

    if restore_ids:
        switch(1)
    following = 0
    for timer in posix_timers:
        while not restore_ids and following < timer.identifier:
            unwanted = program.reserve(8)
            program.call("timer_create of an id between", numbers.SYS_timer_create, 1, 0, unwanted)
            program.call("timer_delete of an id between", numbers.SYS_timer_delete, following)
            following += 1
        following += 1
        event = ffi.new("lm_signal_event *")
        event.value = timer.value
        event.signal = timer.signal
        event.notify = timer.notify
        event.thread = timer.thread
        wanted = program.data(timer.identifier.to_bytes(8, "little"))
        place = program.data(bytes(ffi.buffer(event)))
        label = f"timer_create of timer {timer.identifier}"
        program.call(label, numbers.SYS_timer_create, _clock_to_create(timer), place, wanted)
    if restore_ids:
        switch(0)


def identities(timers: Timers) -> tuple[PosixTimer, ...]:
    """The POSIX timers without their times: what they are, not how far they have come."""
    return tuple(msgspec.structs.replace(timer, remaining=0, interval=0) for timer in timers.posix_timers)


def delete_timers(program: Program, posix_timers: Sequence[PosixTimer]) -> None:
    """Rows that delete timers made by `create_timers`."""
    for timer in posix_timers:
        label = f"timer_delete of timer {timer.identifier}"
        program.call(label, numbers.SYS_timer_delete, timer.identifier)


def ids_can_be_chosen() -> bool:
    """Whether this kernel creates timers with wanted ids (PR_TIMER_CREATE_RESTORE_IDS)."""
    return bool(lib.lm_timer_ids_restorable())


def ids_within_reach(timers: Timers, restore_ids: bool) -> list[Blocker]:
    """Blockers on the destination: timer ids so high that counting up to them would take too long."""
    highest = max((timer.identifier for timer in timers.posix_timers), default=0)
    if restore_ids or highest <= HIGHEST_COUNTED_ID:
        return []
    return [
        Blocker(
            object=f"timer {highest}",
            cause="this kernel hands out timer ids only in order, and the id is far away",
            remedy="use a kernel with PR_TIMER_CREATE_RESTORE_IDS",
        )
    ]


def arm_timers(program: Program, timers: Timers, elapsed: int = 0, boot_ahead: int = 0) -> None:
    """Rows that arm every timer with what is left of its time, `elapsed` nanoseconds after it was read.

    A timer that would have run out meanwhile runs out at once. `boot_ahead` is by how much the process's CLOCK_BOOTTIME
    is ahead of its CLOCK_MONOTONIC, in nanoseconds.
    """
    ahead = {CLOCK_MONOTONIC: 0, CLOCK_BOOTTIME: boot_ahead}
    for kind, timer in enumerate(timers.interval_timers):
        if timer.remaining == 0 and timer.interval == 0:
            continue
        # The two others count processor time, which does not pass while the process is frozen.
        passed = elapsed if kind == ALARM_TIMER else 0
        setting = ffi.new("lm_interval_setting *")
        # An interval timer whose signal waits to be taken has nothing left: the kernel sets it going again when the
        # signal is taken (setitimer(2), dequeue_signal), and one set to 0 never would be.
        left = max(MICROSECOND, (timer.remaining or timer.interval) - passed)
        setting.it_value.tv_sec, rest = divmod(left, SECOND)
        setting.it_value.tv_usec = rest // MICROSECOND
        setting.it_interval.tv_sec, rest = divmod(timer.interval, SECOND)
        setting.it_interval.tv_usec = rest // MICROSECOND
        place = program.data(bytes(ffi.buffer(setting)))
        program.call("setitimer", numbers.SYS_setitimer, kind, place, 0)
    for posix_timer in timers.posix_timers:
        if posix_timer.remaining == 0:
            continue
        passed = 0 if posix_timer.clock < 0 or posix_timer.clock in PROCESSOR_CLOCKS else elapsed
        value, flags = max(1, posix_timer.remaining - passed), 0
        if posix_timer.clock in ahead and timers.read_at:
            value, flags = timers.read_at + posix_timer.remaining + ahead[posix_timer.clock], TIMER_ABSTIME
        armed = ffi.new("lm_timer_setting *")
        armed.it_value.tv_sec, armed.it_value.tv_nsec = divmod(value, SECOND)
        armed.it_interval.tv_sec, armed.it_interval.tv_nsec = divmod(posix_timer.interval, SECOND)
        place = program.data(bytes(ffi.buffer(armed)))
        label = f"timer_settime of timer {posix_timer.identifier}"
        program.call(label, numbers.SYS_timer_settime, posix_timer.identifier, flags, place, 0)


def since_read(timers: Timers, described: int, elapsed: int) -> int:
    """Nanoseconds since the times of the timers were read, `elapsed` after the process's clock showed `described`.

    The clock is described first, and a busy machine lets time pass until the timers are read: with that taken from what
    is left, they would run out too early.
    """
    return max(0, elapsed - max(0, timers.read_at - described))


def expired_by(timers: Timers, passed: int) -> tuple[bool, frozenset[int]]:
    """Whether the alarm timer, and which POSIX timers, ran out within `passed` nanoseconds of being read.

    They will run out at the destination too, so their signals must not travel if the queue shows them.
    """
    alarm = timers.interval_timers[ALARM_TIMER]
    return (
        0 < alarm.remaining <= passed,
        frozenset(timer.identifier for timer in timers.posix_timers if 0 < timer.remaining <= passed),
    )
