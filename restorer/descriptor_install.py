"""Giving the husk its descriptors: rows that fetch each from the worker and put it at its number.

The worker opens everything in plain Python. The husk holds one descriptor of its own, a pidfd of the worker, kept at a
number above all others, and takes duplicates with pidfd_getfd(2): no message, no buffer, one call each.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass

from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_close, SYS_dup3, SYS_fcntl, SYS_pidfd_getfd


@dataclass(frozen=True)
class Installed:
    """One number of the moved process: the worker's descriptor of the same open file, and whether the number is closed
    at exec."""

    number: int
    worker_descriptor: int
    close_on_exec: bool


def lowest_free(taken: set[int]) -> int:
    """The number that the kernel gives next (open(2): the lowest not in use)."""
    number = 0
    while number in taken:
        number += 1
    return number


def keep_pidfd_rows(program: Program, pidfd: int, above: int) -> int:
    """Move the pidfd out of the way, unless it is above all others already; returns its number afterwards.
    Nothing else may be open at or above `above` + 1."""
    if pidfd > above:
        return pidfd
    program.call("move pidfd", SYS_fcntl, pidfd, fcntl.F_DUPFD_CLOEXEC, above + 1)
    program.call("close pidfd", SYS_close, pidfd)
    return above + 1


def install_rows(program: Program, pidfd: int, taken: set[int], wanted: Iterable[Installed]) -> None:
    """Rows that install every wanted descriptor. `taken`: the numbers in use in the husk, updated on the way."""
    placed: dict[int, int] = {}
    for entry in sorted(wanted, key=lambda installed: installed.number):
        flags = os.O_CLOEXEC if entry.close_on_exec else 0
        label = f"descriptor {entry.number}"
        shared = placed.get(entry.worker_descriptor)
        if shared is not None:
            program.call(label, SYS_dup3, shared, entry.number, flags)
        else:
            arrives = lowest_free(taken)
            program.call(label, SYS_pidfd_getfd, pidfd, entry.worker_descriptor, 0)
            if arrives == entry.number:
                program.call(label, SYS_fcntl, arrives, fcntl.F_SETFD, fcntl.FD_CLOEXEC if entry.close_on_exec else 0)
            else:
                program.call(label, SYS_dup3, arrives, entry.number, flags)
                program.call(label, SYS_close, arrives)
            placed[entry.worker_descriptor] = entry.number
        taken.add(entry.number)


def remove_rows(program: Program, taken: set[int], numbers: Iterable[int]) -> None:
    """Rows that close numbers which the source has closed since."""
    for number in sorted(numbers):
        program.call(f"close {number}", SYS_close, number)
        taken.discard(number)
