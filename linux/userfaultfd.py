"""A userfaultfd of a process of ours, made by the process itself: it belongs to the address space it was made in."""

from __future__ import annotations

import os

from _lm import lib

from linux.errors import check
from linux.pidfd import fetch_descriptor, open_pidfd
from linux.program import call_in_husk
from linux.syscall_numbers import SYS_close, SYS_userfaultfd


def take_userfaultfd(pid: int) -> int:
    """A userfaultfd of the stopped tracee `pid`, held here alone, its handshake done. Raises OSError, ProcessGone."""
    number = call_in_husk(pid, SYS_userfaultfd, os.O_CLOEXEC | os.O_NONBLOCK)
    if number < 0:
        raise OSError(-number, f"userfaultfd: {os.strerror(-number)}")
    pidfd = open_pidfd(pid)
    try:
        taken = fetch_descriptor(pidfd, number)
    finally:
        os.close(pidfd)
    call_in_husk(pid, SYS_close, number)
    check(lib.lm_userfaultfd_handshake(taken), pid)
    return taken
