"""Do two processes hold the same kernel object? kcmp(2). Needs the right to ptrace both.

Every function raises OSError with the errno of the call; ENOSYS: a kernel without CONFIG_KCMP.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from live_migration._lm import ffi, lib

# What kcmp(2) returns: equal, the first is less, the second is.
_ORDER = {0: 0, 1: -1, 2: 1}


def _compare(first: int, second: int, kind: int, first_index: int = 0, second_index: int = 0) -> int:
    result: int = lib.lm_kcmp(first, second, kind, first_index, second_index)
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"kcmp of processes {first} and {second}")
    return result


def number_open_files(numbers: Sequence[int]) -> list[int]:
    """For each of these descriptors of this process a number, which is the same for one and the same open file (an open
    file description in the words of open(2)).

    They are numbered in an order of the kernel's, which stays as long as they live. It is quick for those that are
    given in this order: each is compared with the one before, and no more."""
    places = ffi.new("int[]", len(numbers))
    result = lib.lm_number_open_files(ffi.new("int[]", numbers), len(numbers), places)
    if result < 0:
        raise OSError(-result, os.strerror(-result), "kcmp of descriptors")
    return list(places)


def same_open_file(first: int, first_number: int, second: int, second_number: int) -> bool:
    """Do the two descriptors, named by process and number, stand for one open file?"""
    return _compare(first, second, lib.KCMP_FILE, first_number, second_number) == 0


def order_open_files(first: int, first_number: int, second: int, second_number: int) -> int:
    """Below 0, 0 or above 0: where the first descriptor's open file stands beside the second's, in an order of the
    kernel's which stays as long as they live; 0: they are one."""
    result = _compare(first, second, lib.KCMP_FILE, first_number, second_number)
    if result not in _ORDER:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), "the order of open files")
    return _ORDER[result]


def same_epoll_target(pid: int, number: int, epoll: int, target: int, offset: int = 0) -> bool:
    """Is descriptor `number` of process `pid` the file that its epoll instance `epoll` watches as `target`?

    Several files may have been registered under one number; `offset` counts among them. An epoll instance
    without such an entry raises OSError with ENOENT.
    """
    result: int = lib.lm_kcmp_epoll_target(pid, pid, number, epoll, target, offset)
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"epoll {epoll}, target {target}")
    return result == 0


def same_address_space(first: int, second: int) -> bool:
    """Do the two tasks share their memory (CLONE_VM)?"""
    return _compare(first, second, lib.KCMP_VM) == 0


def same_descriptor_table(first: int, second: int) -> bool:
    """Do the two tasks share their table of descriptors (CLONE_FILES)?"""
    return _compare(first, second, lib.KCMP_FILES) == 0


def same_filesystem_state(first: int, second: int) -> bool:
    """Do the two tasks share root, working directory and umask (CLONE_FS)?"""
    return _compare(first, second, lib.KCMP_FS) == 0
