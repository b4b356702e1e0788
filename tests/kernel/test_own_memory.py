"""After a fork, the memory of a process in a hurry is made its own in one go."""

from __future__ import annotations

import mmap
import os
import resource
import signal
from collections.abc import Callable

import pytest

from live_migration._lm import lib
from live_migration.kernel.memory.own_memory import make_own

PAGE = mmap.PAGESIZE


def faults_while_writing(memory: mmap.mmap) -> int:
    """How many page faults it costs to write to every page."""
    # By one call: what the interpreter itself allocates meanwhile would be counted, too.
    content = b"\1" * len(memory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory[:] = content
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("populate", [lib.lm_own_memory_populate, make_own])
def test_writes_after_a_fork_fault_no_more(populate: Callable[[], object]) -> None:
    memory = mmap.mmap(-1, 500 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    faults_while_writing(memory)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        populate()
        assert faults_while_writing(memory) < 100
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        memory.close()


def test_nothing_is_added() -> None:
    memory = mmap.mmap(-1, 5000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert lib.lm_own_memory_populate() == 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    assert faults_while_writing(memory) >= 5000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= 5000
    memory.close()
