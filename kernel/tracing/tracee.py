"""ptrace(2) as plain functions over thread ids; the work is in kernel/tracing/tracee.c and kernel/tracing/freeze.c.

Every function must be called from the thread that seized (ptrace(2)); when that thread ends, the kernel releases its
tracees. Raises ProcessGone when the thread has gone or is not stopped, OSError for every other failure.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.arch.arch import REGISTERS_SIZE, Registers
from live_migration.kernel.errors import ProcessGone, check

# Requests, events and options of ptrace(2), which glibc declares as an enum.
_CONT = 7
_DETACH = 17
_SYSCALL = 24
_SETOPTIONS = 0x4200
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_LISTEN = 0x4208
_GET_RSEQ_CONFIGURATION = 0x420F

TRACESYSGOOD = 0x1
TRACEEXEC = 0x10
EXITKILL = 0x100000
SUSPEND_SECCOMP = 0x200000

EVENT_EXEC = 4
EVENT_STOP = 128

_SYSCALL_STOP = signal.SIGTRAP | 0x80
_PEEK_BATCH = 64


class StopKind(Enum):
    """Why a tracee is stopped."""

    EVENT = "event"  # a ptrace event: exec, clone, exit ...
    INTERRUPT = "interrupt"  # PTRACE_INTERRUPT, or the start of an automatically attached thread
    GROUP = "group-stop"  # SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU has stopped the whole process
    SYSCALL = "system call"
    SIGNAL = "signal"  # about to get a signal


@dataclass(frozen=True)
class Stop:
    """A stopped tracee: `status` is the raw status of waitpid(2), to be given back to `release`."""

    tid: int
    status: int

    @property
    def signal(self) -> int:
        return self.status >> 8 & 0xFF

    @property
    def event(self) -> int:
        """EVENT_... or 0."""
        return self.status >> 16

    @property
    def kind(self) -> StopKind:
        if self.event == EVENT_STOP:
            return StopKind.INTERRUPT if self.signal == signal.SIGTRAP else StopKind.GROUP
        if self.event:
            return StopKind.EVENT
        return StopKind.SYSCALL if self.signal == _SYSCALL_STOP else StopKind.SIGNAL


@dataclass(frozen=True)
class RseqConfiguration:
    """The registration of restartable sequences (rseq(2)) of a thread; an address of 0 means none."""

    address: int
    size: int
    signature: int
    flags: int


def seize(tid: int, options: int = TRACESYSGOOD) -> None:
    """Attach without stopping (PTRACE_SEIZE)."""
    check(lib.lm_trace(_SEIZE, tid, options), tid)


def interrupt(tid: int) -> None:
    """Request a stop; `wait` returns when it has come. See also `stop`."""
    check(lib.lm_trace(_INTERRUPT, tid, 0), tid)


def set_options(tid: int, options: int) -> None:
    check(lib.lm_trace(_SETOPTIONS, tid, options), tid)


def resume(tid: int, signal_number: int = 0) -> None:
    """Let a stopped tracee run; a signal other than 0 is delivered to it."""
    check(lib.lm_trace(_CONT, tid, signal_number), tid)


def resume_to_syscall(tid: int, signal_number: int = 0) -> None:
    """Let it run to the next entry into or exit from a system call."""
    check(lib.lm_trace(_SYSCALL, tid, signal_number), tid)


def listen(tid: int) -> None:
    """Leave a tracee in its group-stop, and get the event that ends it."""
    check(lib.lm_trace(_LISTEN, tid, 0), tid)


def detach(tid: int, signal_number: int = 0) -> None:
    """Let a stopped tracee run and trace it no more."""
    check(lib.lm_trace(_DETACH, tid, signal_number), tid)


def wait(tid: int) -> Stop:
    """Wait for the next stop. Raises ProcessGone with the exit status when it ended instead.

    Only for tracees of ours: a signal at whose delivery one stops is lost if we die before it is resumed."""
    stop = _stop_of(tid, lib.lm_trace_wait, 0)
    assert stop is not None
    return stop


def peek(tid: int, options: int = os.WNOHANG) -> Stop | None:
    """The next stop, without taking it: a signal that comes with it arrives even if we die. None when there is none
    yet, which `options` 0 waits for. Raises ProcessGone with the exit status when it ended instead."""
    return _stop_of(tid, lib.lm_trace_peek, options)


def _stop_of(tid: int, function: Callable[..., int], options: int) -> Stop | None:
    status = ffi.new("int *")
    error = function(tid, options, status)
    if error == -errno.EAGAIN:
        return None
    if error == -errno.ECHILD:
        raise ProcessGone(tid)
    check(error, tid)
    if not os.WIFSTOPPED(status[0]):
        raise ProcessGone(tid, status[0])
    return Stop(tid, status[0])


def stop(tid: int, last: Stop | None = None, timeout_ms: int = 5000) -> Stop:
    """Interrupt a tracee, running or stopped at `last`, and wait until it is in a stop in which our death is
    harmless.

    Signals on their way arrive. Raises TimeoutError, ProcessGone with the exit status.
    """
    status = ffi.new("int *")
    error = lib.lm_trace_stop(tid, last.status if last else 0, timeout_ms, status)
    if error == -errno.ESRCH:
        raise ProcessGone(tid, status[0] or None)
    check(error, tid)
    return Stop(tid, status[0])


def release(last: Stop, detach_too: bool = False) -> None:
    """Let a stopped tracee go on as it was: signals are injected, a group-stop stays one."""
    check(lib.lm_trace_release(last.tid, last.status, detach_too), last.tid)


def freeze(pid: int, seized: Sequence[int] = (), options: int = TRACESYSGOOD, timeout_ms: int = 5000) -> list[Stop]:
    """Stop all threads of a process, including those that start meanwhile; `seized` ones are traced already and run.

    The leader comes first, if it lives. On failure everything runs on as before: ProcessGone, TimeoutError,
    PermissionError.
    """
    capacity = 64 + 2 * len(seized)
    while True:
        threads = ffi.new("struct lm_frozen[]", capacity)
        count = ffi.new("size_t *")
        error = lib.lm_freeze(pid, list(seized), len(seized), options, timeout_ms, threads, capacity, count)
        if error != -errno.ENOBUFS:
            break
        capacity *= 4
    check(error, pid)
    stops = [Stop(threads[i].tid, threads[i].status) for i in range(count[0])]
    return sorted(stops, key=lambda one: (one.tid != pid, one.tid))


def thaw(stops: Iterable[Stop], detach_too: bool = False) -> None:
    """Let frozen threads go on exactly as they were; with `detach_too` they are not traced any more.

    Calls that the freeze has ended with EINTR (epoll_wait and others, signal(7)) are made again. Threads that
    have gone are passed over.
    """
    threads = ffi.new("struct lm_frozen[]", [(one.tid, one.status) for one in stops])
    check(lib.lm_thaw(threads, len(threads), detach_too), threads[0].tid if len(threads) else 0)


def get_registers(tid: int) -> Registers:
    raw = ffi.new("char[]", REGISTERS_SIZE)
    check(lib.lm_trace_get_registers(tid, raw), tid)
    return Registers(ffi.buffer(raw, REGISTERS_SIZE)[:])


def set_registers(tid: int, registers: Registers) -> None:
    check(lib.lm_trace_set_registers(tid, registers.raw), tid)


def get_xstate(tid: int) -> bytes:
    """The whole vector state, as the register set that holds it (LM_XSTATE_SET)."""
    size = ffi.new("size_t *", lib.lm_arch_xstate_room())
    xstate = ffi.new("char[]", size[0])
    check(lib.lm_trace_get_xstate(tid, xstate, size), tid)
    content: bytes = ffi.buffer(xstate, size[0])[:]
    return content


def set_xstate(tid: int, xstate: bytes) -> None:
    """Put an xsave image in, which may be shorter or longer than this host's as far as it differs by zeros.

    Raises OSError EFAULT or EINVAL when it does not fit, or is not of this host's layout."""
    error = lib.lm_trace_set_xstate(tid, xstate, len(xstate))
    if error in (-errno.EFAULT, -errno.EINVAL):  # ptrace takes images of exactly its own length
        room = len(get_xstate(tid))
        if room != len(xstate) and not any(xstate[room:]):
            error = lib.lm_trace_set_xstate(tid, xstate[:room].ljust(room, b"\0"), room)
    check(error, tid)


def get_signal_mask(tid: int) -> int:
    """The blocked signals: bit n-1 for signal n."""
    mask = ffi.new("uint64_t *")
    check(lib.lm_trace_get_mask(tid, mask), tid)
    return int(mask[0])


def set_signal_mask(tid: int, mask: int) -> None:
    check(lib.lm_trace_set_mask(tid, mask), tid)


def peek_signals(tid: int, shared: bool) -> list[bytes]:
    """Raw siginfo (128 bytes each) of the pending signals: of the process if `shared`, else of this
    thread."""
    size: int = lib.LM_SIGNAL_INFO_SIZE
    batch = ffi.new("char[]", size * _PEEK_BATCH)
    infos: list[bytes] = []
    while True:
        count = check(lib.lm_trace_peek_signals(tid, shared, len(infos), batch, _PEEK_BATCH), tid)
        raw = ffi.buffer(batch)[: count * size]
        infos += [raw[place : place + size] for place in range(0, len(raw), size)]
        if count < _PEEK_BATCH:
            return infos


def with_signals(tids: Sequence[int]) -> list[int]:
    """Those of these stopped tracees for which signals of their own are pending."""
    found = ffi.new("unsigned char[]", len(tids))
    check(lib.lm_trace_have_signals(ffi.new("int[]", tids), len(tids), found), tids[0])
    return [tid for tid, has_some in zip(tids, ffi.buffer(found)[:], strict=True) if has_some]


def rseq_configuration(tid: int) -> RseqConfiguration:
    """See PTRACE_GET_RSEQ_CONFIGURATION in ptrace(2); the thread must be stopped."""
    out = ffi.new("struct lm_rseq_configuration *")
    check(lib.lm_trace_memory(_GET_RSEQ_CONFIGURATION, tid, ffi.sizeof(out[0]), out), tid)
    return rseq_told(out)


def rseq_told(area: Any) -> RseqConfiguration:
    """The same of a struct lm_rseq_configuration."""
    return RseqConfiguration(area.address, area.size, area.signature, area.flags)


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Bytes of another process's memory (process_vm_readv(2)). Raises OSError EFAULT when not all of it is
    readable."""
    out = bytearray(length)
    check(lib.lm_memory_read(pid, address, ffi.from_buffer(out), length), pid)
    return bytes(out)


def write_memory(pid: int, address: int, content: bytes) -> None:
    check(lib.lm_memory_write(pid, address, content, len(content)), pid)
