"""A warm process: it has imported all of lm-serve and lm-restore, and forks them when it is told to.

Started as `python -m tests.support.warm NUMBER`, with a socket (SOCK_SEQPACKET) as descriptor NUMBER. Each message is a
`Request`, with stdin, stdout and stderr of the command, and the network namespace if it is for another one, as its
descriptors. The answer is the command's process id.

A command forked here differs from a started one in three things: /proc/PID/cmdline and /proc/PID/environ are those of
the warm process, modules are there before they are used, and the interpreter is not taken down at the end. It is no
child of the warm process, but of the nearest subreaper above it (prctl(2), PR_SET_CHILD_SUBREAPER), which must be
whoever made the request: so its status can be waited for there, as after a fork.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import os
import pkgutil
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import msgspec

PACKAGES = ("cli", "wire", "kernel", "process", "pager", "source_server", "restorer")
LARGEST = 1 << 20
DESCRIPTORS = 4
ANSWER = struct.Struct("=i")
CLONE_NEWNET = 0x40000000  # setns(2)
BROKEN = 70


class Request(msgspec.Struct):
    """A command: the module whose main() it is, its arguments, its environment and its folder.

    `new_session`: it becomes the leader of a session (setsid(2))."""

    module: str
    arguments: list[str]
    environment: dict[str, str]
    folder: str
    new_session: bool = False


def import_all() -> None:
    """Import every module that a command may come to need."""
    for package in PACKAGES:
        found = importlib.import_module(f"live_migration.{package}")
        for module in pkgutil.walk_packages(found.__path__, f"live_migration.{package}."):
            importlib.import_module(module.name)


def enter_network(namespace: int) -> None:
    """Go over into a network namespace. Raises OSError."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def keep_only(wanted: Sequence[int]) -> None:
    """Make these the descriptors 0, 1 and so on, and close every other one."""
    # Out of the way of the numbers that they are to get, first.
    for number, descriptor in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD, len(wanted)) for each in wanted]):
        os.dup2(descriptor, number)
    os.closerange(len(wanted), max(map(int, os.listdir("/proc/self/fd"))) + 1)


def again(number: int, stream: TextIO) -> TextIO:
    """The interpreter's stream of a descriptor, as it would be made anew."""
    assert isinstance(stream, io.TextIOWrapper)
    through = stream.write_through
    file = open(number, "wb" if number else "rb", 0 if through else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        file, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=through
    )


def become(request: Request, descriptors: Sequence[int], on_interrupt: Any) -> int:
    """Be the command, with all that a started one would find; its exit status."""
    if len(descriptors) == DESCRIPTORS:
        enter_network(descriptors[-1])
    keep_only(descriptors[:3])
    sys.stdin, sys.stdout, sys.stderr = (
        again(number, stream) for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    signal.signal(signal.SIGINT, on_interrupt)
    if request.new_session:
        os.setsid()
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv = [request.module, *request.arguments]
    return int(importlib.import_module(request.module).main())


def run(request: Request, descriptors: Sequence[int], on_interrupt: Any) -> NoReturn:
    """Be the command, and end as the interpreter would end."""
    status = BROKEN
    try:
        status = become(request, descriptors, on_interrupt)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def fork_away(request: Request, descriptors: Sequence[int], on_interrupt: Any) -> int:
    """Fork the command, which falls to the nearest subreaper; its process id.

    It begins when it has its new parent: commands look at the processes above them."""
    told, tell = os.pipe()
    go, let_go = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid:
            os.write(tell, ANSWER.pack(pid))
            os._exit(0)
        os.close(let_go)
        os.read(go, 1)
        run(request, descriptors, on_interrupt)
    os.waitpid(between, 0)
    pid = int(ANSWER.unpack(os.read(told, ANSWER.size))[0])
    for descriptor in (told, tell, go, let_go):
        os.close(descriptor)
    return pid


def main(channel: socket.socket) -> None:
    """Fork commands until the other end of the channel is closed."""
    # Ctrl-C is for the tests and the commands; what it does there is what it would have done here.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_all()
    gc.collect()
    # So that a collection in a fork does not write to, and so copy, every page of what was imported.
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, LARGEST, DESCRIPTORS)
        if not data:
            return
        pid = fork_away(msgspec.json.decode(data, type=Request), descriptors, on_interrupt)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(ANSWER.pack(pid))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as tests:
        try:
            main(tests)
        except Exception:
            tests.send(traceback.format_exc().encode())
            raise
