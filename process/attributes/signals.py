"""Signals: handlers, the process's pending signals, and whether it is stopped.

A pending signal is the kernel's own siginfo, 128 bytes, as PTRACE_PEEKSIGINFO tells it and rt_sigqueueinfo(2) takes it
back. The process must queue its signals itself: from outside, the kernel refuses some of them and rewrites the sender.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import END_SIGNAL, Data, Program
from live_migration.kernel.tracing import tracee

SIGNALS = 64
SIGNAL_SET_SIZE = 8
SIGINFO_SIZE = 128
# Their actions cannot be changed (sigaction(2)).
UNCATCHABLE = frozenset({int(signal.SIGKILL), int(signal.SIGSTOP)})
# Rows do not queue these: the first two act at once whatever the mask is, the third ends every program of rows.
NOT_QUEUED = UNCATCHABLE | {int(END_SIGNAL)}


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What happens on a signal, as the kernel keeps it (rt_sigaction(2)); handler 0 is the default, 1
    ignores.
    """

    number: int
    handler: int = 0
    flags: int = 0
    restorer: int = 0
    mask: int = 0


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """The process's actions other than the plain default, its shared pending signals, and a group stop."""

    actions: tuple[Action, ...] = ()
    pending: tuple[bytes, ...] = ()
    stopped: bool = False


def query_actions(program: Program, place: Data) -> None:
    """Rows that query the action of every signal; `place` takes 64 kernel sigactions."""
    size = int(ffi.sizeof("lm_kernel_sigaction"))
    for number in range(1, SIGNALS + 1):
        if number not in UNCATCHABLE:
            target = place + (number - 1) * size
            label = f"rt_sigaction of signal {number}"
            program.call(label, numbers.SYS_rt_sigaction, number, 0, target, SIGNAL_SET_SIZE, check=False)


def reply_actions(replies: bytes) -> tuple[Action, ...]:
    """The actions in 64 kernel sigactions, without those that are the plain default."""
    actions = ffi.cast("lm_kernel_sigaction *", ffi.from_buffer(replies))
    size = int(ffi.sizeof("lm_kernel_sigaction"))
    default = bytes(size)
    return tuple(
        Action(
            number=index + 1,
            handler=actions[index].handler,
            flags=actions[index].flags,
            restorer=actions[index].restorer,
            mask=actions[index].mask,
        )
        for index in range(SIGNALS)
        if replies[index * size : (index + 1) * size] != default
    )


def snapshot_pending(tid: int, shared: bool) -> tuple[bytes, ...]:
    """The signals that wait for a stopped thread, or with `shared` for its process as a whole."""
    return tuple(tracee.peek_signals(tid, shared))


def snapshot_pending_of(tids: Sequence[int]) -> dict[int, tuple[bytes, ...]]:
    """Those that wait for each of these stopped threads. Most have none."""
    found: dict[int, tuple[bytes, ...]] = dict.fromkeys(tids, ())
    found.update((tid, snapshot_pending(tid, shared=False)) for tid in tracee.with_signals(tids))
    return found


def signal_number(information: bytes) -> int:
    """The signal that a siginfo tells of. Raises ValueError when it is not the size of one."""
    if len(information) != SIGINFO_SIZE:
        raise ValueError(f"a siginfo of {len(information)} bytes")
    return int(ffi.cast("lm_signal_information *", ffi.from_buffer(information)).si_signo)


def signal_code(information: bytes) -> int:
    """How the signal came about (sigaction(2), si_code)."""
    return int(ffi.cast("lm_signal_information *", ffi.from_buffer(information)).si_code)


def queue_signals(program: Program, pending: Iterable[bytes], process_id: int, thread_id: int | None = None) -> None:
    """Rows by which a thread queues signals, to itself or, without `thread_id`, to its process.

    A thread that runs a program blocks all signals but the one that ends it, until the final mask is set.
    """
    for information in pending:
        number = signal_number(information)
        if number in NOT_QUEUED:
            continue
        label = f"queueing signal {number}"
        place = program.data(information)
        if thread_id is None:
            program.call(label, numbers.SYS_rt_sigqueueinfo, process_id, number, place)
        else:
            program.call(label, numbers.SYS_rt_tgsigqueueinfo, process_id, thread_id, number, place)


def restore_actions(program: Program, signals: Signals, staged: Signals | None = None) -> None:
    """Rows for the husk's first thread that set every action.

    All actions are set, since a husk inherits ignored signals from its maker; with `staged`, only those that differ.
    """
    wanted = {action.number: action for action in signals.actions}
    known = {action.number: action for action in staged.actions} if staged is not None else {}
    for number in range(1, SIGNALS + 1):
        if number in UNCATCHABLE:
            continue
        action = wanted.get(number, Action(number=number))
        if staged is not None and action == known.get(number, Action(number=number)):
            continue
        entry = ffi.new("lm_kernel_sigaction *")
        entry.handler = action.handler
        entry.flags = action.flags
        entry.restorer = action.restorer
        entry.mask = action.mask
        place = program.data(bytes(ffi.buffer(entry)))
        label = f"rt_sigaction of signal {number}"
        program.call(label, numbers.SYS_rt_sigaction, number, place, 0, SIGNAL_SET_SIZE)


def late_signals(present: Sequence[bytes], described: Sequence[bytes]) -> list[bytes]:
    """What has come into one queue since it was described.

    The kernel appends, and takes nothing away from a stopped process, except that SIGCONT and SIGSTOP clear each other.
    What the process's own timers sent is left out: they run on at the destination.
    """
    left = list(described)
    late = []
    for information in present:
        if information in left:
            left.remove(information)
        elif not from_own_timer(information):
            late.append(information)
    return late


def takes_any(mask: int, pending: Iterable[bytes]) -> bool:
    """Whether a thread with the signal mask `mask` is going to take one of these signals."""
    return any(not mask >> (signal_number(information) - 1) & 1 for information in pending)


def timer_identifier(information: bytes) -> int:
    """The id of the POSIX timer that sent a signal whose code is SI_TIMER."""
    return int(ffi.cast("lm_signal_information *", ffi.from_buffer(information)).si_timerid)


def without_expired(pending: Sequence[bytes], alarm: bool, timers: frozenset[int]) -> tuple[bytes, ...]:
    """Pending signals without those of timers that are described as still running: they run out at the
    destination again.
    """
    return tuple(
        information
        for information in pending
        if not from_own_timer(information)
        or not (timer_identifier(information) in timers if signal_code(information) == lib.SI_TIMER else alarm)
    )


def from_own_timer(information: bytes) -> bool:
    """Whether a timer of the process itself sent the signal: a POSIX timer, or the one of alarm(2)."""
    code = signal_code(information)
    return code == lib.SI_TIMER or (code == lib.SI_KERNEL and signal_number(information) == signal.SIGALRM)


def sent_after_resume(
    signals: Signals, thread_queues: Iterable[tuple[int, Sequence[bytes]]]
) -> list[tuple[int | None, int]]:
    """(thread id or None for the process, signal) that the worker sends when the threads have their final state.

    These are the pending ones that no row can queue, and the stop of a process that was stopped, which comes last.
    """
    waiting: list[tuple[int | None, int]] = [
        (thread_id, signal_number(information))
        for thread_id, queue in thread_queues
        for information in queue
        if signal_number(information) in NOT_QUEUED
    ]
    waiting += [(None, signal_number(item)) for item in signals.pending if signal_number(item) in NOT_QUEUED]
    if signals.stopped:
        waiting.append((None, int(signal.SIGSTOP)))
    return waiting
