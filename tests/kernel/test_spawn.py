"""Starting static programs: with an id, in namespaces, holding nothing, and bound to their tracer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import Program, call_in_husk, make_program_area, run_in_husk
from live_migration.kernel.injection.syscall_numbers import SYS_clock_gettime, SYS_getpid, SYS_personality
from live_migration.kernel.pidfd import open_pidfd
from live_migration.kernel.spawn import ADDR_NO_RANDOMIZE, SpawnFailed, Start, reap, start, start_traced
from live_migration.kernel.tracing import tracee
from tests.kernel.husks import HUSK, wait_until

pytestmark = pytest.mark.timeout(120)

Starter = Callable[[Start], int]

DYING_TRACER = """
import os, signal, sys
from pathlib import Path
from live_migration.kernel.spawn import Start, start_traced
print(start_traced(Start(Path(sys.argv[1]))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def traced() -> Iterator[Starter]:
    """start_traced, whose children are killed and reaped at the end."""
    pids: list[int] = []

    def begin(how: Start) -> int:
        pids.append(start_traced(how))
        return pids[-1]

    yield begin
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        reap(pid)


def free_id() -> int:
    """An id that nobody has: one below the highest ones."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    return next(number for number in range(highest - 100, 1, -1) if not os.path.exists(f"/proc/{number}"))


def status_lines(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_it_runs_the_program_and_takes_calls_at_once(traced: Starter) -> None:
    pid = traced(Start(HUSK))
    assert os.readlink(f"/proc/{pid}/exe") == str(HUSK)
    assert call_in_husk(pid, SYS_getpid) == pid
    assert os.getppid() != pid
    assert status_lines(pid)["PPid"] == str(os.getpid())
    assert status_lines(pid)["TracerPid"] == str(os.getpid())


def test_it_holds_the_one_descriptor_and_nothing_else_of_ours(traced: Starter) -> None:
    reader, writer = os.pipe()
    inheritable = fcntl.fcntl(reader, fcntl.F_DUPFD, 40)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        pid = traced(Start(HUSK, arguments=("one",), descriptor=(writer, 7)))
    finally:
        signal.signal(signal.SIGUSR2, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(inheritable)
        os.close(reader)
    try:
        assert os.listdir(f"/proc/{pid}/fd") == ["7"]
        assert os.readlink(f"/proc/{pid}/fd/7") == os.readlink(f"/proc/self/fd/{writer}")
    finally:
        os.close(writer)
    status = status_lines(pid)
    assert {status[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == os.fsencode(HUSK) + b"\0one\0"


def test_our_own_signal_mask_and_namespaces_stay(traced: Starter) -> None:
    names = [f"/proc/self/ns/{name}" for name in ("pid_for_children", "time", "time_for_children", "mnt")]
    before = [os.readlink(name) for name in names]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        traced(Start(HUSK, time_offsets="monotonic 5 0\n"))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert [os.readlink(name) for name in names] == before


def test_it_gets_the_id(traced: Starter) -> None:
    number = free_id()
    assert traced(Start(HUSK, identifier=number)) == number


def test_a_taken_id_is_told_and_nothing_is_left() -> None:
    with pytest.raises(SpawnFailed) as failure:
        start_traced(Start(HUSK, identifier=os.getpid()))
    assert failure.value.errno == errno.EEXIST
    assert failure.value.step == lib.LM_SPAWN_CLONE
    assert str(HUSK) in str(failure.value)


def test_a_program_that_cannot_be_executed_is_told_and_reaped(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("no program")
    program.chmod(0o755)
    for begin in (start, start_traced):
        with pytest.raises(SpawnFailed) as failure:
            begin(Start(program))
        assert failure.value.step == lib.LM_SPAWN_EXEC
        assert failure.value.errno == errno.ENOEXEC
    with pytest.raises(FileNotFoundError):
        start(Start(tmp_path / "missing"))


def test_personality_and_stack_limit_decide_the_layout(traced: Starter) -> None:
    pid = traced(Start(HUSK, personality=ADDR_NO_RANDOMIZE, stack_limit=1 << 30))
    assert call_in_husk(pid, SYS_personality, 0xFFFFFFFF) == ADDR_NO_RANDOMIZE
    soft = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "Max stack" in line)
    assert soft.split()[3] == str(1 << 30)
    area = make_program_area(pid, 4096)
    lowest_stack = next(
        int(line.split("-")[0], 16) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "[stack]" in line
    )
    assert lowest_stack - area.address > (1 << 30) - (1 << 20)
    assert call_in_husk(traced(Start(HUSK)), SYS_personality, 0xFFFFFFFF) == 0


def test_its_clocks_are_those_of_the_time_namespace(traced: Starter) -> None:
    pid = traced(Start(HUSK, time_offsets="monotonic 1000000 0\nboottime 2000000 500\n"))
    plain = traced(Start(HUSK))

    def seconds(clock: int, of: int) -> int:
        program = Program("asking the time")
        place = program.reserve(16)
        program.call("clock_gettime", SYS_clock_gettime, clock, place)
        outcome = run_in_husk(of, make_program_area(of, 8192), program)
        return int.from_bytes(outcome.read(place)[:8], "little")

    assert 999_990 < seconds(1, pid) - seconds(1, plain) < 1_000_060
    assert 1_999_990 < seconds(7, pid) - seconds(7, plain) < 2_000_060


def test_offsets_that_the_kernel_refuses_are_told() -> None:
    with pytest.raises(SpawnFailed) as failure:
        start_traced(Start(HUSK, time_offsets="monotonic -9000000000 0\n"))
    assert failure.value.step == lib.LM_SPAWN_TIME_OFFSETS
    assert failure.value.errno == errno.ERANGE


def test_joining_the_namespaces_of_a_process_that_is_gone_is_told() -> None:
    child = subprocess.Popen(["sleep", "100"])
    joined = open_pidfd(child.pid)
    child.kill()
    child.wait()
    try:
        with pytest.raises(SpawnFailed) as failure:
            start_traced(Start(HUSK, joined=joined))
    finally:
        os.close(joined)
    assert failure.value.step == lib.LM_SPAWN_JOIN
    assert failure.value.errno == errno.ESRCH


def test_a_killed_tracer_takes_it_along() -> None:
    dying = subprocess.run(
        [sys.executable, "-c", DYING_TRACER, str(HUSK)],
        capture_output=True,
        text=True,
        cwd=HUSK.parent.parent.parent,
        check=False,
    )
    assert dying.returncode == -signal.SIGKILL, dying.stderr
    pid = int(dying.stdout)

    def gone() -> bool:
        try:
            return os.readlink(f"/proc/{pid}/exe") != str(HUSK)
        except OSError:
            return True

    wait_until(gone)


def test_killed_from_outside_it_is_gone(traced: Starter) -> None:
    pid = start_traced(Start(HUSK))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProcessGone):
        tracee.wait(pid)


def test_without_a_tracer_it_runs() -> None:
    pid = start(Start(HUSK))
    try:
        wait_until(lambda: status_lines(pid)["State"].startswith("S"))
        assert status_lines(pid)["TracerPid"] == "0"
    finally:
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(reap(pid)) == signal.SIGKILL
