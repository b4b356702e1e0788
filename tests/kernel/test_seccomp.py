"""What seccomp filters answer to calls: by hand, and compared with what the kernel does."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.seccomp import Answer, Call, answer_of, may_notify

LOAD, LOAD_IMMEDIATE, LOAD_MEMORY, STORE, RETURN, RETURN_A = 0x20, 0x00, 0x60, 0x02, 0x06, 0x16
EQUAL, GREATER, SET, JUMP, AND, TO_X, EQUAL_X, DIVIDE_X = 0x15, 0x25, 0x45, 0x05, 0x54, 0x07, 0x1D, 0x3C
KILL, ERRNO, NOTIFY, LOG, ALLOW = 0x80000000, 0x00050001, 0x7FC00000, 0x7FFC0000, 0x7FFF0000
NUMBER, ARCHITECTURE, FIRST = 0, 4, 16


def program(*steps: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def stop(value: int) -> tuple[int, int, int, int]:
    return (RETURN, 0, 0, value)


def load(offset: int) -> tuple[int, int, int, int]:
    return (LOAD, 0, 0, offset)


ONLY_FIVE = program(load(FIRST), (EQUAL, 0, 1, 5), stop(ALLOW), stop(KILL))


def test_an_argument_decides() -> None:
    assert answer_of([ONLY_FIVE], Call(1, (5,))) is Answer.ALLOWED
    assert answer_of([ONLY_FIVE], Call(1, (6,))) is Answer.LETHAL


def test_of_an_argument_that_nobody_knows_the_worst_counts() -> None:
    assert answer_of([ONLY_FIVE], Call(1, (None,))) is Answer.LETHAL
    harmless = program(load(FIRST), (AND, 0, 0, 7), (SET, 0, 1, 4), stop(ERRNO), stop(ALLOW))
    assert answer_of([harmless], Call(1, (None,))) is Answer.DENIED


def test_both_halves_of_an_argument() -> None:
    high = program(load(FIRST + 4), (EQUAL, 0, 1, 1), stop(ERRNO), stop(ALLOW))
    assert answer_of([high], Call(1, (1 << 32,))) is Answer.DENIED
    assert answer_of([high], Call(1, (1,))) is Answer.ALLOWED


def test_of_a_chain_the_worst_counts() -> None:
    assert answer_of([program(stop(LOG)), program(stop(ERRNO)), program(stop(ALLOW))], Call(1)) is Answer.DENIED
    assert answer_of([], Call(1)) is Answer.ALLOWED


def test_registers_and_memory() -> None:
    kept = program(
        load(NUMBER), (STORE, 0, 0, 3), (LOAD_IMMEDIATE, 0, 0, 9), (TO_X, 0, 0, 0), (LOAD_MEMORY, 0, 0, 3),
        (EQUAL_X, 0, 1, 0), stop(ERRNO), (JUMP, 0, 0, 1), stop(KILL), stop(ALLOW),
    )  # fmt: skip
    assert answer_of([kept], Call(9)) is Answer.DENIED
    assert answer_of([kept], Call(8)) is Answer.ALLOWED
    by_zero = program((LOAD_IMMEDIATE, 0, 0, 0), (TO_X, 0, 0, 0), load(NUMBER), (DIVIDE_X, 0, 0, 0), stop(ALLOW))
    assert answer_of([by_zero], Call(9)) is Answer.LETHAL


def test_too_many_ways_are_not_gone() -> None:
    asked = [step for _ in range(60) for step in (load(FIRST), (GREATER, 0, 0, 7))]
    assert answer_of([program(*asked, stop(ALLOW))], Call(1, (None,))) is Answer.LETHAL


def test_who_asks_another_process() -> None:
    assert may_notify(program(load(NUMBER), (EQUAL, 0, 1, 3), stop(NOTIFY), stop(ALLOW)))
    assert may_notify(program(load(NUMBER), (RETURN_A, 0, 0, 0)))
    assert not may_notify(ONLY_FIVE)


@pytest.mark.parametrize("argument", [0, 3, 4, 1 << 33])
def test_the_kernel_answers_the_same(argument: int) -> None:
    """A child gives itself a filter that looks at architecture, number and an argument, and makes the call."""
    filtered = program(
        load(ARCHITECTURE), (EQUAL, 1, 0, 0xC000003E), stop(KILL), load(NUMBER), (EQUAL, 0, 6, numbers.SYS_getpgid),
        load(FIRST + 4), (EQUAL, 1, 0, 0), stop(KILL), load(FIRST), (SET, 0, 1, 3), stop(ERRNO), stop(ALLOW),
    )  # fmt: skip
    code = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
code = {filtered!r}
buffer = ctypes.create_string_buffer(code)
described = (ctypes.c_ulong * 2)({len(filtered) // 8}, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall({numbers.SYS_seccomp}, 1, 0, described) == 0
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_ulong]
os._exit(3 if libc.syscall({numbers.SYS_getpgid}, {argument}) == -1 and ctypes.get_errno() == 1 else 4)
"""
    status = subprocess.run([sys.executable, "-c", code], check=False).returncode
    seen = {3: Answer.DENIED, 4: Answer.ALLOWED}.get(status, Answer.LETHAL)
    assert answer_of([filtered], Call(numbers.SYS_getpgid, (argument,))) is seen
