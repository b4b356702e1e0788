"""Custody of the parked source: see custody.h.

The custodian is forked from lm-serve when the control connection stands and before any thread is started. It shares
memory with lm-serve, holds a duplicate of the control socket, and blocks until lm-serve's end of a pipe closes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.errors import check
from live_migration.kernel.own_name import call_ourselves
from live_migration.process.descriptors.held import Held
from live_migration.source_server.held import spare, write_held
from live_migration.source_server.leftover import Leftover, prepare_leftover
from live_migration.wire import messages
from live_migration.wire.exit_codes import ExitCode

NAME = "lm-custodian"
PURPOSE = "acts on what was decided, should the command end"
GRACE_SECONDS = 2.0
LEAVING_SECONDS = 1.0
NO = messages.encode(
    messages.Abort(
        step="the handover",
        object="lm-serve",
        cause="it has ended without handing over",
        remedy="the process runs on at the source; try again",
        code=int(ExitCode.LOST_BEFORE),
    )
)
"""The words of a no that lm-serve itself has none for: it has died."""


@dataclass
class Custody:
    """lm-serve's side: the shared memory, the pipe that only lm-serve holds open, and the custodian's pid."""

    page: mmap.mmap
    state: Any
    lifeline: int
    custodian: int
    control_socket: int
    leftover: Leftover
    held: list[Held] = field(default_factory=list)

    def describing(self, length: int) -> None:
        """A message of so many bytes is sent next, and when it is whole the destination can get ready.

        Raises OSError."""
        self.state.bytes_before_decision = self._count() + length

    def parked(self, pid: int, flag_address: int) -> None:
        """The threads of `pid` are about to wait for the word at `flag_address`; COMMIT is not sent. Raises OSError."""
        self.state.bytes_before_decision = self._count()
        self.state.pid = pid
        self.state.flag_address = flag_address
        self.state.state = lib.LM_CUSTODY_PARKED

    def commit_was_sent(self) -> bool:
        """Whether any byte has entered the control socket since `parked`."""
        try:
            return self._count() > int(self.state.bytes_before_decision)
        except OSError:
            return True

    def unparked(self) -> None:
        """No thread waits for the word any more, and its memory is about to go."""
        self.state.flag_address = 0

    def refuse(self, words: bytes | None = None) -> None:
        """Record that the source does not hand over: a message that says why, or None for one that says nothing more
        than that. Call it before anything is thawed; from then on COMMIT must not be sent.

        Without effect before `describing`, when nobody can be ready, and where the message of that never was whole."""
        if self.state.bytes_before_decision == 0:
            return
        with contextlib.suppress(OSError):
            count = self._count()
            if count < self.state.bytes_before_decision:
                return
            self.state.bytes_before_decision = count
        self.put_words(words if words is not None and len(words) <= lib.LM_CUSTODY_NO_ROOM else NO)
        self.state.state = lib.LM_CUSTODY_NO

    def say_no(self) -> bool:
        """Say what `refuse` has recorded; False if it has recorded nothing. What cannot be said is left."""
        if self.state.state != lib.LM_CUSTODY_NO:
            return False
        lib.lm_custody_say_no(self.state, self.control_socket)
        return True

    def prepare(self, pid: int, held: list[Held]) -> None:
        """Write down what is going to be held of the descriptors of process `pid`. Raises OSError."""
        self.held = held
        write_held(self.state.held_file, pid, held)

    def hold(self, spared: Collection[int]) -> None:
        """Hold what is prepared: from here on it is carried out or undone, but for inodes with which the destination
        goes on as they are. Raises OSError."""
        if spared:
            spare(self.state.held_file, self.held, spared)
        self.state.held = 1

    def carry_out(self) -> None:
        """After COMMIT: do to the descriptors what is left to do. What cannot be done is left."""
        if self.state.held:
            lib.lm_held_run(self.state.held_file, lib.LM_HELD_COMMIT)

    def undo(self) -> None:
        """Before the process runs on: its descriptors are as they were. What cannot be done is left."""
        if self.state.held:
            lib.lm_held_run(self.state.held_file, lib.LM_HELD_UNDO)
            self.state.held = 0

    def put_words(self, words: bytes) -> None:
        """The words of a no that is not recorded yet."""
        ffi.memmove(self.state.no, words, len(words))
        self.state.no_length = len(words)

    def _count(self) -> int:
        count = ffi.new("uint64_t *")
        error = lib.lm_bytes_written(self.control_socket, count)
        if error:
            raise OSError(-error, os.strerror(-error), "the control connection")
        return int(count[0])

    def freezing(self, seconds: float) -> None:
        """A freeze begins that may take so long; far beyond it the custodian ends lm-serve, and so the freeze."""
        self.state.serve = os.getpid()
        self.state.deadline_ns = time.monotonic_ns() + int((2 * seconds + GRACE_SECONDS) * 1e9)

    def thawed(self) -> None:
        """The freeze is over."""
        self.state.deadline_ns = 0

    def decided(self) -> None:
        """The word is written, so that nothing is left to decide."""
        self.state.state = lib.LM_CUSTODY_DECIDED
        self.thawed()

    def end(self) -> None:
        """Let the custodian go, and reap it if it goes soon: before COMMIT it first waits for the peer to hang up."""
        os.close(self.lifeline)
        os.close(self.state.held_file)
        custodian = pidfd.open_pidfd(self.custodian)
        if select.select([custodian], [], [], LEAVING_SECONDS)[0]:
            os.waitpid(self.custodian, 0)
        os.close(custodian)


def start_custody(control_socket: int) -> Custody:
    """Fork the custodian. Call it while lm-serve has one thread."""
    page = mmap.mmap(-1, ffi.sizeof("struct lm_custody"))
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(page))
    watched, lifeline = os.pipe()
    state.held_file = os.memfd_create("held", os.MFD_CLOEXEC)
    leftover = prepare_leftover()
    state.leftover = leftover.record
    custody = Custody(page, state, lifeline, 0, control_socket, leftover)
    custody.put_words(NO)
    custodian = os.fork()
    if custodian == 0:
        try:
            _be_custodian(state, control_socket, watched, lifeline)
        finally:
            os._exit(1)
    os.close(watched)
    custody.custodian = custodian
    return custody


def _be_custodian(state: Any, control_socket: int, watched: int, lifeline: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep = sorted({control_socket, watched, state.held_file})
    # Everything else that lm-serve holds, the ends of its pipes and sockets above all, must close when it dies.
    low = 0
    for descriptor in [*keep, os.sysconf("SC_OPEN_MAX")]:
        os.closerange(low, descriptor)
        low = descriptor + 1
    call_ourselves(NAME, PURPOSE)
    lib.lm_custodian_run(state, control_socket, watched)


def decide(pid: int, flag_address: int, *, stay: bool) -> None:
    """Write the word for which the parked threads of `pid` wait. Raises OSError, ProcessGone."""
    check(lib.lm_park_decide(pid, flag_address, lib.LM_PARK_STAY if stay else lib.LM_PARK_GO_HOME), pid)
