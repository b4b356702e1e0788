"""Locks on files: flock(2), POSIX and open file description locks (fcntl(2)); leases are a blocker.

flock and open file description locks belong to the open file, so the worker takes them through its duplicate. POSIX
locks belong to the process, and rows inside it take them. On the source's own machine the source keeps its locks until
it ends: there an open file that holds one is handed over itself, and a POSIX lock is a blocker.
"""

from __future__ import annotations

import fcntl
import os
import re

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_fcntl
from live_migration.process.descriptors.open_file import Lock, Seen
from live_migration.wire.blockers import Blocker

# lock:   1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF (proc_pid_fdinfo(5))
LINE = re.compile(r"^lock:\s*\d+:\s+(\w+)\s+\w+\s+(\w+)\s+-?\d+\s+\S+\s+(\d+)\s+(\d+|EOF)", re.MULTILINE)
KINDS = ("FLOCK", "POSIX", "OFDLCK")
F_SETLK = 6


def snapshot_locks(seen: Seen) -> list[Lock]:
    """The locks of the open file, and those of the process that it took by it."""
    if "lock:" not in seen.information:
        return []
    return [
        Lock(
            kind=kind,
            write=mode == "WRITE",
            start=int(start),
            length=0 if end == "EOF" else int(end) - int(start) + 1,
        )
        for kind, mode, start, end in LINE.findall(seen.information)
    ]


def belongs_to_open_file(lock: Lock) -> bool:
    """A lock that goes where the open file goes."""
    return lock.kind in ("FLOCK", "OFDLCK")


def held_locks(locks: list[Lock]) -> list[Lock]:
    """The locks that belong to the open file."""
    return [lock for lock in locks if belongs_to_open_file(lock)]


def lock_blockers(locks: list[Lock], name: str) -> list[Blocker]:
    """Blockers: leases, and mandatory or unknown kinds of locks."""
    return [
        Blocker(name, f"it has a lock of kind {lock.kind}", "let the process give it up before the move")
        for lock in locks
        if lock.kind not in KINDS
    ]


def kept_locks(locks: list[Lock], name: str) -> list[Blocker]:
    """Blockers on the source's own machine: the source keeps its POSIX locks until it ends, and nobody can take one
    that excludes others meanwhile. A process that is not frozen gives most of them up within milliseconds.
    """
    if not any(lock.kind == "POSIX" and lock.write for lock in locks):
        return []
    return [
        Blocker(name, "on one machine the source keeps its lock until it ends", "try again when it has been released")
    ]


def argument(lock: Lock) -> bytes:
    """The lock as fcntl(2) takes it."""
    room = ffi.new("char[32]")
    kind = fcntl.F_WRLCK if lock.write else fcntl.F_RDLCK
    return bytes(ffi.buffer(room, lib.lm_pack_lock(kind, lock.start, lock.length, room)))


def take_locks(number: int, locks: list[Lock]) -> None:
    """Take the locks that belong to the open file, through a descriptor of this process. Raises OSError (EAGAIN).
    """
    for lock in locks:
        if lock.kind == "FLOCK":
            fcntl.flock(number, (fcntl.LOCK_EX if lock.write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        elif lock.kind == "OFDLCK":
            fcntl.fcntl(number, lib.F_OFD_SETLK, argument(lock))


def lock_rows(program: Program, number: int, locks: list[Lock]) -> None:
    """Rows that take the POSIX locks, inside the process. A lock that another has taken ends the program
    (EAGAIN).
    """
    for lock in locks:
        if lock.kind == "POSIX":
            program.call(f"lock on descriptor {number}", SYS_fcntl, number, F_SETLK, program.data(argument(lock)))


def is_same_file(number_or_path: int | str, device: int, inode: int) -> bool:
    """Is this the file with that device and inode?"""
    try:
        found = os.stat(number_or_path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (device, inode)
