"""A process of ours that has a thread's ids and no capabilities: any process with these ids may examine it with
ptrace(2) and kcmp(2), unless a security module keeps the two apart (Landlock domains: security/landlock/task.c,
ptrace_access_check).

Nothing shows a Landlock domain from outside. But a stopped thread in one may not examine its witness.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from typing import NoReturn

CLONE_NEWPID = 0x20000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
CAPABILITY_VERSION_3 = 0x20080522  # capset(2)
NAME_BYTES = 16
WAITING = "/bin/sleep"
"""What the witness executes: a program that waits, told to do it for ever."""


@contextlib.contextmanager
def witness(pid: int, user: int, group: int) -> Iterator[int]:
    """Within, there is a witness with these ids in the PID namespace of process `pid`; its id there. It ends with the
    context, and with this process.

    Raises OSError when it cannot be made: without the right to enter the namespace or to take the ids."""
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        _make_witness(pid, user, group, write_end)
    os.close(write_end)
    try:
        with open(read_end, "rb") as pipe:
            text = pipe.read(NAME_BYTES)
        if not text.isdigit():
            raise OSError(f"no witness with user id {user} in the PID namespace of process {pid}")
        yield int(text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(helper, 0)


def _make_witness(pid: int, user: int, group: int, write_end: int) -> NoReturn:
    """Make the witness in a child of ours, for it cannot be this process itself (setns(2) into a PID namespace is for
    children), and stay for as long as it is needed."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _die_with_parent(libc, os.getppid())
        namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
        elsewhere = os.fstat(namespace).st_ino != os.stat("/proc/self/ns/pid").st_ino
        if elsewhere and libc.setns(namespace, CLONE_NEWPID):
            os._exit(1)
        if os.fork() == 0:
            if (user, group) != (os.getuid(), os.getgid()):
                os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
            _drop_capabilities(libc)
            # A change of ids takes it back (prctl(2)).
            _die_with_parent(libc, os.getppid())
            os.write(write_end, str(os.getpid()).encode())
        # Both go on as a small program, in place of a copy of this one's memory.
        os.closerange(0, 1 << 16)
        os.execv(WAITING, ["lm-witness", "infinity"])
    finally:
        os._exit(1)


def _die_with_parent(libc: ctypes.CDLL, parent: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """capset(2) with empty sets, to which nothing is added any more. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
    # For good: execve(2) gives root its capabilities back otherwise (capabilities(7)).
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
