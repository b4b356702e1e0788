"""Custody of the husk from READY until its last thread runs: see custody.h.

The frontend makes a page that all three share, so that it can say what became of the process. The custodian is forked
from the worker when the husk exists and before any thread is started.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.arch.arch import REGISTERS_SIZE, Registers
from live_migration.kernel.errors import check
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.own_name import call_ourselves
from live_migration.kernel.tracing import tracee
from live_migration.wire import messages
from live_migration.wire.control import ControlChannel
from live_migration.wire.session import HuskRecord, State

NAME = "lm-custodian"
PURPOSE = "acts on what was decided, should the command end"
# Beside twice as many threads as the process had when it was looked at.
MORE_THREADS = 4096
LEAVING_SECONDS = 1.0
FATE_SECONDS = 10.0
FATE_PAUSE_SECONDS = 0.005
UNGUARDED = (
    "the process has no [vdso]: if lm-restore's worker is killed in the moment of the handover, some 100 us, it is lost"
)


class Fate(IntEnum):
    """What the custodian has done after the worker's death."""

    OPEN = lib.LM_FATE_OPEN
    LET_GO = lib.LM_FATE_LET_GO
    KILLED = lib.LM_FATE_KILLED
    KEPT = lib.LM_FATE_KEPT


def shared_page() -> mmap.mmap:
    """The page that frontend, worker and custodian share; it says UNARMED."""
    return mmap.mmap(-1, mmap.PAGESIZE)


@dataclass
class Custody:
    """The worker's side: the shared memory, the pipe's end that ends the custodian, and the custodian's pid."""

    husk: Any
    custody: Any
    memory: tuple[mmap.mmap, mmap.mmap]
    capacity: int
    control_socket: int
    lifeline: int
    custodian: int

    @property
    def guarded(self) -> bool:
        """Whether the threads can be parked, so that the worker's death after READY leaves them be."""
        return bool(self.custody.pause_address)

    def prepare(self) -> list[str]:
        """Find the place where the threads will wait, when the husk's [vdso] is in its place. Sentences for the user.

        Raises OSError, ProcessGone."""
        for entry in maps(self.husk.pid):
            if entry.path == "[vdso]":
                code = tracee.read_memory(self.husk.pid, entry.start, entry.end - entry.start)
                offset = lib.lm_husk_find_syscall(code, len(code))
                self.custody.pause_address = entry.start + offset if offset >= 0 else 0
        return [] if self.guarded else [UNGUARDED]

    def rehearse(self, threads: int) -> None:
        """Touch the memory for so many threads, and do once what will be done frozen, without effect."""
        for place in range(min(threads, self.capacity)):
            self._enter(place, 0, Registers(bytes(REGISTERS_SIZE)), 0)
        self.send_first([])
        self._lives()
        # No thread is entered yet, so that these find none.
        self.send_signals()
        self.make_final(0, 1)
        lib.lm_husk_detach(self.husk)
        # What is looked up in the module for the first time takes long.
        for name in ("lm_husk_park", "lm_husk_arm"):
            getattr(lib, name)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(messages.encode(messages.Commit(frozen_ns=0, round_trip_ns=0)))
            channel = ControlChannel(ours)
            channel.look_ahead()
            channel.skip()

    def _lives(self) -> bool:
        """Whether the custodian watches."""
        return bool(self.custody.custodian == self.custodian and os.waitpid(self.custodian, os.WNOHANG) == (0, 0))

    def park(self, place: int, tid: int, registers: Registers, mask: int) -> None:
        """Leave thread `tid`, the `place`th, in a pause from which `make_final` wakes it with these registers and this
        mask (bit n-1: signal n). Raises OSError, ProcessGone."""
        if place >= self.capacity:
            raise OSError(f"the process has made more than {self.capacity} threads since it was looked at")
        self._enter(place, tid, registers, mask)
        check(lib.lm_husk_park(self.husk, place), tid)
        self.custody.thread_count = place + 1

    def _enter(self, place: int, tid: int, registers: Registers, mask: int) -> None:
        thread = self.husk.threads[place]
        thread.tid, thread.mask = tid, mask
        ffi.memmove(thread.registers, registers.raw, REGISTERS_SIZE)

    def send_first(self, signals: Sequence[tuple[int, int]]) -> None:
        """These (thread id for this host or 0 for the process, number) are sent before the threads go.

        Raises OSError when there are too many."""
        if len(signals) > self.capacity:
            raise OSError(f"more than {self.capacity} signals are pending that cannot be queued")
        for place, (tid, number) in enumerate(signals):
            self.husk.signals[place].tid, self.husk.signals[place].number = tid, number
        self.custody.signal_count = len(signals)

    def arm(self, ready: bytes) -> None:
        """From here on the worker's death does not kill the husk. `ready` is what is sent next.

        Raises OSError, ProcessGone: then the husk has to be destroyed."""
        if not self.guarded:
            return
        if not self._lives():
            raise OSError("the custodian has ended; it must not be killed during a migration")
        check(lib.lm_husk_arm(self.husk, self.control_socket, len(ready)), self.husk.pid)

    def tell(self, record: int) -> None:
        """Say what the worker has come to (HuskRecord), before it acts on it."""
        if self.guarded or record == HuskRecord.LET_GO:
            self.custody.state = int(record)

    def make_final(self, first: int, last: int | None = None) -> None:
        """Give the threads from `first` on, or up to `last`, their final registers and masks; they stay stopped."""
        count = int(self.custody.thread_count)
        lib.lm_husk_make_final(self.husk, min(first, count), count if last is None else min(last, count))

    def send_signals(self) -> None:
        """Send what `send_first` was given."""
        lib.lm_husk_send_signals(self.husk)

    def detach(self) -> None:
        """Let the threads go."""
        lib.lm_husk_detach(self.husk)

    def end(self) -> None:
        """Let the custodian go: nothing is left to decide."""
        if self.lifeline < 0:
            return
        os.close(self.lifeline)
        self.lifeline = -1
        with suppress(OSError):
            custodian = pidfd.open_pidfd(self.custodian)
            if select.select([custodian], [], [], LEAVING_SECONDS)[0]:
                os.waitpid(self.custodian, 0)
            os.close(custodian)


def start_custody(page: mmap.mmap, control_socket: int, husk: int, husk_pidfd: int, threads: int) -> Custody:
    """Fork the custodian for a process of so many threads. Call it while the worker has one thread. Raises OSError."""
    capacity = 2 * threads + MORE_THREADS
    thread_size, signal_size = ffi.sizeof("struct lm_husk_thread"), ffi.sizeof("struct lm_husk_signal")
    table = mmap.mmap(-1, capacity * (thread_size + signal_size))
    custody = ffi.cast("struct lm_husk_custody *", ffi.from_buffer(page))
    start = ffi.cast("char *", ffi.from_buffer(table))
    shared = ffi.new("struct lm_husk *")
    shared.custody, shared.pid = custody, husk
    shared.threads = ffi.cast("struct lm_husk_thread *", start)
    shared.signals = ffi.cast("struct lm_husk_signal *", start + capacity * thread_size)
    worker = pidfd.open_pidfd(os.getpid())
    watched, lifeline = os.pipe()
    try:
        custodian = os.fork()
        if custodian == 0:
            try:
                _be_custodian(shared, control_socket, worker, husk_pidfd, watched)
            finally:
                os._exit(1)
    except OSError:
        os.close(lifeline)
        raise
    finally:
        os.close(watched)
        os.close(worker)
    return Custody(shared, custody, (page, table), capacity, control_socket, lifeline, custodian)


def _be_custodian(shared: Any, control_socket: int, worker: int, husk_pidfd: int, watched: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Everything else that the worker holds must close when it dies.
    low = 0
    for descriptor in [*sorted({control_socket, worker, husk_pidfd, watched}), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, descriptor)
        low = descriptor + 1
    call_ourselves(NAME, PURPOSE)
    lib.lm_husk_custodian_run(shared, control_socket, worker, husk_pidfd, watched)


@dataclass(frozen=True)
class Outcome:
    """What the frontend finds on the shared page when its worker has ended. `custodian` is a process id, 0: none."""

    record: HuskRecord
    fate: Fate
    guarded: bool
    custodian: int

    @property
    def state(self) -> State:
        """The state of the session that the worker's death has left behind, by what the custodian has made of it."""
        if HuskRecord.LET_GO is self.record or self.fate is Fate.LET_GO:
            return State.RESUMED
        if self.record is HuskRecord.UNARMED or self.fate is Fate.KILLED:
            return State.ABORTED
        if self.record is HuskRecord.IN_DOUBT or self.fate is Fate.KEPT:
            return State.IN_DOUBT
        return State.READY


def outcome(page: mmap.mmap) -> Outcome:
    """The outcome so far."""
    custody = ffi.cast("struct lm_husk_custody *", ffi.from_buffer(page))
    return Outcome(HuskRecord(custody.state), Fate(custody.fate), bool(custody.pause_address), int(custody.custodian))


def await_outcome(page: mmap.mmap, seconds: float = FATE_SECONDS) -> Outcome:
    """What the custodian made of the worker's death; OPEN when that takes longer, or when the custodian is dead too."""
    end = time.monotonic() + seconds
    while True:
        alive = os.path.exists(f"/proc/{outcome(page).custodian}")
        found = outcome(page)
        undecided = found.record not in (HuskRecord.UNARMED, HuskRecord.LET_GO)
        if not undecided or found.fate is not Fate.OPEN or not alive or time.monotonic() > end:
            return found
        time.sleep(FATE_PAUSE_SECONDS)
