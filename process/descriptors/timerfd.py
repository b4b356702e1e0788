"""timerfd_create(2): a timer that is read. A timer goes on as if there had been no move: if it would have run out
meanwhile, it has run out, and as often as it would have.

One that was set to a moment of the wall clock (TFD_TIMER_ABSTIME on CLOCK_REALTIME) goes off at that moment.
"""

from __future__ import annotations

import os
import time

import msgspec

from live_migration._lm import ffi, lib
from live_migration.process.attributes.clocks import monotonic_offset
from live_migration.process.descriptors.kind import Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen

WALL_CLOCKS = (time.CLOCK_REALTIME, 8)  # CLOCK_REALTIME_ALARM
# How often a timer is set that goes off again before its expirations are.
ATTEMPTS = 64


class TimerFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="timerfd"):
    """A timer. Times are nanoseconds: `remaining` 0 when it is not armed, `interval` 0 when it goes off once, `read_at`
    the process's CLOCK_MONOTONIC when that was left.

    `ticks` are the expirations not read yet, `settings` the flags of timerfd_settime(2), `wall` the time of
    CLOCK_REALTIME at which it goes off, for a timer that was set to one.
    """

    clock: int
    settings: int
    ticks: int
    remaining: int
    interval: int
    read_at: int
    wall: int | None


def snapshot_timerfd(seen: Seen, _: SnapshotContext) -> TimerFd:
    """Describe a timer from outside.

    timerfd_gettime(2) through the duplicate restarts an interval timer whose expirations nobody read, and
    counts them, as it does for the process itself.
    """
    state = ffi.new("lm_timerfd_state *")
    result = lib.lm_timerfd_get(seen.duplicate, state)
    if result < 0:
        raise OSError(-result, os.strerror(-result), "timerfd_gettime")
    clock, settings = int(seen.field("clockid")), int(seen.field("settime flags"), 8)
    absolute = clock in WALL_CLOCKS and settings & lib.TFD_TIMER_ABSTIME and state.value > 0
    return TimerFd(
        clock=clock,
        settings=settings,
        ticks=state.ticks,
        remaining=state.value,
        interval=state.interval,
        read_at=state.monotonic + monotonic_offset(seen.pid),
        wall=state.wall + state.value if absolute else None,
    )


def is_same(old: TimerFd, new: TimerFd) -> bool:
    """Are they timers on one clock? All else of a timer is set anew."""
    return old.clock == new.clock


def open_timerfd(one: OpenFile[TimerFd], _: OpenContext) -> int:
    """A timer on the same clock, not armed."""
    number: int = lib.lm_timerfd_create(one.object.clock, lib.TFD_CLOEXEC | lib.TFD_NONBLOCK)
    if number < 0:
        raise OSError(-number, os.strerror(-number), "timerfd_create")
    return number


def update_timerfd(number: int, one: OpenFile[TimerFd], _: TimerFd, context: OpenContext) -> None:
    """Arm it, with the expirations that were not read yet and those of the time since then.

    Setting a timer discards its expirations, and setting these discards what it has counted since: so both have to be
    done before it can go off again.
    """
    timer = one.object
    ticks, flags, clock = timer.ticks, 0, context.monotonic
    due = timer.read_at + timer.remaining
    if timer.wall is not None:
        flags = timer.settings & (lib.TFD_TIMER_ABSTIME | lib.TFD_TIMER_CANCEL_ON_SET)
        due, clock = timer.wall, time.time_ns
    for _attempt in range(ATTEMPTS):
        now = clock()
        if timer.remaining and timer.interval and due <= now:
            missed = 1 + (now - due) // timer.interval
            ticks, due = ticks + missed, due + missed * timer.interval
        value = 0 if not timer.remaining else due if timer.wall is not None else max(1, due - now)
        result = lib.lm_timerfd_set(number, flags, value, timer.interval)
        if result < 0:
            raise OSError(-result, os.strerror(-result), "timerfd_settime")
        if ticks and lib.lm_timerfd_set_ticks(number, ticks) < 0 and not value:
            # A kernel without CONFIG_CHECKPOINT_RESTORE: it matters more that the timer has expired than how often.
            lib.lm_timerfd_set(number, 0, 1, 0)
        if not ticks or not value or clock() < due:
            return


TIMERFD = Kind(
    object=TimerFd,
    links=("anon_inode:[timerfd]",),
    snapshot=snapshot_timerfd,
    same=is_same,
    open=open_timerfd,
    update=update_timerfd,
)
