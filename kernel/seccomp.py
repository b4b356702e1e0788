"""What seccomp filters answer to a system call: their programs run over it, as the kernel does (seccomp(2)).

Of an argument that is an address only the process itself will know the value. Where a program looks at one, both ways
are gone, and the worst answer counts.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from live_migration.kernel.arch.arch import instructions

INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter (linux/filter.h)
MOST_STEPS = 200_000
WORD = 0xFFFFFFFF
ACTIONS = 0xFFFF0000
# linux/seccomp.h
KILL_THREAD, ERRNO, USER_NOTIF, TRACE, LOG, ALLOW = 0, 0x00050000, 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
# linux/bpf_common.h: classes, modes of a load, and what is added to them
LD, LDX, ST, STX, ALU, JMP, RET = range(7)
IMMEDIATE, ABSOLUTE, MEMORY = 0x00, 0x20, 0x60
FROM_X, ALWAYS, TO_X, RETURN_A = 0x08, 0x00, 0x00, 0x10
SIZE_OF_DATA = 64  # struct seccomp_data
ARITHMETIC: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a,
    0xA0: lambda a, b: a ^ b,
}
COMPARISONS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: a & b != 0,
}


@dataclass(frozen=True)
class Call:
    """A system call. An argument that nobody knows yet is None."""

    number: int
    arguments: tuple[int | None, ...] = ()


class Answer(enum.IntEnum):
    """What a call leads to, the worst last."""

    ALLOWED = 0
    DENIED = 1
    """It fails, and the thread goes on."""
    LETHAL = 2
    """The thread or the process is killed, or gets a SIGSYS."""


def answer_of(programs: Iterable[bytes], call: Call) -> Answer:
    """What a chain of filters answers to a call: of all answers that may come, the worst."""
    data = _seccomp_data(call)
    worst = Answer.ALLOWED
    for program in programs:
        for action in _actions(program, data):
            worst = max(worst, _answer(action))
    return worst


def may_notify(program: bytes) -> bool:
    """May a filter ask another process (SECCOMP_RET_USER_NOTIF)? One that computes its answers may say anything."""
    return any(
        code & 7 == RET and (code & 0x18 == RETURN_A or k & ACTIONS == USER_NOTIF)
        for code, _, _, k in INSTRUCTION.iter_unpack(program)
    )


def _answer(action: int) -> Answer:
    if action in (ALLOW, LOG):
        return Answer.ALLOWED
    return Answer.DENIED if action in (ERRNO, TRACE) else Answer.LETHAL


def _seccomp_data(call: Call) -> dict[int, int | None]:
    """The words of struct seccomp_data by their offsets; where the call is made from is not known."""
    data: dict[int, int | None] = {0: call.number, 4: instructions.AUDIT_ARCHITECTURE, 8: None, 12: None}
    for index in range(6):
        value = call.arguments[index] if index < len(call.arguments) else 0
        data[16 + 8 * index] = None if value is None else value & WORD
        data[20 + 8 * index] = None if value is None else value >> 32 & WORD
    return data


@dataclass
class _Machine:
    """The state of a run: where it is, its registers and its memory."""

    place: int
    a: int | None
    x: int | None
    memory: list[int | None]


def _actions(program: bytes, data: dict[int, int | None]) -> Iterator[int]:
    """All the actions that a program may come to. A program never jumps back, so every way ends."""
    code = list(INSTRUCTION.iter_unpack(program))
    ways = [_Machine(0, 0, 0, [0] * 16)]
    steps = 0
    while ways:
        state = ways.pop()
        while (outcome := _step(code, data, state)) is None:
            steps += 1
            if state.place < 0:
                # Both ways: the one not taken now is kept.
                other = -state.place
                state.place = code_target(code, other, taken=True)
                ways.append(
                    _Machine(code_target(code, other, taken=False), state.a, state.x, list(state.memory))
                )
        yield outcome & ACTIONS
        if steps > MOST_STEPS:
            yield KILL_THREAD
            return


def code_target(code: Sequence[tuple[int, int, int, int]], place: int, *, taken: bool) -> int:
    """Where a conditional jump, the instruction before `place`, leads."""
    _, true, false, _ = code[place - 1]
    return place + (true if taken else false)


def _step(
    code: Sequence[tuple[int, int, int, int]], data: dict[int, int | None], state: _Machine
) -> int | None:
    """Run one instruction. Returns the value of a return; a place below 0 says that a jump may go both ways."""
    what, _, _, k = code[state.place]
    state.place += 1
    kind = what & 7
    if kind == RET:
        return k if what & 0x18 != RETURN_A else (KILL_THREAD if state.a is None else state.a)
    if kind in (LD, LDX):
        mode = what & 0xE0
        value = (
            k
            if mode == IMMEDIATE
            else data.get(k)
            if mode == ABSOLUTE
            else state.memory[k]
            if mode == MEMORY
            else SIZE_OF_DATA
        )
        if kind == LD:
            state.a = value
        else:
            state.x = value
    elif kind in (ST, STX):
        state.memory[k] = state.a if kind == ST else state.x
    elif kind == ALU:
        return _compute(what, k, state)
    elif kind == JMP:
        _jump(what, k, code, state)
    elif what & 0xF8 == TO_X:
        state.x = state.a
    else:
        state.a = state.x
    return None


def _compute(what: int, k: int, state: _Machine) -> int | None:
    operand = state.x if what & FROM_X else k
    if what & 0xF0 == 0x30 and operand == 0:
        return KILL_THREAD  # A division by zero ends a program, with 0.
    known = state.a is not None and operand is not None
    state.a = ARITHMETIC[what & 0xF0](state.a or 0, operand or 0) & WORD if known else None
    return None


def _jump(what: int, k: int, code: Sequence[tuple[int, int, int, int]], state: _Machine) -> None:
    if what & 0xF0 == ALWAYS:
        state.place += k
        return
    operand = state.x if what & FROM_X else k
    if state.a is None or operand is None:
        state.place = -state.place
        return
    state.place = code_target(code, state.place, taken=COMPARISONS[what & 0xF0](state.a, operand))
