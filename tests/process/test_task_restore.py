"""A process's attributes and threads, read from one process and restored in a husk: every fact is compared."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from live_migration.kernel.arch.arch import Registers
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.tracing import tracee
from live_migration.process import task, task_restore
from live_migration.process.attributes import limits, signals, timers
from live_migration.process.scope import HostScan, scope_of
from live_migration.process.task import TaskDescription
from live_migration.process.threads import restore as thread_restore
from live_migration.process.threads import threads
from tests.process import task_helpers as helpers

RICH_PROGRAM = """
import ctypes, os, resource, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def prctl(*a): assert libc.prctl(*a) == 0, a
os.chdir("/usr/lib"); os.umask(0o27)
signal.signal(signal.SIGUSR1, lambda *a: None)
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
signal.siginterrupt(signal.SIGUSR1, False)
prctl(15, b"rich one", 0, 0, 0)
prctl(29, 123456, 0, 0, 0)
prctl(36, 1, 0, 0, 0)
prctl(1, 10, 0, 0, 0)
prctl(41, 1, 0, 0, 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (333, 444))
signal.setitimer(signal.ITIMER_REAL, 1000, 5)
signal.setitimer(signal.ITIMER_PROF, 2000, 0)
os.setpriority(os.PRIO_PROCESS, 0, 3)
class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int)]
    _fields_.append(("rest", ctypes.c_char * 48))
def timer(clock, signo, value, seconds):
    event, made = Event(value, signo, 0), ctypes.c_void_p()
    assert libc.timer_create(clock, ctypes.byref(event), ctypes.byref(made)) == 0
    assert libc.timer_settime(made, 0, (ctypes.c_long * 4)(0, 500, seconds, 0), None) == 0
    return made
first = timer(1, signal.SIGUSR1, 0x1234, 700); second = timer(0, signal.SIGUSR2, 77, 800); third = timer(1, 40, 5, 900)
assert libc.timer_delete(second) == 0
stack = ctypes.create_string_buffer(65536)
class Stack(ctypes.Structure): _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
assert libc.sigaltstack(ctypes.byref(Stack(ctypes.addressof(stack), 0, 65536)), None) == 0
def other():
    libc.prctl(15, b"other one", 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2, 40, 41])
    started.set()
    time.sleep(1000)
started = threading.Event()
helper = threading.Thread(target=other, daemon=True); helper.start(); started.wait()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2, 40, 41])
signal.pthread_kill(helper.ident, 41)
class Value(ctypes.Union): _fields_ = [("word", ctypes.c_void_p)]
assert libc.sigqueue(os.getpid(), 40, Value(99)) == 0
os.kill(os.getpid(), signal.SIGUSR2)
print("ready", flush=True)
time.sleep(1000)
"""


def describe(held: helpers.Held, live: task.LiveTask) -> tuple[TaskDescription, dict[int, bytes]]:
    """The whole way of a description, as the source goes it."""
    stopped = task.snapshot_stopped_task(ProcessSnapshot(held.pid), held.stops, live)
    with helpers.area_in(held.pid) as area:
        program = Program("query the process")
        question = task.query_process(program, timers.snapshot_timers(ProcessSnapshot(held.pid)))
        answers = task.reply_process(helpers.run(held.pid, area, program), question)
        asked = {}
        for stop in held.stops:
            program = Program("query a thread")
            place = threads.query_thread(program)
            asked[stop.tid] = threads.reply_thread(helpers.run(stop.tid, area, program), place)
    pending = task.snapshot_pending_signals(stopped)
    return task.complete_task(stopped, pending, answers, asked), asked


def comparable(description: TaskDescription) -> dict[str, Any]:
    """A description as plain data, without what differs between two processes by its nature."""
    data: dict[str, Any] = msgspec.to_builtins(description)
    for key in ("clocks", "memory_plan", "pid", "host_pid"):
        del data[key]
    del data["timers"]["read_at"]
    for thread in data["threads"]:
        for key in (
            "tid",
            "host_tid",
            "registers",
            "xstate",
            "xstate_size",
            "signal_mask",
            "call",
            "rseq",
            "clear_child_tid",
        ):
            del thread[key]
    for timer in (*data["timers"]["interval_timers"], *data["timers"]["posix_timers"]):
        timer["remaining"] = round(timer["remaining"] / 1e9)
    return data


@pytest.fixture
def described() -> tuple[TaskDescription, dict[int, bytes]]:
    with helpers.python_child(RICH_PROGRAM) as child:
        live = task.snapshot_task(ProcessSnapshot(child.pid))
        with helpers.frozen(child.pid) as held:
            found = describe(held, live)
            assert not task.frozen_blockers(*found, ProcessSnapshot(child.pid), HostScan(scope_of(child.pid)))
        os.kill(child.pid, 0)
    return found


def test_a_description_tells_what_the_process_did(described: tuple[TaskDescription, dict[int, bytes]]) -> None:
    description, _ = described
    leader, other = description.threads
    assert leader.name == b"rich one"
    assert other.name == b"other one"
    assert leader.scheduling.timer_slack == 123456
    assert leader.scheduling.nice == 3
    assert leader.parent_death_signal == signal.SIGUSR1
    assert leader.alternate_stack.size == 65536
    assert leader.clear_child_tid != 0
    assert leader.robust_list != 0
    assert leader.rseq is not None
    assert description.attributes.subreaper == 1
    assert description.attributes.huge_pages_disabled == 1
    assert description.limits.umask == 0o27
    assert description.limits.working_directory == b"/usr/lib"
    assert description.limits.limits[resource.RLIMIT_NOFILE] == (333, 444)
    assert [timer.identifier for timer in description.timers.posix_timers] == [0, 2]
    assert description.timers.posix_timers[0].value == 0x1234
    assert 690e9 < description.timers.posix_timers[0].remaining <= 700e9
    assert description.timers.interval_timers[0].interval == 5e9
    numbers = {action.number for action in description.signals.actions}
    assert {signal.SIGUSR1, signal.SIGPIPE} <= numbers
    assert sorted(signals.signal_number(item) for item in description.signals.pending) == [12, 40]
    assert [signals.signal_number(item) for item in other.pending] == [41]
    assert leader.call is not None or leader.registers
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(description), type=TaskDescription) == description


def test_a_husk_becomes_the_process(described: tuple[TaskDescription, dict[int, bytes]]) -> None:
    source, _ = described
    with helpers.husk() as pid:
        new_thread = _free_id()
        own = msgspec.structs.replace(source, pid=pid, threads=_with_ids(source, pid, new_thread))
        present = task_restore.present_credentials()
        with helpers.area_in(pid) as area:
            program = Program("make the threads")
            thread_restore.create_threads(program, [new_thread])
            helpers.run(pid, area, program)
            tracee.wait(new_thread)
            program = Program("restore the process")
            task_restore.restore_process(program, own, lambda path: path, timers.ids_can_be_chosen())
            helpers.run(pid, area, program)
            for thread in own.threads:
                # The husk has no memory of the source: an rseq area would be touched when it resumes.
                plain = msgspec.structs.replace(thread, rseq=None)
                program = Program(f"restore thread {thread.tid}")
                thread_restore.restore_thread(program, plain, pid, present)
                helpers.run(thread.tid, area, program)
            program = Program("finish the process")
            has = limits.present_limits(pid)
            wanted = limits.reachable(own.limits.limits, has, may_raise=False)
            task_restore.limit_process(program, own, wanted, has)
            task_restore.finish_process(program, own, elapsed=0)
            helpers.run(pid, area, program)
        for thread in own.threads:
            tracee.set_xstate(thread.tid, threads.whole_xstate(thread))
            tracee.set_signal_mask(thread.tid, thread.signal_mask)
            tracee.set_registers(thread.tid, Registers(thread.registers))
            assert tracee.get_registers(thread.tid).raw == thread.registers
            assert tracee.get_xstate(thread.tid) == threads.whole_xstate(thread)
            assert tracee.get_signal_mask(thread.tid) == thread.signal_mask
            tracee.set_signal_mask(thread.tid, (1 << 64) - 1)
        assert limits.restore_outside(pid, own.limits) == []
        live = task.snapshot_task(ProcessSnapshot(pid))
        stops = [tracee.Stop(pid, 0), tracee.Stop(new_thread, 0)]
        parked = tracee.get_registers(pid).replaced(syscall_number=-1)
        husk_code = int(Path(f"/proc/{pid}/maps").read_text().split("-")[0], 16)
        for stop in stops:
            tracee.set_registers(stop.tid, parked.replaced(instruction_pointer=husk_code + 0x80))
        again, _ = describe(helpers.Held(pid, stops), live)
    assert comparable(again) == comparable(own)


def _with_ids(description: TaskDescription, *ids: int) -> tuple[threads.Thread, ...]:
    return tuple(
        msgspec.structs.replace(thread, tid=tid, host_tid=tid)
        for thread, tid in zip(description.threads, ids, strict=True)
    )


def _free_id() -> int:
    """An id that no task has now, far from those handed out next."""
    candidate = 30_000
    while os.path.exists(f"/proc/{candidate}"):
        candidate -= 1
    return candidate
