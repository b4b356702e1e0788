"""The husk as a process: its start, with its old id or in a namespace of its own, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from live_migration._lm import lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.pidfd import ended_status, open_pidfd, send_signal
from live_migration.kernel.proc import stat_fields
from live_migration.kernel.spawn import (
    ADDR_COMPAT_LAYOUT,
    ADDR_NO_RANDOMIZE,
    SpawnFailed,
    Start,
    reap,
    start,
    start_traced,
)
from live_migration.process.attributes import clocks
from live_migration.process.task import TaskDescription
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode

HUSK = Path(__file__).resolve().parent / "bin" / "husk"
INIT = Path(__file__).resolve().parent / "bin" / "init"
STEP = "starting the new process"
PIDFD_NUMBER = 3
INIT_SOCKET_NUMBER = 3
INIT_SECONDS = 10.0
RLIMIT_STACK = 3
LEAST_STACK = 1 << 20
# The errors of clone3 when an id is taken, may not be chosen, or is too high for this host.
NOT_THIS_ID = (errno.EEXIST, errno.EPERM, errno.EINVAL)


@dataclass
class HuskProcess:
    """A started husk, stopped and traced. `pidfd_number` is where it holds a pidfd of this process.

    It is `adopted` if another worker has started it.
    In a namespace of its own, `init` is that namespace's process 1 and `line` the socket to it (restorer/init.c).
    """

    pid: int
    pidfd: int
    pidfd_number: int
    offsets: clocks.Offsets | None
    init: int = 0
    line: int = -1
    namespace: bool = False
    adopted: bool = False


def start_husk(task: TaskDescription, pid_mode: str, offsets: clocks.Offsets | None) -> HuskProcess:
    """Start the husk with the id that `task` has inside: here ("keep"), in a new PID namespace ("namespace"), or
    here if possible, else there ("auto"). With `offsets` it gets a time namespace.

    Must be called from the thread that is to trace it. Raises LocalError; nothing is left then.
    """
    if task.pid == 1:
        raise LocalError(
            step=STEP,
            object="id 1",
            cause="the process is process 1 of its PID namespace, and that id cannot be given to a moved process",
            remedy="run the program in its container under another process 1, as docker run --init does",
            code=ExitCode.REFUSED,
        )
    own = open_pidfd(os.getpid())
    try:
        if pid_mode == "keep" or (pid_mode == "auto" and not taken_ids(task)):
            try:
                return _start(task, own, offsets)
            except SpawnFailed as error:
                refused = error.step == lib.LM_SPAWN_CLONE and error.errno in NOT_THIS_ID
                if pid_mode == "keep" or not refused:
                    raise
        return _start_in_namespace(task, own, offsets)
    except SpawnFailed as error:
        raise _explain(error, task.pid) from error
    except (ProcessGone, OSError) as error:
        raise LocalError(
            step=STEP, object=f"id {task.pid}", cause=str(error), remedy="the kernel's log (dmesg) may tell more"
        ) from error
    finally:
        os.close(own)


def taken_ids(task: TaskDescription) -> list[int]:
    """The thread ids of the process that others have on this host, as a thread, group or session."""
    return [thread.tid for thread in task.threads if _is_taken(thread.tid)]


def _is_taken(number: int) -> bool:
    if os.path.exists(f"/proc/{number}"):
        return True
    # A group keeps the number of its leader taken after the leader's end.
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start(task: TaskDescription, own: int, offsets: clocks.Offsets | None, joined: int = -1) -> HuskProcess:
    soft, _ = task.limits.limits[RLIMIT_STACK]
    how = Start(
        HUSK,
        identifier=task.pid,
        joined=joined,
        descriptor=(own, PIDFD_NUMBER),
        # By these the kernel decides at exec, for ever, where later mappings go, clear of the stack.
        personality=task.limits.personality & (ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT),
        stack_limit=max(soft, LEAST_STACK),
        time_offsets=offsets.text() if offsets is not None else None,
    )
    pid = start_traced(how)
    return HuskProcess(pid, open_pidfd(pid), PIDFD_NUMBER, offsets)


def _start_in_namespace(task: TaskDescription, own: int, offsets: clocks.Offsets | None) -> HuskProcess:
    init, line = _start_init(task.pid)
    try:
        joined = open_pidfd(init)
        try:
            husk = _start(task, own, offsets, joined)
        finally:
            os.close(joined)
    except BaseException:
        _end_init(init, line)
        raise
    husk.init, husk.line, husk.namespace = init, line, True
    with contextlib.suppress(OSError):
        os.write(line, b"h")
    return husk


def _start_init(moved: int) -> tuple[int, int]:
    """Start process 1 of a new PID namespace, and wait until it has mounted its /proc: its id, and our socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        init = start(
            Start(
                INIT,
                (str(moved), str(INIT_SOCKET_NUMBER)),
                new_namespaces=True,
                descriptor=(theirs.fileno(), INIT_SOCKET_NUMBER),
            )
        )
        theirs.close()
        ours.settimeout(INIT_SECONDS)
        try:
            ready = ours.recv(1)
        except OSError:
            ready = b""
        ours.setblocking(True)
        line = ours.detach()
    if ready != b"\1":
        _end_init(init, line)
        raise LocalError(
            step=STEP,
            object="the new PID namespace",
            cause="its /proc could not be mounted",
            remedy="make /proc a directory that may be mounted on, or use --pid keep",
        )
    return init, line


def _explain(error: SpawnFailed, pid: int) -> LocalError:
    """The failure with its remedy."""
    cause = f"{error.strerror}"
    thing, remedy, code = "the new process", "the kernel's log (dmesg) may tell more", ExitCode.SYSTEM
    if error.step in (lib.LM_SPAWN_TIME_NAMESPACE, lib.LM_SPAWN_TIME_OFFSETS):
        thing = "the time namespace"
        remedy = "use a kernel with CONFIG_TIME_NS here, or move the process on one host"
    if error.step == lib.LM_SPAWN_CLONE:
        thing = f"id {pid}"
        if error.errno == errno.EEXIST:
            cause, remedy = "is taken on this host", "use --pid namespace, or end the process that has it"
        if error.errno == errno.EINVAL:
            cause = "is not an id that this kernel gives"
            remedy = f"raise the limit of ids: sysctl kernel.pid_max={max(2 * pid, 1 << 16)}"
    if error.errno == errno.EPERM:
        capabilities = {
            lib.LM_SPAWN_TIME_NAMESPACE: "CAP_SYS_ADMIN",
            lib.LM_SPAWN_TIME_OFFSETS: "CAP_SYS_TIME",
            lib.LM_SPAWN_CLONE: "CAP_SYS_ADMIN, or CAP_CHECKPOINT_RESTORE with --pid keep",
        }
        needed = capabilities.get(error.step, "CAP_SYS_ADMIN and CAP_SYS_CHROOT")
        cause, remedy, code = f"{cause}", f"run lm-restore as root, or give it {needed}", ExitCode.NO_PERMISSION
    if error.step == lib.LM_SPAWN_EXEC:
        remedy = f"build the static programs again: {error.filename} must be executable"
    return LocalError(step=STEP, object=thing, cause=cause, remedy=remedy, code=code)


def is_killed(husk: HuskProcess) -> bool:
    """Whether somebody has killed the husk. Its pidfd tells only when its tracer has reaped every thread."""
    try:
        return stat_fields(husk.pid)[0] in "ZX"
    except OSError:
        return True


def end_husk(husk: HuskProcess) -> None:
    """Kill and reap the husk with all its threads, and its namespace. Does nothing to one that was ended before."""
    with contextlib.suppress(OSError):
        send_signal(husk.pidfd, signal.SIGKILL)
        # Traced threads have to be reaped one by one, the leader last (ptrace(2)).
        for name in sorted(os.listdir(f"/proc/{husk.pid}/task"), key=int):
            if int(name) != husk.pid:
                reap(int(name))
        reap(husk.pid)
    _end_init(husk.init, husk.line)
    husk.init, husk.line = 0, -1


def husk_ended(husk: HuskProcess) -> int:
    """Reap the moved process, and its namespace, which ends with it; its status, 128 + n for one that signal n
    ended. That of an adopted one is 0 where the kernel does not tell."""
    if husk.adopted:
        return _shell_status(ended_status(husk.pidfd, husk.pid))
    status = reap(husk.pid)
    if husk.init:
        with contextlib.suppress(OSError):
            os.write(husk.line, status.to_bytes(4, sys.byteorder))
        reap(husk.init)
        os.close(husk.line)
        husk.init, husk.line = 0, -1
    return _shell_status(status)


def _shell_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _end_init(init: int, line: int) -> None:
    if init:
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, signal.SIGKILL)
        reap(init)
        os.close(line)
