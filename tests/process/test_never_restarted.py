"""System calls that the kernel restarts by no means go on all the same, thawed and moved: nobody sees an EINTR."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.proc import read_proc
from live_migration.kernel.tracing import tracee
from live_migration.process.threads import interrupted, sleeps
from tests.kernel.husks import wait_until
from tests.process import task_helpers as helpers

SOURCE = Path(__file__).resolve().parent / "blocked_caller.c"
CLONE_TRACED = 0x2000 | signal.SIGCHLD
ANSWER_SECONDS = 20
SETVAL, IPC_RMID = 16, 0  # semctl(2)
ROOM = 1 << 16
LIBC = ctypes.CDLL(None, use_errno=True)

RECEIVING = ["read", "readv", "preadv2", "recvfrom", "recvmsg", "recvmmsg", "splice_in"]
SENDING = ["write", "writev", "pwritev2", "sendto", "sendmsg", "sendmmsg", "sendfile", "splice_out"]
CONNECTING = ["accept", "accept4", "connect"]
WAITING = ["epoll_wait", "epoll_pwait", "epoll_pwait2", "semop", "semtimedop", "rt_sigtimedwait"]
# A copy of a process has no context of the kernel's for asynchronous I/O.
NOT_COPIED = ["io_getevents"]
RESULTS = {"semop": 0, "semtimedop": 0, "connect": 0, "rt_sigtimedwait": int(signal.SIGUSR1)}


@dataclass
class Blocked:
    """A process in a call; `release` ends the call of the process with the id that it is given."""

    name: str
    process: subprocess.Popen[str]
    release: Callable[[int], None]

    def check_ends_well(self, pid: int) -> None:
        """What the call waits for comes, and the call of this process, or of its copy `pid`, returns it."""
        self.release(pid)
        assert self.process.stdout is not None
        result, error = self.process.stdout.readline().split()
        assert error == "0", os.strerror(int(error))
        if not self.name.startswith("accept"):
            assert int(result) == RESULTS.get(self.name, 1)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocked") / "blocked_caller"
    subprocess.run(["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def blocked(binary: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Blocked]:
    name: str = request.param
    path = tmp_path / "listener"
    with contextlib.ExitStack() as stack:
        here, there = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        first = socket.socket(socket.AF_UNIX)
        for one in (here, listener, first):
            stack.enter_context(one).settimeout(ANSWER_SECONDS)
        if name == "connect":
            listener.bind(str(path))
            listener.listen(0)
            first.connect(str(path))
        process = subprocess.Popen([binary, name, path], stdin=there.fileno(), stdout=subprocess.PIPE, text=True)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        there.close()
        semaphores = -1
        if name.startswith("sem"):
            semaphores = int(here.recv(100))
            stack.callback(LIBC.semctl, semaphores, 0, IPC_RMID)

        def release(pid: int) -> None:
            if name in SENDING:
                while here.recv(ROOM):
                    pass
            elif name.startswith("accept"):
                first.connect(str(path))
            elif name == "connect":
                for _ in range(2):
                    listener.accept()[0].close()
            elif semaphores >= 0:
                assert LIBC.semctl(semaphores, 0, SETVAL, 1) == 0
            elif name == "rt_sigtimedwait":
                os.kill(pid, signal.SIGUSR1)
            else:
                here.sendall(b"x")

        number = getattr(numbers, f"SYS_{name.removesuffix('_in').removesuffix('_out')}")
        wait_until(lambda: sleeps_in(process.pid, number))
        yield Blocked(name, process, release)


def sleeps_in(pid: int, number: int) -> bool:
    """Whether the process sleeps in this system call (proc_pid_syscall(5))."""
    return read_proc(f"/proc/{pid}/syscall").split()[0] == str(number).encode()


@pytest.mark.parametrize("blocked", [*RECEIVING, *SENDING, *CONNECTING, *WAITING, *NOT_COPIED], indirect=True)
def test_a_thawed_call_goes_on(blocked: Blocked) -> None:
    pid = blocked.process.pid
    stops = tracee.freeze(pid)
    result = tracee.get_registers(pid).result
    tracee.thaw(stops, True)
    assert result == -errno.EINTR
    blocked.check_ends_well(pid)


@pytest.mark.parametrize("blocked", [*RECEIVING, *SENDING, *CONNECTING, *WAITING], indirect=True)
def test_a_moved_call_goes_on(blocked: Blocked) -> None:
    """Its copy, with the registers that the destination would get."""
    pid = blocked.process.pid
    tracee.freeze(pid)
    state, mask, vectors = tracee.get_registers(pid), tracee.get_signal_mask(pid), tracee.get_xstate(pid)
    final, call = interrupted.registers_to_resume(state, False, bytes(7), interrupted.Reader(pid), sleeps.NOT_SEEN)
    assert call is None
    copy = helpers.remote_syscall(pid, numbers.SYS_clone, CLONE_TRACED, 0, 0, 0, 0)
    tracee.wait(copy)
    tracee.set_xstate(copy, vectors)
    tracee.set_signal_mask(copy, mask)
    tracee.set_registers(copy, final)
    os.kill(pid, signal.SIGKILL)
    tracee.detach(copy)
    blocked.check_ends_well(copy)


@pytest.mark.parametrize("blocked", ["read", "sendmmsg", "epoll_wait"], indirect=True)
def test_a_handler_that_runs_when_thawed_ends_the_call(blocked: Blocked) -> None:
    """As it would have without a freeze: a program may rely on it."""
    pid = blocked.process.pid
    stops = tracee.freeze(pid)
    os.kill(pid, signal.SIGUSR2)
    tracee.thaw(stops, True)
    assert blocked.process.stdout is not None
    assert blocked.process.stdout.readline().split() == ["-1", str(errno.EINTR)]


@pytest.mark.parametrize("blocked", ["read"], indirect=True)
def test_a_signal_that_is_ignored_does_not_end_the_call(blocked: Blocked) -> None:
    pid = blocked.process.pid
    stops = tracee.freeze(pid)
    os.kill(pid, signal.SIGURG)
    tracee.thaw(stops, True)
    blocked.check_ends_well(pid)
