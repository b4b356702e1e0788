"""Custody of the husk from READY until its last thread runs: see custody.h.

The frontend makes a page that all three share, so that it can say what became of the process. The custodian is forked
from the worker when the husk exists and before any thread is started.
"""

from __future__ import annotations

import hashlib
import mmap
import os
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
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.held_table import write_held
from live_migration.restorer.network import Network
from live_migration.wire import decision
from live_migration.wire.connection import Roles
from live_migration.wire.custodians import HUSK_MEMORY, NAME, shared_memory
from live_migration.wire.handshake import Side
from live_migration.wire.session import HuskRecord, State

PURPOSE = "asks what was decided, and acts on it, should the command end"
# Beside twice as many threads as the process had when it was looked at.
MORE_THREADS = 4096
LEAVING_SECONDS = 1.0
FATE_SECONDS = 10.0
FATE_PAUSE_SECONDS = 0.005
BEGIN_SECONDS, BEGIN_PAUSE_SECONDS = 5.0, 0.0005
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
    return shared_memory(HUSK_MEMORY, mmap.PAGESIZE)


@dataclass
class Custody:
    """The worker's side: the shared memory, its end of the DECISION connection, the pipe's end that ends the custodian,
    and the custodian's pid. `listener`: as decision.listener_of has it. `command`: both ends of a socket, to receive
    and to pass on what comes to the listener and is not the custodian's (wire/decision.h).
    """

    husk: Any
    custody: Any
    memory: tuple[mmap.mmap, mmap.mmap]
    capacity: int
    husk_pidfd: int
    line: Any
    listener: int
    command: tuple[socket.socket, socket.socket]
    network: Network
    lifeline: int = -1
    custodian: int = 0
    killed: bool = False

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
        self._watches()
        # No thread is entered yet, so that these find none.
        self.send_signals()
        self.make_final(0, 1)
        lib.lm_husk_detach(self.husk)
        # What is looked up in the module for the first time takes long.
        for name in ("lm_husk_park", "lm_husk_arm"):
            getattr(lib, name)
        self._rehearse_asking()

    def _rehearse_asking(self) -> None:
        """Hear a word as the source says it, on a connection of our own."""
        ours, theirs = socket.socketpair()
        known, shared = self.custody.decision, ffi.new("struct lm_decision *")
        token = bytes(lib.LM_WORD_TOKEN)
        ffi.memmove(shared.hello, known.hello, lib.LM_WORD_HELLO)
        ffi.memmove(shared.tokens[lib.LM_WORD_COMMIT], hashlib.sha256(token).digest(), lib.LM_WORD_TOKEN)
        with ours, theirs:
            theirs.sendall(bytes(ffi.buffer(ffi.new("struct lm_word *", {"kind": lib.LM_WORD_COMMIT, "token": token}))))
            line = decision.open_line(shared, ours, -1)
            ask(line, self.husk_pidfd, 1.0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**9)
            lib.lm_decision_close(line)

    def _lives(self) -> bool:
        """Whether the custodian does."""
        with suppress(ChildProcessError):
            ended, status = os.waitpid(self.custodian, os.WNOHANG)
            self.killed = bool(ended and os.WIFSIGNALED(status))
            return not ended
        return False

    def _watches(self) -> bool:
        """Whether the custodian lives and watches. On a busy machine, one that was forked may not have begun yet."""
        end = time.monotonic() + BEGIN_SECONDS
        while self._lives():
            if self.custody.custodian == self.custodian:
                return True
            if time.monotonic() > end:
                break
            time.sleep(BEGIN_PAUSE_SECONDS)
        return False

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

    def arm(self) -> None:
        """From here on the worker's death does not kill the husk.

        Raises OSError, ProcessGone: then the husk has to be destroyed."""
        if not self._watches():
            raise OSError("the custodian has ended; it must not be killed during a migration")
        if self.guarded:
            check(lib.lm_husk_arm(self.husk), self.husk.pid)

    def final_came(self) -> None:
        """The source may wait for what becomes of the husk."""
        self.custody.final_came = 1

    def ask(self, seconds: float, stale_ns: int) -> tuple[Decided, int]:
        """Wait so long for what the source has decided, and ask it where it says nothing: what that is, and how long
        the freeze has lasted when it comes, in nanoseconds (0: not known). After `stale_ns` (CLOCK_BOOTTIME) nothing
        counts but an answer.
        """
        if not self._lives():
            self.start()
        return ask(self.line, self.husk_pidfd, seconds, stale_ns)

    @property
    def by_hand(self) -> bool:
        """Whether the decision was made here, by hand."""
        return bool(self.custody.decision.by_hand)

    @property
    def is_connected(self) -> bool:
        """Whether there is a DECISION connection."""
        return bool(self.line.connection >= 0)

    def say_resumed(self) -> None:
        """Tell the source that the process runs here. The custodian sees to it that this is heard, and tells it where
        the connection is not its own too.
        """
        if self.line.renewed == 0:
            lib.lm_decision_say(self.line, lib.LM_WORD_RESUMED, 0, 0)
        lib.lm_decision_close(self.line)

    def tell(self, record: int) -> None:
        """Say what the worker has come to (HuskRecord), before it acts on it."""
        if self.guarded or record == HuskRecord.LET_GO:
            self.custody.state = int(record)

    def make_final(self, first: int, last: int | None = None) -> None:
        """Give the threads from `first` on, or up to `last`, their final registers and masks; they stay stopped."""
        count = int(self.custody.thread_count)
        lib.lm_husk_make_final(self.husk, min(first, count), count if last is None else min(last, count))

    def write_begun(self, pid: int, begun: Sequence[Held]) -> None:
        """Write down what is to be done when the process runs, before its threads go. Raises OSError."""
        write_held(self.network.table, pid, begun, self.network.sockets)
        self.custody.begun = 1

    def begin(self) -> None:
        """Do it. What cannot be done is left."""
        lib.lm_husk_begin(self.husk)

    def send_signals(self) -> None:
        """Send what `send_first` was given."""
        lib.lm_husk_send_signals(self.husk)

    def detach(self) -> None:
        """Let the threads go."""
        lib.lm_husk_detach(self.husk)

    def finished(self) -> None:
        """The source's copy has left: nothing is to be told any more."""
        self.custody.decision.heard = lib.LM_WORD_ACKNOWLEDGED

    def has_left(self) -> bool:
        """After the process was let go: whether the custodian has, for the source has heard of it, or is gone too. One
        that was killed before that is replaced."""
        if self._lives():
            return False
        if self.killed and not self.custody.decision.heard:
            with suppress(OSError):
                self.killed = False
                self.start()
                return False
        return True

    def start(self) -> None:
        """Fork the custodian. Raises OSError."""
        if self.lifeline >= 0:
            os.close(self.lifeline)
        worker = pidfd.open_pidfd(os.getpid())
        watched, self.lifeline = os.pipe()
        try:
            self.custodian = os.fork()
            if self.custodian == 0:
                try:
                    _be_custodian(self, worker, watched)
                finally:
                    os._exit(1)
        finally:
            os.close(watched)
            os.close(worker)

    def end(self) -> None:
        """Let the custodian go, and reap it if it goes soon: it stays until the source has heard what has become of the
        husk.
        """
        if self.lifeline < 0:
            return
        with suppress(OSError):
            if not self._lives() and not self.custody.decision.heard:
                self.start()
        os.close(self.lifeline)
        self.lifeline = -1
        self.network.close()
        with suppress(OSError):
            custodian = pidfd.open_pidfd(self.custodian)
            if pidfd.ends_within(custodian, LEAVING_SECONDS):
                os.waitpid(self.custodian, 0)
            os.close(custodian)
        lib.lm_decision_close(self.line)
        for way in self.command:
            way.close()


class Decided(IntEnum):
    """What the source has decided."""

    UNDECIDED = lib.LM_DECISION_UNDECIDED
    COMMIT = lib.LM_DECISION_COMMIT
    NO = lib.LM_DECISION_NO


def ask(line: Any, pidfd_of_husk: int, seconds: float, stale_ns: int) -> tuple[Decided, int]:
    """As Custody.ask, on any line."""
    frozen_ns = ffi.new("uint64_t *")
    found = lib.lm_decision_ask(line, pidfd_of_husk, int(seconds * 1000), stale_ns, frozen_ns)
    return Decided(found), int(frozen_ns[0])


@dataclass(frozen=True)
class HuskEnds:
    """What the custodian needs to know of a husk: its process id, a pidfd, and how many threads it had when it was
    described.
    """

    pid: int
    pidfd: int
    threads: int


def start_custody(
    page: mmap.mmap,
    roles: Roles,
    connection: socket.socket,
    hashes: decision.Hashes,
    husk: HuskEnds,
    network: Network,
) -> Custody:
    """Fork the custodian. Call it while the worker has one thread. Raises OSError."""
    capacity = 2 * husk.threads + MORE_THREADS
    thread_size, signal_size = ffi.sizeof("struct lm_husk_thread"), ffi.sizeof("struct lm_husk_signal")
    table = mmap.mmap(-1, capacity * (thread_size + signal_size))
    custody = ffi.cast("struct lm_husk_custody *", ffi.from_buffer(page))
    start = ffi.cast("char *", ffi.from_buffer(table))
    shared = ffi.new("struct lm_husk *")
    shared.custody, shared.pid = custody, husk.pid
    custody.pid, custody.begun_file = husk.pid, network.table
    shared.threads = ffi.cast("struct lm_husk_thread *", start)
    shared.signals = ffi.cast("struct lm_husk_signal *", start + capacity * thread_size)
    known, listener = ffi.addressof(custody, "decision"), decision.listener_of(roles)
    decision.prepare(known, roles, Side.DESTINATION, hashes)
    line = decision.open_line(known, connection, listener)
    way = decision.way_to_command()
    found = Custody(shared, custody, (page, table), capacity, husk.pidfd, line, listener, way, network)
    found.start()
    return found


def _be_custodian(custody: Custody, worker: int, watched: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection, listener, husk_pidfd = int(custody.line.connection), custody.listener, custody.husk_pidfd
    command, shared = custody.command[1].fileno(), custody.network.shared
    kept = (one for one in (connection, listener) if one >= 0)
    keep = sorted({worker, husk_pidfd, watched, command, *shared, *kept})
    # Everything else that the worker holds must close when it dies.
    low = 0
    for descriptor in [*keep, os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, descriptor)
        low = descriptor + 1
    call_ourselves(NAME, PURPOSE)
    lib.lm_husk_custodian_run(custody.husk, connection, listener, command, worker, husk_pidfd, watched)


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
