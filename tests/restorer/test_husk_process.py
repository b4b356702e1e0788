"""The husk as a process: ids kept or a namespace of its own, and every end that the two can come to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from live_migration.kernel.injection.program import Program, call_in_husk, make_program_area, run_in_husk
from live_migration.kernel.injection.syscall_numbers import (
    SYS_clock_gettime,
    SYS_exit_group,
    SYS_getpid,
    SYS_pidfd_getfd,
)
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.spawn import reap
from live_migration.kernel.tracing import tracee
from live_migration.process.attributes.clocks import Offsets
from live_migration.process.task import TaskDescription, snapshot_task
from live_migration.process.threads import restore as thread_restore
from live_migration.process.threads.threads import Thread
from live_migration.restorer.husk_process import HuskProcess, end_husk, husk_ended, start_husk, taken_ids
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from tests.kernel.husks import wait_until
from tests.support.started import end_warm

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
TEXT = 0x400000  # where a static program is
Starter = Callable[..., HuskProcess]

# Starts a husk in a namespace, prints its id and its process 1's, and goes the way that it is told.
MAKER = """
import os, signal, sys, time
from live_migration.kernel.tracing import tracee
from live_migration.restorer.husk_process import start_husk
from tests.restorer.test_husk_process import described
husk = start_husk(described(500), "namespace", None)
print(husk.pid, husk.init, flush=True)
if sys.argv[1] == "detach":
    tracee.set_options(husk.pid, 0)
    tracee.detach(husk.pid)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def described(*ids: int) -> TaskDescription:
    """A description with these thread ids, the leader's first; the rest as this process has it."""
    own = snapshot_task(ProcessSnapshot(os.getpid())).description
    first = own.threads[0]
    threads: tuple[Thread, ...] = tuple(msgspec.structs.replace(first, tid=number) for number in ids)
    return msgspec.structs.replace(own, pid=ids[0], threads=threads)


def free_ids(count: int) -> list[int]:
    """Ids that nobody has. By chance: other tests beside this one look for such ids too."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text())
    chosen = random.sample(range(highest // 4 * 3, highest), count + 100)
    return [n for n in chosen if not os.path.exists(f"/proc/{n}")][:count]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which finds the house and this file."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def alive(pid: int) -> bool:
    """Whether a process runs, or is stopped: not gone and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def husks() -> Iterator[Starter]:
    """start_husk, whose husks are ended."""
    started: list[HuskProcess] = []

    def begin(task: TaskDescription, mode: str, offsets: Offsets | None = None) -> HuskProcess:
        started.append(start_husk(task, mode, offsets))
        return started[-1]

    yield begin
    for husk in started:
        end_husk(husk)
        os.close(husk.pidfd)


def let_run(husk: HuskProcess) -> None:
    tracee.set_options(husk.pid, 0)
    tracee.detach(husk.pid)


def let_exit(husk: HuskProcess, status: int) -> None:
    """Let the husk end by its own exit_group, untraced."""
    text = tracee.read_memory(husk.pid, TEXT, 4096)
    registers = tracee.get_registers(husk.pid)
    instruction = TEXT + text.index(b"\x0f\x05")
    tracee.set_registers(husk.pid, registers.at_call(instruction, SYS_exit_group, status))
    let_run(husk)


def test_it_keeps_its_id(husks: Starter) -> None:
    (wanted,) = free_ids(1)
    husk = husks(described(wanted), "keep")
    assert (husk.pid, husk.init, husk.namespace) == (wanted, 0, False)
    assert os.listdir(f"/proc/{husk.pid}/fd") == [str(husk.pidfd_number)]


@pytest.mark.parametrize("mode", ["keep", "namespace"])
def test_its_descriptor_reaches_ours(husks: Starter, mode: str) -> None:
    husk = husks(described(*free_ids(1)), mode)
    reader, writer = os.pipe()
    number = call_in_husk(husk.pid, SYS_pidfd_getfd, husk.pidfd_number, writer, 0)
    assert os.readlink(f"/proc/{husk.pid}/fd/{number}") == os.readlink(f"/proc/self/fd/{reader}")
    os.close(reader)
    os.close(writer)


def test_auto_keeps_what_is_free_and_else_makes_a_namespace(husks: Starter) -> None:
    first, second = free_ids(2)
    assert not husks(described(first, second), "auto").namespace
    taken = described(second, os.getpid())
    assert taken_ids(taken) == [os.getpid()]
    husk = husks(taken, "auto")
    assert husk.namespace
    assert call_in_husk(husk.pid, SYS_getpid) == second


def test_an_id_that_only_a_group_still_has_is_taken(husks: Starter) -> None:
    """The group's leader is gone, but its number is not free."""
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, process_group=0, text=True)
    assert child.stdout is not None
    sleeper = int(child.stdout.readline())
    child.stdout.close()
    child.wait()
    try:
        assert not os.path.exists(f"/proc/{child.pid}")
        assert taken_ids(described(child.pid)) == [child.pid]
        assert husks(described(child.pid), "auto").namespace
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_a_taken_id_is_an_error_with_its_remedy() -> None:
    with pytest.raises(LocalError) as failure:
        start_husk(described(os.getpid()), "keep", None)
    assert str(failure.value) == (
        f"starting the new process: id {os.getpid()}: is taken on this host; "
        "use --pid namespace, or end the process that has it"
    )


@pytest.mark.parametrize("mode", ["auto", "keep", "namespace"])
def test_a_process_1_is_refused(mode: str) -> None:
    with pytest.raises(LocalError, match="process 1 of its PID namespace") as failure:
        start_husk(described(1), mode, None)
    assert failure.value.code is ExitCode.REFUSED


def test_an_id_too_high_is_an_error_with_its_remedy() -> None:
    with pytest.raises(LocalError, match=r"kernel.pid_max=\d+"):
        start_husk(described((1 << 22) + 5), "namespace", None)


def test_without_the_capability_it_says_which() -> None:
    code = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "[libc.prctl(24, n) for n in (21, 40)]\n"  # PR_CAPBSET_DROP of CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE
        "import os; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
    )
    ask = (
        "import sys\n"
        "from live_migration.restorer.husk_process import start_husk\n"
        "from tests.restorer.test_husk_process import described, free_ids\n"
        "start_husk(described(*free_ids(1)), sys.argv[1], None)\n"
    )
    for mode in ("keep", "auto"):
        done = run_python(code, ask, mode)
        assert "run lm-restore as root, or give it CAP_SYS_ADMIN" in done.stderr, done.stderr


def test_a_namespace_has_its_id_and_its_proc(husks: Starter) -> None:
    husk = husks(described(777), "namespace")
    assert husk.namespace
    assert call_in_husk(husk.pid, SYS_getpid) == 777
    inside = Path(f"/proc/{husk.pid}/root/proc")
    assert sorted(name for name in os.listdir(inside) if name.isdigit()) == ["1", "777"]
    assert os.readlink(f"/proc/{husk.pid}/ns/mnt") == os.readlink(f"/proc/{husk.init}/ns/mnt")
    assert os.readlink(f"/proc/{husk.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert os.listdir(f"/proc/{husk.pid}/fd") == [str(husk.pidfd_number)]
    with pytest.raises(OSError, match="No such file"):
        os.stat(f"/proc/{husk.pid}/task/777")


@pytest.mark.parametrize("mode", ["keep", "namespace"])
def test_its_clock_goes_on_from_the_offsets(husks: Starter, mode: str) -> None:
    husk = husks(described(*free_ids(1)), mode, Offsets(monotonic=3_000_000_000_000_000, boottime=0))
    program = Program("asking the time")
    place = program.reserve(16)
    program.call("clock_gettime", SYS_clock_gettime, time.CLOCK_MONOTONIC, place)
    outcome = run_in_husk(husk.pid, make_program_area(husk.pid, 8192), program)
    seconds = int.from_bytes(outcome.read(place)[:8], "little") - time.clock_gettime(time.CLOCK_MONOTONIC)
    assert 2_999_900 < seconds < 3_000_100


@pytest.mark.parametrize("mode", ["keep", "namespace"])
def test_ending_reaps_all_threads_and_the_namespace(mode: str) -> None:
    end_warm()
    leader, *others = free_ids(5)
    husk = start_husk(described(leader, *others), mode, None)
    other = subprocess.Popen(["true"])
    program = Program("making threads")
    thread_restore.create_threads(program, others)
    run_in_husk(husk.pid, make_program_area(husk.pid, 1 << 16), program)
    assert len(os.listdir(f"/proc/{husk.pid}/task")) == 5
    end_husk(husk)
    end_husk(husk)
    assert not os.path.exists(f"/proc/{husk.pid}")
    assert other.wait() == 0  # nobody else's child was reaped
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    os.close(husk.pidfd)


@pytest.mark.parametrize("mode", ["keep", "namespace"])
@pytest.mark.parametrize("status", [0, 7, 255])
def test_its_exit_status(mode: str, status: int) -> None:
    husk = start_husk(described(*free_ids(1)), mode, None)
    init = husk.init
    let_exit(husk, status)
    assert husk_ended(husk) == status
    assert husk.init == 0
    assert not init or not os.path.exists(f"/proc/{init}")
    os.close(husk.pidfd)


@pytest.mark.parametrize("mode", ["keep", "namespace"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_status_of_a_killed_one(mode: str, number: signal.Signals) -> None:
    husk = start_husk(described(*free_ids(1)), mode, None)
    let_run(husk)
    os.kill(husk.pid, number)
    assert husk_ended(husk) == 128 + number
    os.close(husk.pidfd)


@pytest.mark.parametrize(("status", "expected"), [(3 << 8, 3), (signal.SIGKILL, 128 + signal.SIGKILL)])
def test_the_namespace_ends_with_the_status_it_is_told(status: int, expected: int) -> None:
    husk = start_husk(described(500), "namespace", None)
    os.kill(husk.pid, signal.SIGKILL)
    reap(husk.pid)
    os.write(husk.line, status.to_bytes(4, sys.byteorder))
    assert os.waitstatus_to_exitcode(reap(husk.init)) == expected
    os.close(husk.line)
    os.close(husk.pidfd)


def test_the_namespace_ends_after_its_process_though_its_socket_is_still_held() -> None:
    husk = start_husk(described(500), "namespace", None)
    # Until it has opened the process it could not see its end, but would be told of it.
    descriptors = Path(f"/proc/{husk.init}/fd")
    wait_until(lambda: any("pidfd" in os.readlink(path) for path in descriptors.iterdir()))
    os.kill(husk.pid, signal.SIGKILL)
    reap(husk.pid)
    assert os.waitstatus_to_exitcode(reap(husk.init)) == 0
    os.close(husk.line)
    os.close(husk.pidfd)


def test_process_1_reaps_the_orphans_of_its_namespace() -> None:
    """A shell inside leaves a grandchild behind; process 1 is its parent then, and reaps it."""
    husk = start_husk(described(500), "namespace", None)
    enter = ["nsenter", f"--pid=/proc/{husk.init}/ns/pid", f"--mount=/proc/{husk.init}/ns/mnt"]
    leave_one = [*enter, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]
    try:
        orphan = subprocess.run(leave_one, capture_output=True, text=True, check=True).stdout.strip()
        proc = Path(f"/proc/{husk.pid}/root/proc/{orphan}")
        assert "\nPPid:\t1\n" in (proc / "status").read_text()
        subprocess.run([*enter, "kill", "-9", orphan], check=True)
        wait_until(lambda: not proc.exists())
    finally:
        end_husk(husk)
        os.close(husk.pidfd)


def test_a_killed_maker_takes_husk_and_namespace_along() -> None:
    maker = run_python(MAKER, "die")
    assert maker.returncode == -signal.SIGKILL, maker.stderr
    pids = [int(word) for word in maker.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid))


def test_a_maker_killed_before_the_husk_exists_leaves_no_namespace() -> None:
    code = (
        "import os, signal\n"
        "from live_migration.restorer import husk_process\n"
        "init, _ = husk_process._start_init(500)\n"
        "print(init, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    maker = run_python(code)
    assert maker.returncode == -signal.SIGKILL, maker.stderr
    wait_until(lambda: not alive(int(maker.stdout)))


def test_a_detached_process_lives_on_and_its_namespace_ends_with_it() -> None:
    maker = run_python(MAKER, "detach")
    assert maker.returncode == 0, maker.stderr
    husk, init = (int(word) for word in maker.stdout.split())
    time.sleep(0.2)
    assert alive(husk)
    assert alive(init)
    os.kill(husk, signal.SIGTERM)
    wait_until(lambda: not alive(husk))
    wait_until(lambda: not alive(init))
