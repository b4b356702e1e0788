"""System calls in which the freeze caught a thread, and how each goes on at the destination.

What the kernel is about to return says which kind it is (measured, and signal(7)):

    -512, -513, -514   the kernel makes the call again by itself: the registers are enough
    -4                 the call has no restart and would be seen to fail: it is wound back, unless a signal
    did it
    -516               the call goes on from state inside the kernel that does not travel (restart_syscall(2))

For the last kind the time that was left is described, and the destination's thread makes the same call with
it, entered
and interrupted at once, so that the kernel there has such state of its own; then the source's registers are
put in.
How long was left: nanosleep(2) with a second argument tells it in memory; an absolute futex timeout needs no telling;
otherwise it follows from when the thread fell asleep (`se.exec_start` in /proc/PID/sched, read while it sleeps). Where
that is not known the time is taken from the moment the sleep was first seen, else it is the whole: too long, never too
short.

Such a call that has gone on once, after an earlier stop, shows as restart_syscall(2). Which call that was tells the
kernel function in which the thread slept, or the code. Never its arguments: those of a futex wait can be those of a
poll, and making the wrong one writes to memory. Where neither tells, the call is seen to fail with EINTR.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from _lm import ffi, lib

from linux import syscall_numbers as numbers
from linux import tracee
from linux.arch_x86_64 import Registers
from linux.program import ProgramArea

RESTART_WITH_BLOCK = -516
# Calls that answer EINTR to a mere stop and have no way to go on (signal(7), "Interruption of system calls
# ... by stop signals").
NEVER_RESTARTED = frozenset(
    {
        numbers.SYS_epoll_wait,
        numbers.SYS_epoll_pwait,
        numbers.SYS_epoll_pwait2,
        numbers.SYS_rt_sigtimedwait,
        numbers.SYS_semop,
        numbers.SYS_semtimedop,
        numbers.SYS_io_getevents,
        numbers.SYS_io_pgetevents,
        numbers.SYS_recvfrom,
        numbers.SYS_recvmsg,
        numbers.SYS_recvmmsg,
        numbers.SYS_sendto,
        numbers.SYS_sendmsg,
        numbers.SYS_sendmmsg,
        numbers.SYS_read,
        numbers.SYS_readv,
        numbers.SYS_write,
        numbers.SYS_writev,
        numbers.SYS_accept,
        numbers.SYS_accept4,
        numbers.SYS_connect,
    }
)
EPOLL_WAITS = frozenset({numbers.SYS_epoll_wait, numbers.SYS_epoll_pwait})
NANOSECONDS = 1_000_000_000
MILLISECOND = 1_000_000
FUTEX_COMMAND = ~(int(lib.FUTEX_PRIVATE_FLAG) | int(lib.FUTEX_CLOCK_REALTIME))
# `mov $number, %eax; syscall`: how the number stands before the instruction pointer in nearly all code.
CALL_CODE_LENGTH = 7
MAXIMUM_POLL_ENTRIES = 1 << 20
MAXIMUM_TIMEOUT = 0x7FFFFFFF
SYSCALL_INSTRUCTION = b"\x0f\x05"
TIME_OFFSET = 16
TIME_ARGUMENT = {numbers.SYS_nanosleep: 0, numbers.SYS_clock_nanosleep: 2, numbers.SYS_futex: 3}
GOES_ON = frozenset(
    {
        int(number)
        for number in (numbers.SYS_nanosleep, numbers.SYS_clock_nanosleep, numbers.SYS_futex, numbers.SYS_poll)
    }
)
SMALLEST_ADDRESS = 4096
# The clock of a process or thread: a small negative number, of its id and its kind (clock_getcpuclockid(3)).
LOWEST_CLOCK = 0xFE000000
ALL_SIGNALS = (1 << 64) - 1
GOES_ON_SECONDS = 0.1


class InterruptedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that has to be made anew with what is left of its time.

    `remaining` is in nanoseconds at the moment the process's clocks were described; `arguments` are the
    call's own.
    `touched` are the (address, length) places that the kernel reads or writes when the call is made.
    """

    number: int
    arguments: tuple[int, ...]
    remaining: int
    touched: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sleep:
    """A look at a sleeping thread: when it fell asleep, by CLOCK_MONOTONIC, how often it had by then, in which call.

    `began` may be somewhat late, never early. `call` is the system call's number: of one that goes on by
    restart_syscall(2), its own; None where it is not known.
    """

    switches: int
    began: int
    call: int | None = None


@dataclass(frozen=True)
class Slept:
    """What the freeze has interrupted: nanoseconds that it had lasted, at least, and the call if it is known."""

    nanoseconds: int = 0
    call: int | None = None


NOT_SEEN = Slept()


def look_sleeps(tids: Iterable[int]) -> dict[int, Sleep]:
    """When each of these threads was last running; without those that run now or of which the kernel does not tell.

    The kernel tells it by the clock of the processor that the thread was on, which lags behind by the time that
    interrupts and a hypervisor took. So this thread goes to each of those processors for a moment, to read its clock.
    """
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    looked = {tid: found for tid in tids if (found := _scheduled(tid)) is not None and found[2] == "S"}
    clocks = _processor_clocks({processor for _, _, _, processor in looked.values()})
    return {
        # Without the processor's clock: it has slept at least since now.
        tid: Sleep(switches, min(began + clocks[processor], now) if processor in clocks else now, _sleeping_call(tid))
        for tid, (switches, began, _, processor) in looked.items()
    }


def _scheduled(tid: int) -> tuple[int, int, str, int] | None:
    """Voluntary context switches, time of last running (nanoseconds of its processor's clock), state, processor."""
    try:
        text = Path(f"/proc/{tid}/sched").read_text()
        fields = Path(f"/proc/{tid}/stat").read_text(errors="surrogateescape").rpartition(")")[2].split()
    except OSError:
        return None
    began = switches = None
    for line in text.splitlines():
        if line.startswith("se.exec_start"):
            began = round(float(line.rpartition(":")[2]) * MILLISECOND)
        elif line.startswith("nr_voluntary_switches"):
            switches = int(line.rpartition(":")[2])
    if began is None or switches is None:
        return None
    return switches, began, fields[0], int(fields[36])


def _processor_clocks(processors: Iterable[int]) -> dict[int, int]:
    """What to add to each processor's clock to have CLOCK_MONOTONIC; without those where this thread may not go."""
    allowed = os.sched_getaffinity(0)
    found = {}
    try:
        for processor in processors:
            try:
                os.sched_setaffinity(0, {processor})
            except OSError:
                continue
            # Giving way brings this thread's own last-running time up to now.
            os.sched_yield()
            own = _scheduled(threading.get_native_id())
            if own is not None:
                found[processor] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - own[1]
    finally:
        os.sched_setaffinity(0, allowed)
    return found


def slept(before: Sleep | None, tid: int, frozen_at: int) -> Slept:
    """What is known of the sleep that the freeze has interrupted at `frozen_at` (CLOCK_MONOTONIC).

    One voluntary context switch more than in the sleep seen `before` means that it is the same one: the freeze's own.
    """
    now = _scheduled(tid) if before is not None else None
    if before is None or now is None or now[0] != before.switches + 1:
        return NOT_SEEN
    return Slept(max(0, frozen_at - before.began), before.call)


def interrupted_sleeps(before: dict[int, Sleep]) -> dict[int, Sleep]:
    """While the threads stand still: those of these sleeps that the stop has interrupted, and not their own end."""
    return {
        tid: sleep
        for tid, sleep in before.items()
        if (now := _scheduled(tid)) is not None and now[0] == sleep.switches + 1
    }


def sleeps_gone_on(interrupted: dict[int, Sleep], seconds: float = GOES_ON_SECONDS) -> dict[int, Sleep]:
    """When the threads run again: those of the interrupted sleeps that have gone on, which restart_syscall(2) tells.

    A later stop then finds how long they have lasted in all. Waits at most so long for them."""
    found = {}
    deadline = time.monotonic() + seconds
    for tid, sleep in interrupted.items():
        while (now := _scheduled(tid)) is not None:
            if now[2] == "S" and now[0] > sleep.switches + 1:
                if _current_call(tid)[:1] == (numbers.SYS_restart_syscall,):
                    found[tid] = Sleep(now[0], sleep.began, sleep.call)
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.0005)
    return found


def longest_epoll_wait(tids: Iterable[int]) -> int:
    """Milliseconds of the longest timeout of an epoll_wait(2) that one of these threads sleeps in; 0 for none.

    A stop makes such a wait begin anew with all of its time."""
    longest = 0
    for tid in tids:
        number, *arguments = _current_call(tid) or (-1,)
        if number in EPOLL_WAITS:
            timeout = arguments[3] & 0xFFFFFFFF
            longest = max(longest, timeout if timeout <= MAXIMUM_TIMEOUT else 0)
    return longest


def _current_call(tid: int) -> tuple[int, ...]:
    """Number and six arguments of the system call in which a thread sleeps (proc_pid_syscall(5)); else empty."""
    try:
        number, *words = Path(f"/proc/{tid}/syscall").read_text().split()
    except (OSError, ValueError):
        return ()
    return (int(number), *(int(word, 16) for word in words[:6])) if number.isdecimal() else ()


def _sleeping_call(tid: int) -> int | None:
    """The call in which a thread sleeps; of one that goes on, the call that it was."""
    call = _current_call(tid)
    if call[:1] != (numbers.SYS_restart_syscall,):
        return call[0] if call else None
    try:
        function = Path(f"/proc/{tid}/wchan").read_text()
    except OSError:
        return None
    if function in ("", "0"):
        return None
    if function.startswith("futex"):
        return int(numbers.SYS_futex)
    if "poll" in function:
        return int(numbers.SYS_poll)
    # All others that set a restart block: one begins with the number of a clock, the other with an address.
    high, low = divmod(call[1], 1 << 32)
    is_clock = high in (0, 0xFFFFFFFF) and not SMALLEST_ADDRESS <= low < LOWEST_CLOCK
    return int(numbers.SYS_clock_nanosleep if is_clock else numbers.SYS_nanosleep)


def call_made(state: Registers, code: bytes, seen: int | None) -> int | None:
    """The number of the call that the thread is in, None where it is not known.

    `code` are the bytes before its instruction pointer, `seen` the call in which it was seen asleep."""
    if state.syscall_number != numbers.SYS_restart_syscall:
        return state.syscall_number
    if seen is None and code[-7:-6] == b"\xb8" and code[-2:] == SYSCALL_INSTRUCTION:
        seen = int.from_bytes(code[-6:-2], "little")
    return seen if seen in GOES_ON else None


def needs_time(state: Registers) -> bool:
    """Whether the thread was caught in a call of which it matters how long it has lasted."""
    if state.syscall_number < 0:
        return False
    if state.result == RESTART_WITH_BLOCK:
        return True
    interrupted = state.result == -errno.EINTR and state.syscall_number in EPOLL_WAITS
    return interrupted and 0 < state.arguments[3] <= MAXIMUM_TIMEOUT


def wound_back(state: Registers, already_slept: int, in_library: bool) -> Registers:
    """Before a call that has no restart; epoll_wait(2) with what is left of its timeout.

    The timeout is an argument in a register, which a call leaves as it was. It may only be changed where the code is
    known not to look at it again: in a C library's function, which returns after the call.
    """
    if not in_library or not needs_time(state):
        return state.rewound()
    left = _remaining(state.arguments[3] * MILLISECOND, already_slept)
    shorter = (*state.arguments[:3], -(-left // MILLISECOND))
    return state.replaced(arguments=shorter).rewound()


def decide(
    state: Registers,
    unblocked_signal: bool,
    code: bytes,
    read_memory: Reader,
    seen: Slept,
    in_library: bool = False,
) -> tuple[Registers, InterruptedCall | None]:
    """The registers with which a frozen thread is to go on, and the call to be made anew if there is one.

    `unblocked_signal`: a signal waits that the thread will take when it runs; it then gets the EINTR that a handler's
    author expects. `code` are the bytes before the instruction pointer, `in_library` whether they are a C library's.
    Raises OSError when the time of a call cannot be read.
    """
    if state.syscall_number < 0:
        return state, None
    if state.result == -errno.EINTR and state.syscall_number in NEVER_RESTARTED and not unblocked_signal:
        return wound_back(state, seen.nanoseconds, in_library), None
    if state.result != RESTART_WITH_BLOCK:
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
    """Make `call` in the stopped thread `tid` of the husk, interrupt it at once, and return its final
    registers.

    `area` is memory of programs that no thread uses now; `source` are the registers from the source;
    `elapsed` are the
    nanoseconds that have passed since the description. The places in `call.touched` must be present.
    A call that ends at once, because what it waits for has come, has its result in the registers returned.
    """
    remaining = max(1, call.remaining - elapsed)
    setting = ffi.new("lm_timespec *")
    setting.tv_sec, setting.tv_nsec = divmod(remaining, NANOSECONDS)
    place = area.table + TIME_OFFSET
    tracee.write_memory(tid, area.table, SYSCALL_INSTRUCTION.ljust(TIME_OFFSET, b"\0") + bytes(ffi.buffer(setting)))
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

    Requires PTRACE_O_TRACESYSGOOD. The interruption is asked for at the entry, so the call sleeps for no
    moment.
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
