"""System calls in which the freeze caught a thread, and how each goes on at the destination.

What the kernel is about to return tells the kind (measured, and signal(7)):

    -512, -513, -514   the kernel makes the call again by itself: the registers are enough
    -4                 the call has no restart and would be seen to fail: it is wound back, unless a signal
    did it
    -516               the call goes on from state inside the kernel that does not travel (restart_syscall(2))

For the last kind the time that was left is described. The destination's thread makes the same call with that time,
which is interrupted at once, so that the kernel there has such state of its own; then the thread gets the source's
registers. How long was left: nanosleep(2) with a second argument tells it in memory; an absolute futex timeout does not
need it; otherwise it follows from when the thread fell asleep (process/threads/sleeps.py).

Such a call that has gone on once, after an earlier stop, shows as restart_syscall(2). The kernel function in which the
thread slept tells which call that was, or the code does. The arguments must not: those of a futex wait can be those of
a poll, and making the wrong call writes to memory. If neither tells, the program sees the call fail with EINTR.
"""

from __future__ import annotations

import errno

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.arch.arch import Registers, instructions
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import ProgramArea
from live_migration.kernel.tracing import tracee
from live_migration.process.threads.sleeps import EPOLL_WAITS, MAXIMUM_TIMEOUT, MILLISECOND, Slept

RESTART_WITH_BLOCK = -516
NANOSECONDS = 1_000_000_000
FUTEX_COMMAND = ~(int(lib.FUTEX_PRIVATE_FLAG) | int(lib.FUTEX_CLOCK_REALTIME))
MAXIMUM_POLL_ENTRIES = 1 << 20
TIME_OFFSET = 16
TIME_ARGUMENT = {numbers.SYS_nanosleep: 0, numbers.SYS_clock_nanosleep: 2, numbers.SYS_futex: 3}
GOES_ON = frozenset(
    {
        int(number)
        for number in (numbers.SYS_nanosleep, numbers.SYS_clock_nanosleep, numbers.SYS_futex, numbers.SYS_poll)
    }
)
ALL_SIGNALS = (1 << 64) - 1


class InterruptedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that has to be made anew with what is left of its time.

    `remaining` is in nanoseconds at the moment at which the process's clocks were described; `arguments` are the
    call's own. `touched` are the (address, length) places that the kernel reads or writes when the call is made.
    """

    number: int
    arguments: tuple[int, ...]
    remaining: int
    touched: tuple[tuple[int, int], ...] = ()


def call_made(state: Registers, code: bytes, seen: int | None) -> int | None:
    """The number of the call that the thread is in, None if it is not known.

    `code` are the bytes before its instruction pointer, `seen` the call in which it was seen asleep."""
    if state.syscall_number != numbers.SYS_restart_syscall:
        return state.syscall_number
    if seen is None:
        seen = instructions.call_number(code)
    return seen if seen in GOES_ON else None


def needs_time(state: Registers) -> bool:
    """Whether the thread was caught in a call of which it matters how long it has lasted."""
    number = state.syscall_number
    if number < 0:
        return False
    result = state.result
    if result == RESTART_WITH_BLOCK:
        return True
    interrupted = result == -errno.EINTR and number in EPOLL_WAITS
    return interrupted and 0 < state.arguments[3] <= MAXIMUM_TIMEOUT


def wound_back(state: Registers, already_slept: int, in_library: bool) -> Registers:
    """Before a call that has no restart; epoll_wait(2) with what is left of its timeout.

    The timeout is an argument in a register, which a call leaves as it was. It may only be changed if the code is known
    not to read it again: in a C library's function, which returns after the call.
    """
    if not in_library or not needs_time(state):
        return state.rewound()
    left = _remaining(state.arguments[3] * MILLISECOND, already_slept)
    shorter = (*state.arguments[:3], -(-left // MILLISECOND))
    return state.replaced(arguments=shorter).rewound()


def registers_to_resume(
    state: Registers,
    unblocked_signal: bool,
    code: bytes,
    read_memory: Reader,
    seen: Slept,
    in_library: bool = False,
) -> tuple[Registers, InterruptedCall | None]:
    """The registers with which a frozen thread goes on, and the call to be made anew if there is one.

    `unblocked_signal`: a signal waits that the thread will take when it runs; it then gets the EINTR that a handler's
    author expects. `code` are the bytes before the instruction pointer, `in_library` whether they are a C library's.
    Raises OSError when the time of a call cannot be read.
    """
    if state.syscall_number < 0:
        return state, None
    result = state.result
    if result == -errno.EINTR and lib.lm_never_restarted(state.syscall_number) and not unblocked_signal:
        return wound_back(state, seen.nanoseconds, in_library), None
    if result != RESTART_WITH_BLOCK:
        return state, None
    number = call_made(state, code, seen.call)
    if number is None:
        return state.replaced(result=-errno.EINTR, syscall_number=-1), None
    state = state.replaced(syscall_number=number)
    call = describe_call(number, state.arguments, read_memory, seen.nanoseconds)
    # Without a description the timeout is absolute, or the call is none of those: made again as it was.
    return (state.rewound(), None) if call is None else (state, call)


def is_c_library(path: str) -> bool:
    """Whether a mapping's path is that of a C library, whose calls stand in functions of their own."""
    name = path.rpartition("/")[2]
    return name.startswith(("libc.so", "libc-", "libpthread", "ld-musl", "libc.musl"))


class Reader:
    """Reads the frozen process's memory."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __call__(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`. Raises OSError when they are not there."""
        return tracee.read_memory(self.pid, address, length)


def describe_call(
    number: int, arguments: tuple[int, ...], read_memory: Reader, already_slept: int
) -> InterruptedCall | None:
    """What is left of a sleep, a futex wait or a poll; None when making the call again as it was is right."""
    if number in (numbers.SYS_nanosleep, numbers.SYS_clock_nanosleep):
        request, left = arguments[:2] if number == numbers.SYS_nanosleep else arguments[2:4]
        size = int(ffi.sizeof("lm_timespec"))
        if left:
            remaining = _nanoseconds(read_memory(left, size))
        else:
            remaining = _remaining(_nanoseconds(read_memory(request, size)), already_slept)
        return InterruptedCall(
            number=number, arguments=arguments, remaining=remaining, touched=((left, size),) if left else ()
        )
    if number == numbers.SYS_futex and arguments[1] & FUTEX_COMMAND == lib.FUTEX_WAIT:
        size = int(ffi.sizeof("lm_timespec"))
        remaining = _remaining(_nanoseconds(read_memory(arguments[3], size)), already_slept)
        return InterruptedCall(
            number=int(numbers.SYS_futex), arguments=arguments, remaining=remaining, touched=((arguments[0], 4),)
        )
    if number == numbers.SYS_poll:
        timeout = arguments[2] & MAXIMUM_TIMEOUT
        entries = min(arguments[1], MAXIMUM_POLL_ENTRIES)
        return InterruptedCall(
            number=int(numbers.SYS_poll),
            arguments=arguments,
            remaining=_remaining(timeout * MILLISECOND, already_slept),
            touched=((arguments[0], entries * int(ffi.sizeof("lm_poll_entry"))),),
        )
    return None


def _remaining(whole: int, already_slept: int) -> int:
    """What is left of a time. One that would be over is another's: the thread has woken and called again just then."""
    return whole - already_slept if already_slept < whole else whole


def _nanoseconds(raw: bytes) -> int:
    value = ffi.cast("lm_timespec *", ffi.from_buffer(raw))
    return int(value.tv_sec) * NANOSECONDS + int(value.tv_nsec)


def continue_call(tid: int, area: ProgramArea, call: InterruptedCall, source: Registers, elapsed: int = 0) -> Registers:
    """Make `call` in the stopped thread `tid` of the husk, interrupt it at once, and return its final registers.

    `area` is memory of programs that no thread uses now; `source` are the registers from the source; `elapsed` are the
    nanoseconds that have passed since the description. The places in `call.touched` must be present. If the call ends
    at once, because what it waits for has come, the registers returned have its result.
    """
    remaining = max(1, call.remaining - elapsed)
    setting = ffi.new("lm_timespec *")
    setting.tv_sec, setting.tv_nsec = divmod(remaining, NANOSECONDS)
    place = area.table + TIME_OFFSET
    tracee.write_memory(tid, area.table, instructions.SYSCALL.ljust(TIME_OFFSET, b"\0") + bytes(ffi.buffer(setting)))
    arguments = list(call.arguments)
    if call.number == numbers.SYS_poll:
        arguments[2] = min(-(-remaining // MILLISECOND), MAXIMUM_TIMEOUT)
    else:
        arguments[TIME_ARGUMENT[call.number]] = place
    tracee.set_signal_mask(tid, ALL_SIGNALS)
    before = tracee.get_registers(tid)
    tracee.set_registers(tid, before.at_call(area.table, call.number, *arguments))
    _enter_and_interrupt(tid)
    result = tracee.get_registers(tid).result
    if result == RESTART_WITH_BLOCK:
        return source
    return source.replaced(result=result, syscall_number=-1)


def _enter_and_interrupt(tid: int) -> None:
    """Let a stopped thread make the call it is about to make, with an interruption already waiting.

    Requires PTRACE_O_TRACESYSGOOD. The interruption is requested at the entry, so the call does not sleep for a moment.
    """
    tracee.resume_to_syscall(tid)
    stop = tracee.wait(tid)
    while stop.kind is not tracee.StopKind.SYSCALL:
        tracee.resume_to_syscall(tid)
        stop = tracee.wait(tid)
    tracee.interrupt(tid)
    tracee.resume(tid)
    while tracee.wait(tid).kind is not tracee.StopKind.INTERRUPT:
        tracee.resume(tid)
