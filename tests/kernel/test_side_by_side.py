"""Programs of system calls in many threads of one process at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import SyscallFailed
from live_migration.kernel.injection.program import OfEach, Program, ProgramArea, make_program_area, run_in_husk
from live_migration.kernel.injection.side_by_side import run_each_in_husk
from live_migration.kernel.injection.syscall_numbers import (
    SYS_clone3,
    SYS_close,
    SYS_gettid,
    SYS_memfd_create,
    SYS_prctl,
    SYS_pwrite64,
)
from live_migration.kernel.tracing import tracee
from tests.kernel.husks import stopped_husk

pytestmark = pytest.mark.timeout(60)

THREADS = 12
FLAGS = (
    lib.CLONE_VM | lib.CLONE_FS | lib.CLONE_FILES | lib.CLONE_SIGHAND | lib.CLONE_THREAD | lib.CLONE_SYSVSEM
    | lib.CLONE_PTRACE
)  # fmt: skip


@contextmanager
def husk_of_threads() -> Iterator[tuple[int, ProgramArea, list[int]]]:
    """A stopped husk with an area that is too small for all at once, and the ids of its threads but the first."""
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("making threads")
        arguments = program.data(bytes(ffi.buffer(ffi.new("lm_clone_arguments *", {"flags": FLAGS}))))
        for _ in range(THREADS):
            program.call("clone3", SYS_clone3, arguments, int(ffi.sizeof("lm_clone_arguments")))
        program.call("a file for all", SYS_memfd_create, program.string("x"), 0)
        run_in_husk(pid, area, program)
        tids = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid)
        for tid in tids:
            tracee.wait(tid)
        assert len(tids) == THREADS
        yield pid, area, tids


def test_a_program_that_many_threads_run_has_memory_of_its_own_in_each() -> None:
    with husk_of_threads() as (pid, area, tids):
        program = Program("saying who runs it")
        place = program.reserve(8)
        program.store(place, program.call("gettid", SYS_gettid))
        # Not write(2): a memfd's position is not locked (FMODE_ATOMIC_POS is for files that open(2) has opened).
        offsets = OfEach({tid: 8 * number for number, tid in enumerate(tids)})
        program.call("pwrite64", SYS_pwrite64, 3, place, 8, offsets)
        run_each_in_husk(area, dict.fromkeys(tids, program))
        with open(f"/proc/{pid}/fd/3", "rb") as file:
            said = file.read()
        assert sorted(memoryview(said).cast("Q")) == tids


def test_each_thread_runs_its_own_program() -> None:
    with husk_of_threads() as (pid, area, tids):
        programs = {}
        for tid in tids:
            programs[tid] = program = Program("naming")
            program.call("PR_SET_NAME", SYS_prctl, int(lib.PR_SET_NAME), program.string(f"I am {tid}"), 0, 0, 0)
        run_each_in_husk(area, programs)
        for tid in tids:
            with open(f"/proc/{pid}/task/{tid}/comm") as name:
                assert name.read() == f"I am {tid}\n"


def test_a_row_that_fails_in_one_of_them_is_named() -> None:
    with husk_of_threads() as (_, area, tids):
        programs = {tid: Program("fine") for tid in tids}
        for tid, program in programs.items():
            program.call("close nothing", SYS_close, 997, check=tid == tids[3])
        with pytest.raises(SyscallFailed, match=r"fine in process .*: close nothing: Bad file descriptor"):
            run_each_in_husk(area, programs)
        # All are where they can run another one.
        run_each_in_husk(area, dict.fromkeys(tids, Program("nothing")))


def test_what_differs_from_thread_to_thread_is_put_in_for_each() -> None:
    with husk_of_threads() as (pid, area, tids):
        program = Program("naming")
        name = program.data_of_each({tid: (b"I am %d" % tid).ljust(16, b"\0") for tid in tids})
        program.call("PR_SET_NAME", SYS_prctl, int(lib.PR_SET_NAME), name, 0, 0, 0)
        slack = OfEach({tid: 10_000 + tid for tid in tids})
        program.call("PR_SET_TIMERSLACK", SYS_prctl, int(lib.PR_SET_TIMERSLACK), slack, 0, 0, 0)
        # In the middle of others.
        programs = {tid: Program("nothing") if tid == tids[1] else program for tid in tids}
        run_each_in_husk(area, programs)
        for tid in tids:
            if tid == tids[1]:
                continue
            with open(f"/proc/{pid}/task/{tid}/comm") as said:
                assert said.read() == f"I am {tid}\n"
            with open(f"/proc/{tid}/timerslack_ns") as said:
                assert int(said.read()) == 10_000 + tid
