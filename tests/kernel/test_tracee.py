"""Stopping, reading and releasing real threads."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import Program, call_in_husk, make_program_area, run_in_husk
from live_migration.kernel.injection.syscall_numbers import SYS_epoll_wait, SYS_getpid, SYS_mprotect
from live_migration.kernel.tracing import tracee
from tests.kernel.husks import kill_and_reap, stopped_husk, wait_until

pytestmark = pytest.mark.timeout(120)

COUNTER = """
import os, signal, sys, threading, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"u"))
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"c"))
def churn():
    while True:
        thread = threading.Thread(target=time.sleep, args=(0.0005,))
        thread.start()
        thread.join()
for _ in range(int(sys.argv[1])):
    threading.Thread(target=churn, daemon=True).start()
for _ in range(int(sys.argv[2])):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
os.write(1, b"r")
while True:  # soon back in the interpreter, which runs a handler also when another thread got the signal
    time.sleep(0.02)
"""

EPOLL = """
import os, select
poll = select.epoll()
reader, writer = os.pipe()
poll.register(reader)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.write(1, b"r")
events = ctypes.create_string_buffer(12)
found = libc.epoll_wait(poll.fileno(), events, 1, 3000)
os.write(1, b"%d %d" % (found, ctypes.get_errno()))
"""


class Child:
    """A python process with its standard output on a pipe."""

    def __init__(self, code: str, *arguments: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self.process.pid
        assert self.read() == b"r"

    def has_said(self) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def read(self) -> bytes:
        assert self.process.stdout is not None
        return os.read(self.process.stdout.fileno(), 100)


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        kill_and_reap(child.pid)
        assert child.process.stdout is not None
        child.process.stdout.close()
        child.process.returncode = 0


def tracer_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("TracerPid:\t")[2].partition("\n")[0])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_freeze_stops_every_thread_and_thaw_leaves_no_trace(children: list[Child]) -> None:
    children.append(child := Child(COUNTER, 0, 30))
    stops = tracee.freeze(child.pid)
    assert len(stops) == 31
    assert stops[0].tid == child.pid
    assert {stop.kind for stop in stops} == {tracee.StopKind.INTERRUPT}
    assert {state_of(stop.tid) for stop in stops} == {"t"}
    tracee.thaw(stops, detach_too=True)
    assert tracer_of(child.pid) == 0
    os.kill(child.pid, signal.SIGUSR1)
    assert child.read() == b"u"


def test_threads_born_and_dying_are_followed(children: list[Child]) -> None:
    children.append(child := Child(COUNTER, 8, 4))
    for _ in range(20):
        stops = tracee.freeze(child.pid)
        tids = {int(name) for name in os.listdir(f"/proc/{child.pid}/task")}
        assert {stop.tid for stop in stops} == tids
        time.sleep(0.01)
        assert {int(name) for name in os.listdir(f"/proc/{child.pid}/task")} == tids
        tracee.thaw(stops, detach_too=True)
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGUSR1)
    assert child.read() == b"u"


def attended(tids: list[int]) -> int:
    """Let the signals of running tracees through, and count those tracees that have gone."""
    gone = 0
    for tid in tids:
        status = ffi.new("int *")
        while (error := lib.lm_trace_peek(tid, os.WNOHANG, status)) == 0 and os.WIFSTOPPED(status[0]):
            tracee.release(tracee.Stop(tid, status[0]))
        assert error in (0, -errno.EAGAIN, -errno.ECHILD)
        gone += error != -errno.EAGAIN
    return gone


def test_threads_seized_beforehand_are_stopped_and_go_on_being_traced(children: list[Child]) -> None:
    children.append(child := Child(COUNTER, 0, 5))
    tids = sorted(int(name) for name in os.listdir(f"/proc/{child.pid}/task"))
    for tid in tids[:4]:
        tracee.seize(tid)
    wait_until(lambda: state_of(child.pid) == "S")
    stops = tracee.freeze(child.pid, tids[:4])
    assert {stop.tid for stop in stops} == set(tids)
    tracee.thaw(stops)
    assert tracer_of(child.pid) == os.getpid()
    os.kill(child.pid, signal.SIGUSR1)
    # Attended to until the handler has run: right after the kill the program may still seem to sleep.
    wait_until(lambda: attended(tids) == 0 and child.has_said())
    assert child.read() == b"u"
    tracee.thaw(tracee.freeze(child.pid, tids), detach_too=True)
    assert tracer_of(child.pid) == 0


@pytest.mark.parametrize("round_", range(5))
def test_signals_that_come_while_freezing_are_not_lost(children: list[Child], round_: int) -> None:
    children.append(child := Child(COUNTER, 0, 3))
    tracee.seize(child.pid)
    os.kill(child.pid, signal.SIGUSR1)
    stops = tracee.freeze(child.pid, [child.pid])
    assert {stop.kind for stop in stops} == {tracee.StopKind.INTERRUPT}
    tracee.thaw(stops, detach_too=True)
    assert child.read() == b"u"


def test_a_signal_that_a_dead_tracer_had_heard_of_is_not_lost(children: list[Child]) -> None:
    children.append(child := Child(COUNTER, 0, 0))
    reader, writer = os.pipe()
    tracer = os.fork()
    if not tracer:
        tracee.seize(child.pid)
        os.kill(child.pid, signal.SIGUSR1)
        last = tracee.peek(child.pid, 0)
        assert last is not None
        os.write(writer, last.kind.name.encode())
        time.sleep(60)
        os._exit(1)
    os.close(writer)
    with open(reader, "rb", buffering=0) as words:
        assert words.read(20) == b"SIGNAL"
    kill_and_reap(tracer)
    assert child.read() == b"u"


def test_a_stopped_process_stays_stopped(children: list[Child]) -> None:
    # One thread: the interpreter runs handlers in the main thread, and does not wake it when another got the
    # signal.
    children.append(child := Child(COUNTER, 0, 0))
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(child.pid) == "T")
    stops = tracee.freeze(child.pid)
    assert {stop.kind for stop in stops} == {tracee.StopKind.GROUP}
    tracee.thaw(stops)
    time.sleep(0.05)
    assert state_of(child.pid) in "tT"
    os.kill(child.pid, signal.SIGCONT)
    tids = [stop.tid for stop in stops]
    wait_until(lambda: attended(tids) == 0 and state_of(child.pid) == "S")
    assert child.read() == b"c"
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: attended(tids) == 0 and state_of(child.pid) in "tT")
    stops = tracee.freeze(child.pid, tids)
    tracee.thaw(stops, detach_too=True)
    wait_until(lambda: state_of(child.pid) == "T")
    assert tracer_of(child.pid) == 0
    os.kill(child.pid, signal.SIGCONT)
    assert child.read() == b"c"


def test_a_call_that_a_stop_would_end_goes_on(children: list[Child]) -> None:
    children.append(child := Child(EPOLL))
    waiting = f"{SYS_epoll_wait} "
    wait_until(lambda: Path(f"/proc/{child.pid}/syscall").read_text().startswith(waiting))
    stops = tracee.freeze(child.pid)
    registers = tracee.get_registers(child.pid)
    assert registers.syscall_number == SYS_epoll_wait
    assert registers.result == -4
    tracee.thaw(stops, detach_too=True)
    assert child.read() == b"0 0"


def test_a_leader_that_has_ended_is_not_among_the_threads(children: list[Child]) -> None:
    code = """
import ctypes, os, threading, time
def leave_last():
    time.sleep(0.1)
    os.write(1, b"r")
    time.sleep(1000)
threading.Thread(target=leave_last).start()
ctypes.CDLL(None).syscall(60, 0)
"""
    children.append(child := Child(code))
    stops = tracee.freeze(child.pid)
    assert [stop.tid for stop in stops] == [max(int(n) for n in os.listdir(f"/proc/{child.pid}/task"))]
    assert stops[0].tid != child.pid
    tracee.thaw(stops, detach_too=True)


def test_a_process_that_is_not_there_is_gone() -> None:
    with stopped_husk() as pid:
        pass
    with pytest.raises(ProcessGone, match=f"process {pid} is gone"):
        tracee.freeze(pid)
    with pytest.raises(ProcessGone):
        tracee.seize(pid)
    with pytest.raises(ProcessGone):
        tracee.read_memory(pid, 4096, 1)


def test_the_end_of_a_tracee_comes_with_its_status() -> None:
    with stopped_husk() as pid:
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ProcessGone, match="was killed by SIGKILL") as caught:
            tracee.wait(pid)
        assert caught.value.status == signal.SIGKILL


def test_registers_have_names_and_can_be_set() -> None:
    with stopped_husk() as pid:
        registers = tracee.get_registers(pid)
        assert registers.is_64_bit
        changed = registers.replaced(thread_pointer=0x10000, arguments=(1, 2, 3), stack_pointer=0x2000)
        tracee.set_registers(pid, changed)
        again = tracee.get_registers(pid)
        assert again == changed
        assert again.arguments[:3] == (1, 2, 3)
        assert (again.thread_pointer, again.stack_pointer) == (0x10000, 0x2000)
        assert registers.rewound().instruction_pointer == registers.instruction_pointer - 2


def test_vector_state_mask_and_siginfo_come_and_go() -> None:
    with stopped_husk() as pid:
        xstate = bytearray(tracee.get_xstate(pid))
        assert len(xstate) >= 576
        xstate[160:176] = b"sixteen bytes!!!"  # xmm0
        xstate[512] |= 2
        tracee.set_xstate(pid, bytes(xstate))
        assert tracee.get_xstate(pid)[160:176] == b"sixteen bytes!!!"
        tracee.set_signal_mask(pid, 1 << 9)
        assert tracee.get_signal_mask(pid) == 1 << 9
        os.kill(pid, signal.SIGUSR1)
        infos = tracee.peek_signals(pid, shared=True)
        assert [int.from_bytes(info[:4], "little") for info in infos] == [signal.SIGUSR1]
        assert tracee.rseq_configuration(pid).address == 0


def read_forced(pid: int, address: int, length: int) -> bytes:
    """Memory through /proc/PID/mem, which protections do not hold back."""
    out = bytearray(length)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        assert lib.lm_memory_read_forced(memory.fileno(), address, ffi.from_buffer(out), length) == 0
    return bytes(out)


def write_forced(pid: int, address: int, content: bytes) -> None:
    """The same, written."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        assert lib.lm_memory_write_forced(memory.fileno(), address, content, len(content)) == 0


def test_memory_is_read_and_written_also_where_it_is_protected() -> None:
    with stopped_husk() as pid:
        area = make_program_area(pid, 8192)
        tracee.write_memory(pid, area.address + 4000, b"across the pages" * 20)
        assert tracee.read_memory(pid, area.address + 4000, 320) == b"across the pages" * 20
        assert call_in_husk(pid, SYS_mprotect, area.address + 4096, 4096, 0) == 0
        with pytest.raises(OSError, match="Bad address"):
            tracee.read_memory(pid, area.address + 4000, 320)
        assert read_forced(pid, area.address + 4000, 320) == b"across the pages" * 20
        write_forced(pid, area.address + 4096, b"forced")
        assert read_forced(pid, area.address + 4096, 6) == b"forced"
        program = Program("still there")
        result = program.call("ask", SYS_getpid)
        assert run_in_husk(pid, area, program).result(result) == pid


def test_all_threads_of_a_stopped_process_stay_stopped(children: list[Child]) -> None:
    children.append(child := Child(COUNTER, 0, 5))
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: state_of(child.pid) == "T")
    stops = tracee.freeze(child.pid)
    assert {stop.kind for stop in stops} == {tracee.StopKind.GROUP}
    tracee.thaw(stops, detach_too=True)
    wait_until(lambda: {state_of(stop.tid) for stop in stops} == {"T"})
