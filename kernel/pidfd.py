"""Descriptors that stand for processes: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

Every function raises OSError with the errno of the call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time

from live_migration._lm import lib
from live_migration.kernel.proc import stat_fields

# linux/pidfd.h, struct pidfd_info: the mask, twelve numbers of no interest here, and the wait status.
_INFO = struct.Struct("=Q52xi")
_GET_INFO = 0xC000FF0B | _INFO.size << 16
_INFO_EXIT = 1 << 3
_REAPING_SECONDS = 1.0


def _result(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def open_pidfd(pid: int) -> int:
    """A descriptor that stands for process `pid`; readable (poll) once it has ended. Close-on-exec."""
    return _result(lib.lm_pidfd_open(pid, 0), f"process {pid}")


def is_ending(pid: int) -> bool:
    """Has process `pid` ended, or been killed so that it is about to?"""
    try:
        descriptor = open_pidfd(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(lib.lm_pidfd_is_ending(descriptor))
    finally:
        os.close(descriptor)


def fetch_descriptor(pidfd: int, number: int) -> int:
    """A duplicate, in this process, of descriptor `number` of the process behind `pidfd`. Close-on-exec.

    Needs the right to ptrace that process. EBADF: it has no such descriptor.
    """
    return _result(lib.lm_pidfd_getfd(pidfd, number), f"descriptor {number}")


def ends_within(pidfd: int, seconds: float) -> bool:
    """Whether the process behind it has ended, or does in that time."""
    watched = select.poll()
    watched.register(pidfd, select.POLLIN)
    return bool(watched.poll(seconds * 1000))


def ended_status(pidfd: int, pid: int) -> int:
    """The wait status of process `pid`, which has ended and is nobody's here to wait for; 0 where that is not told: if
    it has been reaped, before Linux 6.15."""
    end = time.monotonic() + _REAPING_SECONDS
    while time.monotonic() < end:
        told = bytearray(_INFO.pack(_INFO_EXIT, 0))
        with contextlib.suppress(OSError):
            fcntl.ioctl(pidfd, _GET_INFO, told)
            mask, status = _INFO.unpack(told)
            if mask & _INFO_EXIT:
                return int(status)
        # Not reaped yet (proc_pid_stat(5)).
        with contextlib.suppress(OSError):
            fields = stat_fields(pid)
            if fields[0] == "Z":
                return int(fields[49])
        time.sleep(0.01)
    return 0


def send_signal(pidfd: int, signal: int) -> None:
    """Send `signal` to the process behind `pidfd`, which cannot be another one with a reused id."""
    _result(lib.lm_pidfd_send_signal(pidfd, signal), f"signal {signal}")


def send_to_thread(pid: int, tid: int, signal: int) -> None:
    """Send `signal` to one thread of a process (tgkill(2))."""
    _result(lib.lm_send_to_thread(pid, tid, signal), f"signal {signal}")
