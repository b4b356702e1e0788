"""Programs of system calls, run in a real process."""

from __future__ import annotations

import errno
import os
import resource
import signal
from array import array
from fcntl import F_DUPFD

import pytest

from live_migration._lm import lib
from live_migration.kernel.errors import ProcessGone, SyscallFailed
from live_migration.kernel.injection.program import (
    Ending,
    Program,
    ProgramTooLarge,
    call_in_husk,
    make_program_area,
    run_in_husk,
)
from live_migration.kernel.injection.syscall_numbers import (
    SYS_close,
    SYS_dup,
    SYS_exit_group,
    SYS_fcntl,
    SYS_getcwd,
    SYS_getpid,
    SYS_kill,
    SYS_memfd_create,
    SYS_pread64,
    SYS_rt_sigaction,
    SYS_write,
)
from live_migration.kernel.tracing import tracee
from tests.kernel.husks import stopped_husk

pytestmark = pytest.mark.timeout(60)


def test_one_injected_call_returns_its_result_and_leaves_the_registers() -> None:
    with stopped_husk() as pid:
        before = tracee.get_registers(pid)
        assert call_in_husk(pid, SYS_getpid) == pid
        assert call_in_husk(pid, SYS_close, 999) == -errno.EBADF
        assert tracee.get_registers(pid) == before


def test_two_hundred_rows_run_with_results_as_arguments() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 64 * 1024)
        program = Program("many rows")
        descriptor = program.call("make a memfd", SYS_memfd_create, program.string("x"), 0)
        for number in range(100):
            copy = program.call("dup", SYS_dup, descriptor)
            program.call("write", SYS_write, copy, program.data(b"%03d." % number), 4)
            program.call("close", SYS_close, copy)
        back = program.reserve(400)
        length = program.call("read", SYS_pread64, descriptor, back, 400, 0)
        last = program.call("ask", SYS_getpid)
        outcome = run_in_husk(pid, area, program)
        assert outcome.result(length) == 400
        assert outcome.read(back) == b"".join(b"%03d." % number for number in range(100))
        assert outcome.read(back + 396) == b"099."
        assert outcome.result(last) == pid


def test_a_program_can_be_run_again_and_elsewhere() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 16 * 1024)
        program = Program("twice")
        path = program.reserve(256, align=64)
        length = program.call("getcwd", SYS_getcwd, path, 256)
        for place in (area, area.part(8192, 4096), area):
            outcome = run_in_husk(pid, place, program)
            assert outcome.read(path)[: outcome.result(length)] == os.getcwd().encode() + b"\0"


def test_a_failing_row_ends_the_program_and_is_named() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("failing")
        ignored = program.call("close nothing", SYS_close, 997, check=False)
        descriptor = program.call("make a memfd", SYS_memfd_create, program.string("x"), 0)
        program.call("close what was never open", SYS_close, 998)
        program.call("close", SYS_close, descriptor)
        with pytest.raises(SyscallFailed) as caught:
            run_in_husk(pid, area, program)
        assert str(caught.value) == (
            f"failing in process {pid}: close what was never open: Bad file descriptor (errno 9, row 2)"
        )
        assert os.readlink(f"/proc/{pid}/fd/3").startswith("/memfd:x")
        again = Program("after the failure")
        result = again.call("close", SYS_close, 3)
        assert run_in_husk(pid, area, again).result(result) == 0
        assert ignored.row == 0


def test_many_alike_calls_take_their_arguments_from_columns() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 1 << 20)
        program = Program("many")
        program.call("open", SYS_memfd_create, program.string("x"), 0)
        numbers = array("Q", range(100, 3100))
        program.call_each("duplicate", SYS_fcntl, 3, F_DUPFD, numbers)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1000, 1000))
        with pytest.raises(SyscallFailed, match=r"many in process .*: duplicate: .*, row 90[01]\)"):
            run_in_husk(pid, area, program)
        assert max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) == 999


def test_unchecked_failures_are_results() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("unchecked")
        ignored = program.call("close nothing", SYS_close, 997, check=False)
        assert run_in_husk(pid, area, program).result(ignored) == -errno.EBADF


def test_stores_write_numbers_results_and_addresses() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("stores")
        cells = program.reserve(32)
        own = program.call("ask", SYS_getpid)
        program.store(cells, -2)
        program.store(cells + 8, own)
        program.store(cells + 16, cells + 24)
        outcome = run_in_husk(pid, area, program)
        memory = outcome.read(cells)
        assert int.from_bytes(memory[0:8], "little", signed=True) == -2
        assert int.from_bytes(memory[8:16], "little") == pid
        address = int.from_bytes(memory[16:24], "little")
        program.store(address, 77)
        run_in_husk(pid, area, program)


def test_a_program_too_large_for_its_area_is_refused() -> None:
    program = Program("large")
    program.reserve(5000)
    with pytest.raises(ProgramTooLarge, match=r"large: \d+ bytes do not fit into 4096"):
        program.encode(0x10000, 4096)
    assert program.size() >= len(program.encode(0x10000, 16384).content)


def test_more_than_six_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="7 arguments"):
        Program("x").call("too many", SYS_getpid, 1, 2, 3, 4, 5, 6, 7)


def test_the_going_home_ending_takes_the_frame_of_the_sigreturn_path() -> None:
    program = Program("home")
    content = program.encode(0x10000, 4096, Ending.GO_HOME).content
    assert content[5 * 64 + 4 : 5 * 64 + 8] == int(lib.LM_ROW_HOME).to_bytes(4, "little")


@pytest.mark.parametrize("disposition", [0, 1])
def test_a_pending_signal_of_the_end_signals_number_stays_pending(disposition: int) -> None:
    """Nothing that the process has is lost by running programs in it, and no handler is reset."""
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        tracee.set_signal_mask(pid, 1 << signal.SIGURG - 1)
        program = Program("ignore traps")
        action = program.data(disposition.to_bytes(8, "little") + bytes(24))
        old = program.reserve(32)
        for number in (signal.SIGTRAP, signal.SIGURG):
            program.call("sigaction", SYS_rt_sigaction, number, action, 0, 8)
        program.call("kill", SYS_kill, pid, signal.SIGURG)
        run_in_husk(pid, area, program)
        os.kill(pid, signal.SIGUSR1)
        look = Program("look")
        old = look.reserve(32)
        look.call("sigaction", SYS_rt_sigaction, signal.SIGTRAP, 0, old, 8)
        assert run_in_husk(pid, area, look).read(old)[:8] == disposition.to_bytes(8, "little")
        pending = tracee.peek_signals(pid, shared=False) + tracee.peek_signals(pid, shared=True)
        numbers = sorted(int.from_bytes(info[:4], "little") for info in pending)
        assert numbers == [signal.SIGUSR1, signal.SIGURG]
        assert tracee.get_signal_mask(pid) == 1 << signal.SIGURG - 1


def test_a_program_that_faults_says_so() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("faulting")
        program.store(8, 1)
        with pytest.raises(OSError, match="Bad address"):
            run_in_husk(pid, area, program)


def test_a_process_that_ends_in_its_program_is_gone() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 4096)
        program = Program("leaving")
        program.call("exit", SYS_exit_group, 3)
        with pytest.raises(ProcessGone):
            run_in_husk(pid, area, program)
