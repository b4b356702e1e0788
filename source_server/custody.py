"""Custody of the parked source: see custody.h.

The custodian is forked from lm-serve when the control connection stands and before any thread is started. It shares
one page with lm-serve, holds a duplicate of the control socket, and blocks until lm-serve's end of a pipe closes.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any

from _lm import ffi, lib

from linux import pidfd
from linux.errors import check
from linux.own_name import call_ourselves

NAME = "lm-custodian"
PURPOSE = "acts on what was decided, should the command end"
GRACE_SECONDS = 2.0
LEAVING_SECONDS = 1.0


@dataclass
class Custody:
    """lm-serve's side: the shared page, the pipe that only lm-serve holds open, and the custodian's pid."""

    page: mmap.mmap
    state: Any
    lifeline: int
    custodian: int
    control_socket: int

    def parked(self, pid: int, flag_address: int) -> None:
        """The threads of `pid` are about to wait for the word at `flag_address`; COMMIT is not sent. Raises OSError."""
        count = ffi.new("uint64_t *")
        check(lib.lm_bytes_written(self.control_socket, count), pid)
        self.state.pid = pid
        self.state.flag_address = flag_address
        self.state.bytes_before_commit = count[0]
        self.state.state = lib.LM_CUSTODY_PARKED

    def commit_was_sent(self) -> bool:
        """Whether any byte has entered the control socket since `parked`."""
        count = ffi.new("uint64_t *")
        if lib.lm_bytes_written(self.control_socket, count) != 0:
            return True
        return bool(count[0] > self.state.bytes_before_commit)

    def freezing(self, seconds: float) -> None:
        """A freeze begins that may take so long; far beyond it the custodian ends lm-serve, and so the freeze."""
        self.state.serve = os.getpid()
        self.state.deadline_ns = time.monotonic_ns() + int((2 * seconds + GRACE_SECONDS) * 1e9)

    def thawed(self) -> None:
        """The freeze is over."""
        self.state.deadline_ns = 0

    def at_home(self) -> None:
        """The threads are back, or were never parked."""
        self.state.state = lib.LM_CUSTODY_AT_HOME

    def decided(self) -> None:
        """The word is written, so that nothing is left to decide."""
        self.state.state = lib.LM_CUSTODY_DECIDED
        self.thawed()

    def end(self) -> None:
        """Let the custodian go, and reap it if it goes soon: before COMMIT it first waits for the peer to hang up."""
        os.close(self.lifeline)
        custodian = pidfd.open_pidfd(self.custodian)
        if select.select([custodian], [], [], LEAVING_SECONDS)[0]:
            os.waitpid(self.custodian, 0)
        os.close(custodian)


def start_custody(control_socket: int) -> Custody:
    """Fork the custodian. Call it while lm-serve has one thread."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(page))
    watched, lifeline = os.pipe()
    custodian = os.fork()
    if custodian == 0:
        try:
            _be_custodian(state, control_socket, watched, lifeline)
        finally:
            os._exit(1)
    os.close(watched)
    return Custody(page, state, lifeline, custodian, control_socket)


def _be_custodian(state: Any, control_socket: int, watched: int, lifeline: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep = sorted({control_socket, watched})
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
