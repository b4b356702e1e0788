"""Remote syscalls in a process that is not ours: what they use of it, and where their frame may stand
(see sigreturn_path.h)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from live_migration._lm import ffi, lib
from live_migration.kernel.arch.arch import RED_ZONE, instructions
from live_migration.kernel.errors import ProcessGone, check
from live_migration.kernel.memory.maps import MapEntry
from live_migration.kernel.memory.pagemap import present_runs
from live_migration.kernel.tracing import tracee

CHUNK = 4 << 20
PAGE = os.sysconf("SC_PAGESIZE")
FRAME_ALIGNMENT = 64
# elf(5), 64 bits: e_phoff, e_phentsize and e_phnum in the header; a PT_LOAD's fields.
ELF_MAGIC = b"\x7fELF\x02\x01"
ELF_HEADER = struct.Struct("<32xQ14xHH4x")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
PT_LOAD, PF_X = 1, 1


@dataclass(frozen=True)
class Gadgets:
    """Addresses, in the process, of `syscall; ret`, of code that calls rt_sigreturn and of `leave; ret` (0: none).

    `padding` is a place for a frame that needs no stack (see find_padding), 0 where there is none."""

    syscall_return: int
    signal_return: int
    leave_return: int = 0
    padding: int = 0


def frame_room(xstate: bytes = b"") -> int:
    """Bytes of a frame with this vector state (b"": that of most threads), a multiple of its alignment."""
    return int(lib.lm_sigreturn_frame_room(xstate, len(xstate)))


def find_gadgets(pid: int, mappings: Iterable[MapEntry]) -> Gadgets | None:
    """Search the process's own program text, the C library first; None if something that every remote syscall needs is
    missing. Reads memory. Raises OSError."""
    entries = list(mappings)
    executable = [m for m in entries if "x" in m.permissions and m.path != "[vsyscall]"]
    executable.sort(key=lambda m: ("libc" not in m.path, "ld-" not in m.path, m.end - m.start))
    syscall_return = signal_return = leave_return = None
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        padding = find_padding(memory.fileno(), entries)
        for start, text in _pieces(memory.fileno(), executable):
            if syscall_return is None and (at := text.find(instructions.SYSCALL_RETURN)) >= 0:
                syscall_return = start + at
            if leave_return is None and (at := text.find(instructions.LEAVE_RETURN)) >= 0:
                leave_return = start + at
            for pattern in instructions.SIGNAL_RETURN:
                if signal_return is None and (at := text.find(pattern)) >= 0:
                    signal_return = start + at
            if syscall_return is not None and signal_return is not None and leave_return is not None:
                break
    if syscall_return is None or signal_return is None:
        return None
    # No handler of a signal could run in the padding: it needs a way round it.
    return Gadgets(syscall_return, signal_return, leave_return or 0, padding if leave_return else 0)


def _pieces(memory: int, mappings: Iterable[MapEntry]) -> Iterator[tuple[int, bytes]]:
    for mapping in mappings:
        for start in range(mapping.start, mapping.end, CHUNK):
            # Pieces overlap a little, so that no sequence is cut in two.
            length = min(CHUNK + len(instructions.SIGNAL_RETURN[0]), mapping.end - start)
            try:
                yield start, os.pread(memory, length, start)
            except OSError:
                break


def find_padding(memory: int, mappings: Iterable[MapEntry]) -> int:
    """The address of room for a frame that no program has a use for: between the end of an executable segment of an
    ELF file and the end of its last page, where the file has zeros. 0 if there is none.

    `memory` is an open /proc/PID/mem. The file's own header tells the end (elf(5)), not the last byte that is not zero:
    a table at the end of the text may end in zeros on purpose."""
    room = frame_room()
    heads: dict[tuple[str, int], int] = {}
    for mapping in mappings:
        file = (mapping.device, mapping.inode)
        if mapping.inode and mapping.offset == 0:
            heads[file] = mapping.start
        if mapping.inode and mapping.permissions == "r-xp" and file in heads:
            for offset, size in _executable_segments(memory, heads[file]):
                if offset & -PAGE != mapping.offset or -(-(offset + size) // PAGE) * PAGE != (
                    mapping.offset + mapping.end - mapping.start
                ):
                    continue
                place = -(-(mapping.start + offset + size - mapping.offset) // FRAME_ALIGNMENT) * FRAME_ALIGNMENT
                if place + room <= mapping.end and _is_zero(memory, place, mapping.end):
                    return place
    return 0


def _executable_segments(memory: int, head: int) -> list[tuple[int, int]]:
    """Offset and size in the file of an ELF file's executable segments, given where its first page is mapped."""
    try:
        content = os.pread(memory, PAGE, head)
    except OSError:
        return []
    if not content.startswith(ELF_MAGIC):
        return []
    place, size, count = ELF_HEADER.unpack_from(content, 0)
    if size != PROGRAM_HEADER.size or place + size * count > len(content):
        return []
    fields = [PROGRAM_HEADER.unpack_from(content, place + index * size) for index in range(count)]
    return [(offset, length) for kind, flags, offset, _, _, length, _, _ in fields if kind == PT_LOAD and flags & PF_X]


def _is_zero(memory: int, start: int, end: int) -> bool:
    try:
        return not any(os.pread(memory, end - start, start))
    except OSError:
        return False


def place_frame(pid: int, gadgets: Gadgets, stack: tuple[int, int] | None) -> int | None:
    """Where the frame of a stopped leader's remote syscalls may be, given the stack [start, end) that the kernel gave
    the process: see choose_place. None if there is no place. Raises ProcessGone, OSError."""
    room = frame_room(tracee.get_xstate(pid))
    return choose_place(pid, gadgets, stack, tracee.get_registers(pid).stack_pointer, room)


def choose_place(
    pid: int, gadgets: Gadgets, stack: tuple[int, int] | None, stack_pointer: int, room: int
) -> int | None:
    """A place for `room` bytes, for a thread with this stack pointer: under the red zone, else at the stack's lower
    end if no page there was ever touched, else under the stack, which grows, else in the padding of program text.
    None if there is no place. Raises ProcessGone, OSError."""
    if stack is not None:
        start, end = stack
        below = (stack_pointer - RED_ZONE - room) & -FRAME_ALIGNMENT
        if start <= below and stack_pointer <= end:
            return below
        elsewhere = not start <= stack_pointer <= end
        if elsewhere and end - start > room and not present_runs(pid, [(start, start + -(-room // PAGE) * PAGE)]):
            return start
        if _grow(pid, start - room):
            return start - room
    return gadgets.padding if gadgets.padding and room <= frame_room() else None


def _grow(pid: int, place: int) -> bool:
    """Make the stack reach down to `place`, as a touch by the process itself would. Of all ways to write from outside,
    the kernel grows a stack only for /proc/PID/mem. False if it does not: because of the writer's limit, which counts
    instead of the process's, or because another mapping is near."""
    try:
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            # What is there already, when it has grown so far before, stays.
            os.pwrite(memory.fileno(), os.pread(memory.fileno(), 1, place), place)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    except OSError:
        return False
    return True


def remote_syscall(pid: int, gadgets: Gadgets, frame: int, number: int, *arguments: int) -> int:
    """Make one system call in the stopped thread `pid`, seized with TRACESYSGOOD; its result.

    Raises OSError with the call's own error or for a failure to make it (ENOEXEC: the process's code is not what it
    was when the gadgets were found), ProcessGone."""
    way = ffi.new("struct lm_sigreturn_path *")
    way.syscall_return, way.signal_return, way.frame = gadgets.syscall_return, gadgets.signal_return, frame
    # Handlers of signals run under a frame on the stack; on the thread's own stack they could overwrite it.
    way.leave_return = gadgets.leave_return if frame == gadgets.padding else 0
    result = ffi.new("int64_t *")
    words = [argument & ((1 << 64) - 1) for argument in arguments]
    try:
        way.memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    try:
        _check_gadgets(way.memory, gadgets)
        numbers = ffi.new("uint64_t[6]", words)
        check(lib.lm_remote_syscall(pid, way, number, numbers, result), pid)
    finally:
        os.close(way.memory)
    return check(result[0], pid)


def _check_gadgets(memory: int, gadgets: Gadgets) -> None:
    """Check that the code is still there: a library may have been unmapped, and a thread that is set there would end
    its process."""
    ways = [
        (gadgets.syscall_return, (instructions.SYSCALL_RETURN,)),
        (gadgets.signal_return, instructions.SIGNAL_RETURN),
    ]
    if gadgets.leave_return:
        ways.append((gadgets.leave_return, (instructions.LEAVE_RETURN,)))
    for address, patterns in ways:
        try:
            code = os.pread(memory, max(map(len, patterns)), address)
        except OSError:
            code = b""
        if not code.startswith(patterns):
            raise OSError(errno.ENOEXEC, "the code of the process that brings its threads home has changed")
