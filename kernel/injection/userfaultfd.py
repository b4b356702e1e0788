"""A userfaultfd of a process of ours, made by the process itself: it belongs to the address space it was made in."""

from __future__ import annotations

import errno
import mmap
import os

from live_migration._lm import lib
from live_migration.kernel.errors import check
from live_migration.kernel.injection.program import call_in_husk
from live_migration.kernel.injection.syscall_numbers import (
    SYS_close,
    SYS_ioctl,
    SYS_mmap,
    SYS_munmap,
    SYS_openat,
    SYS_userfaultfd,
)
from live_migration.kernel.pidfd import fetch_descriptor, open_pidfd
from live_migration.kernel.tracing.tracee import write_memory

FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
DEVICE = b"/dev/userfaultfd\0"
AT_FDCWD = -100


def take_userfaultfd(pid: int) -> int:
    """A userfaultfd of the stopped tracee `pid`, held here alone, its handshake done. Raises OSError, ProcessGone.

    Where the system call is forbidden to it, /dev/userfaultfd is tried."""
    number = call_in_husk(pid, SYS_userfaultfd, FLAGS)
    if number in (-errno.EPERM, -errno.ENOSYS):
        number = by_device(pid)
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


def by_device(pid: int) -> int:
    """The number of a userfaultfd that the stopped tracee makes with /dev/userfaultfd, or -errno."""
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    place = call_in_husk(pid, SYS_mmap, 0, mmap.PAGESIZE, protection, flags, -1, 0)
    if place < 0:
        return place
    write_memory(pid, place, DEVICE)
    device = call_in_husk(pid, SYS_openat, AT_FDCWD, place, os.O_RDWR | os.O_CLOEXEC, 0)
    call_in_husk(pid, SYS_munmap, place, mmap.PAGESIZE)
    if device < 0:
        return device
    number = call_in_husk(pid, SYS_ioctl, device, lib.LM_USERFAULTFD_NEW, FLAGS)
    call_in_husk(pid, SYS_close, device)
    return number
