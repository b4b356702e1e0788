"""Parts of a process's description: credentials, timers, limits, clocks, and what keeps a process from being moved."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from live_migration._lm import ffi
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process import family, task, task_restore
from live_migration.process.attributes import clocks, credentials, limits, prctl, signals, timers
from live_migration.process.attributes.clocks import Clocks, Offsets
from live_migration.process.scope import HostScan, scope_of
from tests.process import task_helpers as helpers

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def held_by(pid: int) -> credentials.Credentials:
    return credentials.snapshot_credentials(ProcessSnapshot(pid).status)


@ROOT_ONLY
@pytest.mark.parametrize(
    "change",
    [
        {"user_ids": (1000, 1001, 1002, 1003), "group_ids": (5, 6, 7, 8), "groups": (3, 9)},
        {"groups": ()},
        {"bounding": 0x3F, "inheritable": 0x24},
        {
            "user_ids": (33, 33, 33, 33),
            "permitted": 0x2400,
            "effective": 0x400,
            "inheritable": 0x2400,
            "ambient": 0x400,
        },
        {"permitted": 0, "effective": 0, "no_new_privileges": True},
        {"user_ids": (0, 1000, 0, 1000), "effective": 0},
    ],
    ids=["ids", "groups", "bounding", "ambient", "nothing", "switched"],
)
def test_credentials_are_restored(change: dict[str, object]) -> None:
    with helpers.husk() as pid:
        present = task_restore.present_credentials()
        wanted = msgspec.structs.replace(present, **change)
        if "user_ids" in change and "permitted" not in change and "effective" not in change:
            wanted = msgspec.structs.replace(wanted, permitted=0, effective=0)
        with helpers.area_in(pid) as area:
            program = Program("credentials")
            credentials.restore_credentials(program, wanted, present)
            helpers.run(pid, area, program)
        assert held_by(pid) == wanted


def test_no_rows_for_equal_credentials() -> None:
    program = Program("credentials")
    present = task_restore.present_credentials()
    credentials.restore_credentials(program, present, present)
    assert len(program) == 0
    assert credentials.preflight_credentials(present, present) == []


def test_capabilities_that_cannot_be_given_are_named() -> None:
    present = msgspec.structs.replace(task_restore.present_credentials(), permitted=0, effective=0)
    wanted = msgspec.structs.replace(present, permitted=1 << 21, user_ids=(1, 1, 1, 1))
    texts = [str(blocker) for blocker in credentials.preflight_credentials(wanted, present)]
    assert texts == [
        "capabilities: the process has CAP_SYS_ADMIN, and lm-restore does not;"
        " run lm-restore with them, or drop them from the process",
        "credentials: to become user 1, group "
        f"{present.group_ids[0]} lm-restore needs CAP_SETUID; run lm-restore as root or as user 1",
    ]


@pytest.mark.parametrize("restore_ids", [True, False])
def test_timers_get_their_ids(restore_ids: bool) -> None:
    if restore_ids and not timers.ids_can_be_chosen():
        pytest.skip("this kernel has no PR_TIMER_CREATE_RESTORE_IDS")
    wanted = tuple(
        timers.PosixTimer(identifier=number, clock=clock, signal=10, value=number, notify=notify, thread=0)
        for number, clock, notify in ((1, 1, 0), (4, 0, 1), (11, -6, 0))
    )
    with helpers.husk() as pid, helpers.area_in(pid) as area:
        program = Program("timers")
        timers.create_timers(program, wanted, restore_ids)
        helpers.run(pid, area, program)
        found = timers.snapshot_timers(ProcessSnapshot(pid))
    assert [(one.identifier, one.clock, one.notify) for one in found] == [(1, 1, 0), (4, 0, 1), (11, -6, 0)]


def test_an_expired_timer_is_not_told_twice() -> None:
    told = timers.Timers(
        interval_timers=(timers.IntervalTimer(remaining=500), timers.IntervalTimer(), timers.IntervalTimer()),
        posix_timers=(
            timers.PosixTimer(identifier=3, clock=1, signal=10, value=0, notify=0, thread=0, remaining=900),
            timers.PosixTimer(identifier=4, clock=1, signal=10, value=0, notify=0, thread=0, remaining=2000),
        ),
    )
    assert timers.expired_by(told, 1000) == (True, frozenset({3}))

    def siginfo(number: int, code: int, timer: int = 0) -> bytes:
        information = ffi.new("lm_signal_information *")
        information.si_signo, information.si_code = number, code
        if code == -2:
            information.si_timerid = timer
        return bytes(ffi.buffer(information))

    alarm, third, fourth, user = siginfo(14, 128), siginfo(10, -2, 3), siginfo(10, -2, 4), siginfo(14, 0)
    assert signals.without_expired((alarm, third, fourth, user), True, frozenset({3})) == (fourth, user)
    assert signals.late_signals([user, alarm, third, user], [user]) == [user]


@pytest.mark.parametrize(
    ("read_at", "elapsed", "passed"),
    [
        pytest.param(1_000, 500, 500, id="at once"),
        pytest.param(1_200, 500, 300, id="later, on a busy machine"),
        pytest.param(1_900, 500, 0, id="longer than has passed"),
        pytest.param(0, 500, 500, id="it was not told when"),
    ],
)
def test_what_has_passed_since_timers_were_read(read_at: int, elapsed: int, passed: int) -> None:
    assert timers.since_read(timers.Timers(read_at=read_at), described=1_000, elapsed=elapsed) == passed


def test_limits_as_far_as_they_go() -> None:
    unlimited = (limits.INFINITY, limits.INFINITY)
    rest = (unlimited,) * (len(limits.LIMITS) - 1)
    wanted = ((100, 200), *rest)
    present = ((10, 150), *rest)
    given = limits.reachable(wanted, present, may_raise=False)
    assert given == ((100, 150), *rest)
    assert limits.limit_warnings(wanted, given) == [
        "RLIMIT_CPU: 100 (hard 150) instead of 100 (hard 200); CAP_SYS_RESOURCE would raise it"
    ]
    assert limits.reachable(wanted, present, may_raise=True) == wanted
    own = limits.snapshot_limits(ProcessSnapshot(os.getpid()))
    assert own.limits == limits.present_limits()


def test_clocks_never_go_back() -> None:
    asked = Clocks(boot="here", monotonic=5_000, boottime=6_000)
    source = Clocks(boot="there", monotonic=1_000_000, boottime=2_000_000)
    found = clocks.offsets_for(source, asked, Offsets(monotonic=0, boottime=0))
    assert found == Offsets(monotonic=995_000, boottime=1_994_000)
    assert clocks.offsets_for(msgspec.structs.replace(asked), asked, Offsets(monotonic=0, boottime=0)) is None
    older = Clocks(boot="there", monotonic=10, boottime=10)
    assert clocks.offsets_for(older, asked, Offsets(monotonic=0, boottime=0)) == Offsets(
        monotonic=-4_990, boottime=-5_990
    )
    assert Offsets(monotonic=-1, boottime=1_500_000_000).text() == "monotonic -1 999999999\nboottime 1 500000000\n"
    own = clocks.snapshot_clocks()
    none = Offsets(monotonic=0, boottime=0)
    assert clocks.elapsed_since(own, None, none) >= 0
    ahead = msgspec.structs.replace(own, monotonic=time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 50_000_000)
    assert clocks.elapsed_since(ahead, None, none) == 0
    assert time.clock_gettime_ns(time.CLOCK_MONOTONIC) >= ahead.monotonic, "it did not wait for the source's time"


@ROOT_ONLY
def test_a_time_namespace_is_seen_through() -> None:
    script = "import time; print(time.clock_gettime_ns(1), flush=True); time.sleep(100)"
    child = subprocess.Popen(
        ["unshare", "--time", "--monotonic", "5000", "--boottime", "9000", "--fork", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        told = int(child.stdout.readline())
        (inner,) = children(child.pid)
        seen = clocks.snapshot_clocks(ProcessSnapshot(inner))
        assert seen.in_namespace
        assert told <= seen.monotonic <= told + 60_000_000_000
        assert seen.monotonic - clocks.snapshot_clocks().monotonic > 4_999_000_000_000
        os.kill(inner, signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()


def test_a_program_is_looked_at_when_it_is_laid_out(tmp_path: Path) -> None:
    """In the middle of execve(2) /proc/PID/stat shows zeros, which mean no lack of permission."""
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o755)
    process = subprocess.Popen([script])
    try:
        plans = [prctl.snapshot_memory_plan(ProcessSnapshot(process.pid)) for _ in range(2000)]
    finally:
        process.kill()
        process.wait()
    assert all(plan.start_code and plan.start_break for plan in plans)


def children(pid: int) -> list[int]:
    return HostScan(scope_of(pid)).children(pid)


def blockers_of(pid: int) -> list[str]:
    found = family.process_blockers(ProcessSnapshot(pid), HostScan(scope_of(pid)))
    return [str(blocker) for blocker in found]


def test_who_cannot_be_moved() -> None:
    (text,) = blockers_of(os.getppid())
    assert text.startswith(f"process {os.getppid()}: lm-serve was started by it, or by a process of it; start lm-serve")
    assert blockers_of(os.getpid()) == [f"process {os.getpid()}: it is lm-serve itself; choose another process"]
    assert blockers_of(2) in ([], ["process 2: it is a kernel thread; choose a process of a program"])
    with helpers.python_child("print('ready', flush=True); input()") as child:
        assert blockers_of(child.pid) == []
        scan = HostScan(scope_of(child.pid))
        assert family.sharing_blockers(ProcessSnapshot(child.pid), scan) == []
        assert task.task_blockers(task.snapshot_task(ProcessSnapshot(child.pid)), scan) == []
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        while ProcessSnapshot(child.pid).stat[2] != "Z":
            time.sleep(0.01)
        (text,) = blockers_of(child.pid)
        assert text.startswith(f"process {child.pid}: it has ended")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import subprocess; c = subprocess.Popen(['sleep', '100'])", "it is a child of the process and would stay"),
        (
            "import os; c = os.fork() or os._exit(0); os.waitid(os.P_PID, c, os.WEXITED | os.WNOWAIT)",
            "a child that has ended is not yet waited for",
        ),
    ],
    ids=["child", "zombie"],
)
def test_blockers_of_a_process(source: str, part: str) -> None:
    with helpers.python_child(f"{source}\nprint('ready', flush=True)\ninput()") as child:
        texts = blockers_of(child.pid)
        assert len(texts) == 1
        assert part in texts[0]
        for one in children(child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def test_a_shared_table_is_an_blocker() -> None:
    source = (
        "import ctypes, os, time\n"
        "l = ctypes.CDLL(None)\n"
        "pid = l.syscall(56, 0x400 | 17, 0, 0, 0, 0)\n"
        "if pid == 0: time.sleep(100); os._exit(0)\n"
        "print('ready', flush=True); input()"
    )
    with helpers.python_child(source) as child:
        (other,) = children(child.pid)
        found = family.sharing_blockers(ProcessSnapshot(child.pid), HostScan(scope_of(child.pid)))
        (text,) = [str(blocker) for blocker in found]
        assert f"process {other} (python" in text
        assert "it shares its descriptors with the process" in text
        os.kill(other, signal.SIGKILL)
