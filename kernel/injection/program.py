"""Programs of system calls: composed here, run by a stub inside a process with one stop at the end.

A ptrace stop costs tens of microseconds, a row of a program a fraction of one. A program is composed without
knowing where it will run; `encode` relocates it. Rows may use the results of earlier rows and addresses in
the program's own data area. The stub (of kernel/arch/) and the runner (kernel/injection/program.c) are C.

Layout of an area: [stub, LM_STUB_ROOM bytes] [rows of 64 bytes] [ending rows] [data].
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import SyscallFailed, check
from live_migration.kernel.injection.syscall_numbers import SYS_getpid, SYS_gettid, SYS_mmap, SYS_tgkill

_ROW_SIZE: int = lib.LM_ROW_SIZE
_WORDS = _ROW_SIZE // 8
_FIRST_ARGUMENT: int = lib.LM_ROW_ARGUMENTS // 8
_RESULT: int = lib.LM_ROW_RESULT // 8
_ARGUMENTS = 6
_MASK = (1 << 64) - 1
_ERRORS_FROM = -4095

# The signal with which a program reports that it has come to its end: it is ignored by default, and unlike a trap it
# changes nothing in the process (a forced SIGTRAP resets its own handler when it is ignored or blocked).
END_SIGNAL = signal.SIGURG


@dataclass(frozen=True)
class Result:
    """The result of an earlier row; may be an argument of a later row."""

    row: int


@dataclass(frozen=True)
class Data:
    """A place in the program's data area; as an argument it becomes its address in the process."""

    offset: int
    length: int

    def __add__(self, distance: int) -> Data:
        """The place `distance` bytes further on."""
        return Data(self.offset + distance, max(self.length - distance, 0))


@dataclass(frozen=True)
class OfEach:
    """A number that differs from thread to thread, by thread id, in a program that many threads run at the same time
    (kernel/injection/side_by_side.py)."""

    values: Mapping[int, int]


Value = int | Result | Data
Argument = Value | OfEach


class Ending(Enum):
    """What a program does after it has reported that it is done, when nobody holds it there."""

    TRAP = "trap"  # a process of ours: it must not run on
    GO_HOME = "go home"  # rt_sigreturn with a frame: the process of others


@dataclass(frozen=True)
class ProgramArea:
    """Memory for programs in a process, readable, writable and executable, with the stub's code at its start.

    Threads that run programs at the same time each need an area of their own, which `part` cuts off: the areas share
    the stub.
    """

    address: int
    size: int
    stub: int

    @property
    def table(self) -> int:
        """Where the rows of a program begin."""
        return self.address + (lib.LM_STUB_ROOM if self.stub == self.address else 0)

    @property
    def room(self) -> int:
        """Bytes for rows and data."""
        return self.address + self.size - self.table

    def part(self, offset: int, size: int) -> ProgramArea:
        """The area of `size` bytes at `offset`, a multiple of 64 from LM_STUB_ROOM up, with the same stub."""
        if offset < lib.LM_STUB_ROOM or offset + size > self.size or offset % _ROW_SIZE:
            raise ValueError(f"no part of {size} bytes at {offset} in an area of {self.size}")
        return ProgramArea(self.address + offset, size, self.stub)


@dataclass(frozen=True)
class Encoded:
    """A program made for one place: `content` goes to `table`; the stub starts with both addresses (see the
    arch file)."""

    content: bytes
    table: int
    ending: int


class ProgramTooLarge(Exception):
    """A program does not fit its area."""


class Program:
    """A list of system calls to be made inside a process, under composition."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._words = array("Q")
        self._labels: list[str | None] = []  # None: not a checked call
        self._is_checked = False
        self._from_data: list[int] = []  # indexes of words that are offsets into the data area
        self._from_table: list[int] = []  # indexes of words that are offsets into the table
        self._of_each: list[tuple[int, Mapping[int, int]]] = []  # indexes of words that differ between threads
        self._data_of_each: list[tuple[int, Mapping[int, int]]] = []  # the same for offsets into the data area
        self._data = bytearray()
        self._align = 64

    def __len__(self) -> int:
        """The number of rows, the ending's not counted."""
        return len(self._labels)

    def call(self, label: str, number: int, *arguments: Argument, check: bool = True) -> Result:
        """Append a system call.

        A checked call whose result is an error (-4095..-1) ends the program; `label` then says what was being
        done.
        """
        if len(arguments) > _ARGUMENTS:
            raise ValueError(f"{label}: {len(arguments)} arguments")
        copies = sum(1 for argument in arguments if isinstance(argument, Result))
        row = len(self._labels) + copies
        words = [number | (lib.LM_ROW_CHECKED if check else 0) << 32, 0, 0, 0, 0, 0, 0, 0]
        first = row * _WORDS + _FIRST_ARGUMENT
        for index, argument in enumerate(arguments):
            if isinstance(argument, int):
                words[_FIRST_ARGUMENT + index] = argument & _MASK
            elif isinstance(argument, Data):
                words[_FIRST_ARGUMENT + index] = argument.offset
                self._from_data.append(first + index)
            elif isinstance(argument, OfEach):
                self._of_each.append((first + index, argument.values))
            else:
                self._copy_result(argument, (first + index) * 8)
        self._words.extend(words)
        self._labels.append(label if check else None)
        self._is_checked |= check
        return Result(row)

    def call_each(self, label: str, number: int, *columns: array[int] | int) -> None:
        """Append a checked system call for each place in the columns, which are its arguments; a number is the same in
        all. This is for thousands of calls: nothing here takes a step of the interpreter for each."""
        count = max(len(column) for column in columns if isinstance(column, array))
        words = array("Q", bytes(count * _ROW_SIZE))
        words[0::_WORDS] = array("Q", [number | lib.LM_ROW_CHECKED << 32]) * count
        for index, column in enumerate(columns):
            one = column if isinstance(column, array) else array("Q", [column & _MASK]) * count
            words[_FIRST_ARGUMENT + index :: _WORDS] = one
        self._words.extend(words)
        self._labels += [label] * count
        self._is_checked = True

    def store(self, target: int | Data, value: Value) -> None:
        """Append a row that writes the 8 bytes `value` to `target`."""
        source = value
        flag: int = lib.LM_ROW_COPY if isinstance(value, Result) else lib.LM_ROW_STORE
        first = len(self._words) + _FIRST_ARGUMENT
        if isinstance(target, Data):
            self._from_data.append(first)
        if isinstance(source, Data):
            self._from_data.append(first + 1)
        if isinstance(source, Result):
            self._from_table.append(first + 1)
        self._append_row(
            flag,
            target.offset if isinstance(target, Data) else target,
            _result_offset(source)
            if isinstance(source, Result)
            else source.offset
            if isinstance(source, Data)
            else source,
        )

    def calls(self) -> list[tuple[int, tuple[int | None, ...]]]:
        """The system calls of the rows, each with its arguments; None for one that is known only when it runs."""
        unknown, from_table = set(self._from_data), set(self._from_table)
        for first in range(0, len(self._words), _WORDS):
            copied = first + _FIRST_ARGUMENT in from_table and self._words[first] >> 32 & lib.LM_ROW_COPY
            if copied:
                unknown.add(self._words[first + _FIRST_ARGUMENT] // 8)
        found: list[tuple[int, tuple[int | None, ...]]] = []
        for first in range(0, len(self._words), _WORDS):
            flags = self._words[first] >> 32
            if flags & (lib.LM_ROW_STORE | lib.LM_ROW_COPY | lib.LM_ROW_TRAP | lib.LM_ROW_HOME):
                continue
            places = range(first + _FIRST_ARGUMENT, first + _FIRST_ARGUMENT + _ARGUMENTS)
            arguments = tuple(None if place in unknown else self._words[place] for place in places)
            found.append((self._words[first] & 0xFFFFFFFF, arguments))
        return found

    def data(self, content: bytes, align: int = 8) -> Data:
        """Put bytes into the data area; `align` is a power of two up to 4096."""
        place = self._next_place(align)
        self._data += content
        return Data(place, len(content))

    def data_of_each(self, contents: Mapping[int, bytes]) -> Data:
        """Put bytes into the data area that differ from thread to thread, all of one length, a multiple of 8."""
        length = len(next(iter(contents.values())))
        place = self.reserve(length)
        for word in range(length // 8):
            values = {tid: int.from_bytes(one[8 * word : 8 * word + 8], "little") for tid, one in contents.items()}
            self._data_of_each.append((place.offset + 8 * word, values))
        return place

    def reserve(self, length: int, align: int = 8) -> Data:
        """Zeroed space in the data area, read back after the run."""
        place = self._next_place(align)
        self._data += bytes(length)
        return Data(place, length)

    def string(self, text: str | bytes) -> Data:
        """A NUL-terminated string in the data area; text is encoded as file names are."""
        content = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        return self.data(content + b"\0", align=1)

    def size(self) -> int:
        """So many bytes of an area's room are surely enough."""
        return (len(self._labels) + _ENDING_ROWS) * _ROW_SIZE + self._align + len(self._data)

    def room(self) -> int:
        """The same as a multiple of what its data is aligned to, and of a row: several programs in a row need that."""
        step = max(self._align, _ROW_SIZE)
        return -(-self.size() // step) * step

    def encode(
        self, address: int, size: int, ending: Ending = Ending.TRAP, end_signal: int = END_SIGNAL
    ) -> Encoded:
        """Relocate the program to a table at `address` with `size` bytes of room.

        `end_signal` is one that the process ignores by default and does not handle. Raises ProgramTooLarge.
        """
        table_end = len(self._words) * 8
        words = self._words + _ending(ending, int(end_signal))
        for index in _ENDING_ADDRESSES:
            words[len(self._words) + index] += address + table_end
        data_place = self._data_place(address)
        total = data_place - address + len(self._data)
        if total > size:
            raise ProgramTooLarge(f"{self.name}: {total} bytes do not fit into {size}")
        for index in self._from_data:
            words[index] += data_place
        for index in self._from_table:
            words[index] += address
        content = bytearray(total)
        content[: len(words) * 8] = memoryview(words).cast("B")
        content[data_place - address :] = self._data
        return Encoded(bytes(content), address, address + table_end)

    def outcome(self, pid: int, address: int, memory: bytes) -> Outcome:
        """Read what a run left: `memory` is the table's memory, from `address` on, afterwards.

        Raises SyscallFailed for the first checked row that failed.
        """
        if self._is_checked:
            words = array("Q", memory[: len(self._words) * 8])
            if max(words[_RESULT::_WORDS]) >= _ERRORS_FROM & _MASK:
                for row, label in enumerate(self._labels):
                    result = _signed(words[row * _WORDS + _RESULT])
                    if label is not None and _ERRORS_FROM <= result < 0:
                        raise SyscallFailed(self.name, label, row, -result, pid)
        return Outcome(memory, self._data_place(address) - address)

    def addresses(self) -> list[int]:
        """The numbers of the 64-bit words of an encoded program that are addresses in it."""
        ending = [len(self._words) + index for index in _ENDING_ADDRESSES]
        return [*self._from_data, *self._from_table, *ending]

    def of_each(self, address: int) -> list[tuple[int, Mapping[int, int]]]:
        """The numbers of the 64-bit words of the program, encoded for `address`, that differ from thread to thread, and
        what they are, by thread id."""
        data = self._data_place(address) - address
        return self._of_each + [((data + offset) // 8, values) for offset, values in self._data_of_each]

    def _data_place(self, address: int) -> int:
        """Where the data of a table at `address` begins."""
        rows_end = address + len(self._words) * 8 + _ENDING_ROWS * _ROW_SIZE
        return -(-rows_end // self._align) * self._align

    def _append_row(self, flags: int, *arguments: int) -> None:
        words = [flags << 32, *(argument & _MASK for argument in arguments)]
        self._words.extend(words + [0] * (_WORDS - len(words)))
        self._labels.append(None)

    def _copy_result(self, result: Result, target: int) -> None:
        first = len(self._words) + _FIRST_ARGUMENT
        self._from_table += (first, first + 1)
        self._append_row(lib.LM_ROW_COPY, target, _result_offset(result))

    def _next_place(self, align: int) -> int:
        if align & (align - 1) or not 1 <= align <= 4096:
            raise ValueError(f"alignment {align}")
        self._align = max(self._align, align)
        self._data += bytes(-len(self._data) % align)
        return len(self._data)


class Outcome:
    """What a program that came to its end has left: results and data."""

    def __init__(self, memory: bytes, data_place: int) -> None:
        self._memory = memory
        self._data_place = data_place

    def result(self, result: Result) -> int:
        """The result of a row, -errno for a call that failed unchecked."""
        place = (result.row * _WORDS + _RESULT) * 8
        return int.from_bytes(self._memory[place : place + 8], "little", signed=True)

    def read(self, data: Data) -> bytes:
        """The bytes that a place in the data area holds after the run."""
        start = self._data_place + data.offset
        return self._memory[start : start + data.length]


_ENDING_ROWS: int = lib.LM_ENDING_ROWS
_ENDING_ADDRESSES = [row * _WORDS + _FIRST_ARGUMENT + argument for row in (1, 3) for argument in (0, 1)]
"""The numbers of the words of an ending that are addresses in it: those of its copying rows."""


@functools.cache
def _ending(ending: Ending, end_signal: int) -> array[int]:
    """The rows by which a program tells its tracer that it is done: tgkill(getpid(), gettid(), end_signal).

    The program itself gets the ids, since they are those of the process's own PID namespace. Addresses in it are
    offsets.
    """

    def copy_result(row: int, argument: int) -> list[int]:
        target = lib.LM_ENDING_TELLS * _ROW_SIZE + (_FIRST_ARGUMENT + argument) * 8
        return [lib.LM_ROW_COPY << 32, target, row * _ROW_SIZE + _RESULT * 8, 0, 0, 0, 0, 0]

    rows = [
        [SYS_getpid, 0, 0, 0, 0, 0, 0, 0],
        copy_result(0, 0),
        [SYS_gettid, 0, 0, 0, 0, 0, 0, 0],
        copy_result(2, 1),
        [SYS_tgkill, 0, 0, end_signal, 0, 0, 0, 0],
        [(lib.LM_ROW_TRAP if ending is Ending.TRAP else lib.LM_ROW_HOME) << 32, 0, 0, 0, 0, 0, 0, 0],
    ]
    return array("Q", [word for row in rows for word in row])


def _result_offset(result: Result) -> int:
    return (result.row * _WORDS + _RESULT) * 8


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
_MAP_FIXED_NOREPLACE = 0x100000


def make_program_area(tid: int, size: int, address: int = 0) -> ProgramArea:
    """Map an area for programs into the stopped tracee `tid`, a process of ours, with one injected mmap.

    It searches a syscall instruction around the instruction pointer. `address` 0 lets the kernel choose;
    another one must be free (MAP_FIXED_NOREPLACE, mmap(2)). `size` is rounded up to whole pages.

    Raises ProcessGone; OSError of ptrace or of the mmap.
    """
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_FIXED_NOREPLACE if address else 0)
    place = call_in_husk(tid, SYS_mmap, address, size, _PROTECTION, flags, -1, 0)
    if _ERRORS_FROM <= place < 0:
        raise OSError(-place, f"mmap of {size} bytes in process {tid}: {os.strerror(-place)}")
    return adopt_program_area(tid, place, size)


def adopt_program_area(tid: int, address: int, size: int) -> ProgramArea:
    """Put the stub's code at the start of memory that is mapped already, readable, writable and
    executable."""
    check(lib.lm_memory_write(tid, address, lib.lm_stub_code(), lib.LM_STUB_ROOM), tid)
    return ProgramArea(address, size, address)


def call_in_husk(tid: int, number: int, *arguments: int) -> int:
    """Make one system call in the stopped tracee `tid`, a process of ours, by two stops; its result, -errno
    for an error.

    Its registers come back as they were. Raises ProcessGone; OSError of ptrace, ENOENT if no syscall
    instruction is found.
    """
    values = [argument & _MASK for argument in arguments]
    result = ffi.new("int64_t *")
    check(lib.lm_program_call(tid, number, values + [0] * (_ARGUMENTS - len(values)), result), tid)
    return int(result[0])


def run_in_husk(tid: int, area: ProgramArea, program: Program) -> Outcome:
    """Run a program in the stopped tracee `tid`, a process of ours, and wait for its end: one stop.

    All signals but END_SIGNAL are held back meanwhile. Afterwards the thread is stopped, its registers are
    spoilt.

    Raises SyscallFailed for a row that failed, ProgramTooLarge, ProcessGone, OSError of ptrace (EFAULT when
    the program itself faulted).
    """
    encoded = program.encode(area.table, area.room)
    places = ffi.new("struct lm_program_place[1]", [(tid, encoded.table, encoded.ending)])
    memory = run_placed(places, area, encoded.content)
    return program.outcome(tid, area.table, memory)


def run_placed(places: Any, area: ProgramArea, content: bytes) -> bytes:
    """Run the programs at `places` (struct lm_program_place[]) side by side, of which `content` is the memory at
    `area.table`; returns that memory afterwards. Raises ProcessGone, OSError of ptrace."""
    memory = bytearray(content)
    view = ffi.from_buffer(memory)
    error = lib.lm_program_run(places, len(places), area.stub, area.table, view, len(memory))
    ffi.release(view)
    check(error, places[0].tid)
    return bytes(memory)
