"""Starting a small static program with an id, in namespaces and with one descriptor of our choice (kernel/spawn.c).

The program starts from nothing of ours: no signal handled, ignored or blocked, an empty environment, no descriptor
but the one given. `start_traced` hands it over stopped before its first instruction, and from its beginning on the
tracer's death is its death.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.tracing import tracee

# sys/personality.h
ADDR_NO_RANDOMIZE = 0x0040000
ADDR_COMPAT_LAYOUT = 0x0200000
ALL_CHILDREN = 0x40000000  # __WALL, wait(2)

STEPS = {
    lib.LM_SPAWN_PREPARE: "opening pipes",
    lib.LM_SPAWN_STARTER: "making a process",
    lib.LM_SPAWN_TIME_NAMESPACE: "making a time namespace",
    lib.LM_SPAWN_TIME_OFFSETS: "setting the clocks of a time namespace",
    lib.LM_SPAWN_JOIN: "joining a PID namespace",
    lib.LM_SPAWN_CLONE: "clone3",
    lib.LM_SPAWN_DESCRIPTORS: "arranging descriptors",
    lib.LM_SPAWN_MOUNTS: "joining a mount namespace",
    lib.LM_SPAWN_PERSONALITY: "setting the personality and the stack limit",
    lib.LM_SPAWN_EXEC: "executing",
}


class SpawnFailed(OSError):
    """A program could not be started: `step` is one of LM_SPAWN_..., `errno` the kernel's error."""

    def __init__(self, step: int, error: int, program: Path) -> None:
        super().__init__(error, f"{STEPS.get(step, 'starting')}: {os.strerror(error)}", str(program))
        self.step = step


@dataclass(frozen=True)
class Start:
    """What to start and how.

    identifier       its id inside its own PID namespace (clone3(2), set_tid); 0 for any
    new_namespaces   it becomes process 1 of a new PID namespace, with mounts of its own
    joined           a pidfd of a process whose PID and mount namespaces it joins, or -1
    descriptor       (ours, its number there): the one descriptor that it gets
    personality      see personality(2); with the stack's limit it decides where mappings go, for ever
    stack_limit      soft, in bytes, as far as the hard one allows; 0 for this process's own
    time_offsets     the content of /proc/PID/timens_offsets of a new time namespace (time_namespaces(7))
    """

    program: Path
    arguments: Sequence[str] = ()
    identifier: int = 0
    new_namespaces: bool = False
    joined: int = -1
    descriptor: tuple[int, int] | None = None
    personality: int = 0
    stack_limit: int = 0
    time_offsets: str | None = None


@dataclass
class _Waiting:
    """A child that waits for a byte before it executes its program."""

    pid: int
    go: int
    news: int

    def close(self) -> None:
        os.close(self.go)
        os.close(self.news)


def start(how: Start) -> int:
    """Start a program, untraced; its process id. It is a child of this process. Raises SpawnFailed."""
    waiting = _start(how)
    with contextlib.closing(waiting):
        os.write(waiting.go, b"g")
        _executed(waiting, how.program)
        return waiting.pid


def start_traced(how: Start, options: int = tracee.TRACESYSGOOD | tracee.EXITKILL) -> int:
    """Start a program, traced by the calling thread and stopped before its first instruction; its process id.

    It is stopped by an interrupt, so that system calls can be injected at once. Raises SpawnFailed, ProcessGone
    when somebody has killed it, OSError when it may not be traced.
    """
    waiting = _start(how)
    pid = waiting.pid
    with contextlib.closing(waiting):
        try:
            tracee.seize(pid, options | tracee.TRACEEXEC)
            os.write(waiting.go, b"g")
            last = tracee.wait(pid)
            while last.event != tracee.EVENT_EXEC:
                tracee.release(last)
                last = tracee.wait(pid)
            # At the event of the exec an injected call would be lost: the first stop after it is the one to use.
            tracee.stop(pid, last)
            tracee.set_options(pid, options)
        except ProcessGone:
            _executed(waiting, how.program, reaped=True)
            raise
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            reap(pid)
            raise
    return pid


def reap(tid: int) -> int:
    """Wait for the end of a child or traced thread, whatever stops come first; its wait status, 0 if there is none
    to reap."""
    while True:
        try:
            _, status = os.waitpid(tid, ALL_CHILDREN)
        except ChildProcessError:
            return 0
        if not os.WIFSTOPPED(status):
            return status


def _start(how: Start) -> _Waiting:
    texts = [ffi.new("char[]", os.fsencode(text)) for text in (str(how.program), *how.arguments)]
    arguments = ffi.new("char *[]", [*texts, ffi.NULL])
    offsets = ffi.NULL if how.time_offsets is None else ffi.new("char[]", how.time_offsets.encode())
    descriptor, number = how.descriptor or (-1, -1)
    program = os.open(how.program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wanted = ffi.new(
            "struct lm_spawn *",
            {
                "program": program,
                "identifier": how.identifier,
                "new_namespaces": how.new_namespaces,
                "joined": how.joined,
                "descriptor": descriptor,
                "number": number,
                "personality": how.personality,
                "stack_limit": how.stack_limit,
                "time_offsets": offsets,
                "arguments": arguments,
            },
        )
        spawned = ffi.new("struct lm_spawned *")
        failed = ffi.new("int32_t *")
        error = lib.lm_spawn(wanted, spawned, failed)
    finally:
        os.close(program)
    if error != 0:
        raise SpawnFailed(failed[0], -error, how.program)
    return _Waiting(spawned.pid, spawned.go, spawned.news)


def _executed(waiting: _Waiting, program: Path, reaped: bool = False) -> None:
    """Wait until the program is executed. Raises SpawnFailed with the child reaped."""
    news = os.read(waiting.news, int(ffi.sizeof("struct lm_spawn_failure")))
    if not news:
        return
    if not reaped:
        reap(waiting.pid)
    failure = ffi.from_buffer("struct lm_spawn_failure *", news)
    raise SpawnFailed(failure.step, failure.error, program)
