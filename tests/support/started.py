"""Starting commands as experiments/machines.py does, but our own ones by a fork of a warm process (warm.py).

The interpreter's start and its imports are two thirds of the processor time of a move between two machines on one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from live_migration.experiments import machines
from live_migration.experiments.machines import Command, Machine, Move
from tests.support.warm import ANSWER, LARGEST, Request

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("live_migration.cli.serve", "live_migration.cli.restore")
PR_GET_CHILD_SUBREAPER = 37  # prctl(2)
UNKNOWN_STATUS = 255
"""Of a command that somebody else has waited for."""


@dataclass
class Forked:
    """A child that was forked elsewhere, to be used as a subprocess.Popen."""

    pid: int
    args: list[str]
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = UNKNOWN_STATUS
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its status. Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                select.select([descriptor], [], [], timeout)
            finally:
                os.close(descriptor)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@dataclass
class Warm:
    """The warm process of this one, and the socket to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    def fork(self, request: Request, descriptors: Sequence[int]) -> Forked:
        """Fork a command, as a child of this process. Raises OSError when the warm process is gone."""
        with adopting():
            socket.send_fds(self.channel, [msgspec.json.encode(request)], descriptors)
            answer = self.channel.recv(LARGEST)
        if len(answer) != ANSWER.size:
            raise ConnectionResetError(f"the warm process is gone: {answer.decode()}")
        return Forked(ANSWER.unpack(answer)[0], [request.module, *request.arguments])


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Be a subreaper meanwhile."""
    already = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(already), 0, 0, 0)
    machines.adopt_orphans()
    try:
        yield
    finally:
        machines.adopt_orphans(bool(already.value))


@functools.cache
def warm() -> Warm:
    """The warm process, begun at the first call."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            # One of our commands writes its own name over this line, and finds room for it.
            [sys.executable, "-m", "tests.support.warm", str(theirs.fileno()), " " * 64],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("LM_")},
            stdin=subprocess.DEVNULL,
            # Not those of the tests, which are files that would be held here.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return Warm(process, ours)


def spared() -> list[int]:
    """The process that is no part of any test: the warm one, while there is one."""
    return [warm().process.pid] if warm.cache_info().currsize else []


def end_warm() -> None:
    """End the warm process; the next fork begins another one."""
    if warm.cache_info().currsize:
        warm().channel.close()
        warm().process.wait(60)
        warm.cache_clear()


def end_everything() -> None:
    """Kill and reap every process that descends from this one, but the warm one.

    A keeper goes last: without it, a moved process that is not killed yet reads zeros, and says so in its log."""
    for pid in machines.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if pid not in spared() and Path(f"/proc/{pid}/comm").read_text() != "lm-keeper\n":
                os.kill(pid, signal.SIGKILL)
    machines.kill_descendants(spared())


def start(machine: Machine | None, words: Sequence[str], folder: Path, name: str, **more: Any) -> Command:
    """As machines.start(), which it leaves to start what is no command of ours, or where no machine as such is."""
    ours = list(words[:2]) == [sys.executable, "-m"] and words[2] in COMMANDS
    if not ours or not isinstance(machine, Machine | None):
        return machines.start(machine, words, folder, name, **more)
    with contextlib.ExitStack() as stack:
        outputs = [folder / f"{name}.out", folder / f"{name}.err"]
        files: list[IO[bytes]] = [stack.enter_context(open(os.devnull, "rb"))]
        files += [stack.enter_context(path.open("wb")) for path in outputs]
        if machine:
            files.append(stack.enter_context(open(f"/run/netns/{machine.namespace}", "rb")))
        forked = fork(words, [file.fileno() for file in files], **more)
    return Command(name, forked, folder)


def fork(
    words: Sequence[str],
    descriptors: Sequence[int],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    start_new_session: bool = False,
) -> Forked:
    """Fork the command of a command line, with these as its first descriptors (warm.py)."""
    environment = dict(os.environ if env is None else env)
    request = Request(words[2], list(words[3:]), environment, str(cwd or os.getcwd()), start_new_session)
    if warm().process.poll() is not None:
        end_warm()
    return warm().fork(request, descriptors)


def run(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path | str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run the command of a command line to its end. Raises subprocess.TimeoutExpired."""
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "rb"))
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        forked = fork(words, [file.fileno() for file in (null, *outputs)], env=env, cwd=cwd)
        try:
            forked.wait(timeout)
        finally:
            forked.kill()
        for file in outputs:
            file.seek(0)
        said, complained = (file.read().decode() for file in outputs)
    return subprocess.CompletedProcess(list(words), forked.wait(), said, complained)


def begin_move(*arguments: Any, **more: Any) -> Move:
    """As machines.begin_move()."""
    return machines.begin_move(*arguments, **more, starting=start)
