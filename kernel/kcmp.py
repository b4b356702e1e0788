"""Do two processes hold the same kernel object? kcmp(2). Needs the right to ptrace both.

Every function raises OSError with the errno of the call; ENOSYS: a kernel without CONFIG_KCMP.
"""

from __future__ import annotations

import os

from live_migration._lm import lib


def _compare(first: int, second: int, kind: int, first_index: int = 0, second_index: int = 0) -> int:
    result: int = lib.lm_kcmp(first, second, kind, first_index, second_index)
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"kcmp of processes {first} and {second}")
    return result


def order_of_open_files(first: int, first_number: int, second: int, second_number: int) -> int:
    """-1, 0 or 1: the kernel's order of two open files, named by process and descriptor.

    0 means that they are one and the same. The order is stable while both live, so it can sort them.
    """
    return {0: 0, 1: -1}.get(_compare(first, second, lib.KCMP_FILE, first_number, second_number), 1)


def same_open_file(first: int, first_number: int, second: int, second_number: int) -> bool:
    """Do the two descriptors stand for one open file (an open file description in the words of open(2))?"""
    return order_of_open_files(first, first_number, second, second_number) == 0


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
