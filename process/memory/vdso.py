"""The vdso: code that the kernel maps into every process, called instead of system calls (vdso(7)).

It is an ELF file whose functions read data pages of the kernel, [vvar] and its like, at a fixed distance. It differs
from kernel to kernel, and with the processor. A process keeps addresses into it for ever. So if the destination's
kernel has other code, the source's stays at its address as a *bridge*: every function begins with a jump to the same
function of the destination's own vdso, or makes the system call if there is none. elf(5) has the parts of an ELF file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from live_migration.kernel.arch.arch import instructions
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.memory.maps import MapEntry, maps

NAME = "[vdso]"
# The kernel's own is two pages long, with room for growth.
MOST_CODE = 1 << 16
MOST_SECTIONS = 64
MOST_SYMBOLS = 128
LONGEST_NAME = 64
ELF_MAGIC = b"\x7fELF\x02\x01"
# e_machine, e_phoff, e_shoff, e_phentsize, e_phnum, e_shentsize, e_shnum
ELF_HEADER = struct.Struct("<18xH12xQQ6xHHHH2x")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
PT_LOAD, SHT_DYNSYM, STT_FUNC = 1, 11, 2
PREFIX = "__vdso_"

# What the functions are as system calls, with the same arguments and results (vdso(7), x86-64 functions).
CALLS = {
    "clock_gettime": numbers.SYS_clock_gettime,
    "clock_getres": numbers.SYS_clock_getres,
    "gettimeofday": numbers.SYS_gettimeofday,
    "time": numbers.SYS_time,
    "getcpu": numbers.SYS_getcpu,
    "getrandom": numbers.SYS_getrandom,
}
# Its state, which the program keeps, belongs to one kernel's code: so it is always the call, never another function.
BY_CALL_ALONE = frozenset({"getrandom"})
# A program with an enclave has a device mapped, and is refused for that.
WITHOUT_CALL = frozenset({"sgx_enter_enclave"})

ALIGNMENT = 16
# The longest of what is written over a function's beginning.
PATCH_ROOM = 32


@dataclass(frozen=True)
class EntryPoint:
    """A function of a vdso: its name without the prefix, where it begins in the image, and its length, in bytes."""

    name: str
    offset: int
    size: int


def read_code(pid: int, mappings: Iterable[MapEntry]) -> bytes:
    """The code in a process's [vdso], b"" if it has none. Raises OSError, ProcessGone."""
    for mapping in mappings:
        if mapping.path == NAME:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                return os.pread(memory.fileno(), min(mapping.end - mapping.start, MOST_CODE + 1), mapping.start)
    return b""


def own_code() -> bytes:
    """The code that this host's kernel has. Raises OSError."""
    return read_code(os.getpid(), maps(os.getpid()))


def digest(code: bytes) -> str:
    """What distinguishes one kernel's code from another's, "" for none."""
    return hashlib.sha256(code).hexdigest() if code else ""


def entry_points(code: bytes) -> list[EntryPoint]:
    """The functions of a vdso in the order of their places, each once. Raises ValueError for what is not one."""
    try:
        table, names = _symbol_table(code)
        found: dict[int, EntryPoint] = {}
        for place in range(0, len(table), SYMBOL.size):
            name, information, _, section, value, size = SYMBOL.unpack_from(table, place)
            if information & 0xF != STT_FUNC or section == 0:
                continue
            entry = EntryPoint(_name(names, name).removeprefix(PREFIX), value, size)
            if not 0 < size <= len(code) or value > len(code) - size:
                raise ValueError(f"its function {entry.name} is not inside")
            if found.setdefault(value, entry) != entry:
                raise ValueError(f"its functions {entry.name} and {found[value].name} are at one place")
    except (struct.error, OverflowError):
        raise ValueError("its vdso is cut off") from None
    return [found[value] for value in sorted(found)]


def _symbol_table(code: bytes) -> tuple[bytes, bytes]:
    """The table of dynamic symbols and that of their names."""
    if not code.startswith(ELF_MAGIC) or len(code) > MOST_CODE:
        raise ValueError("its vdso is no ELF file")
    machine, segments, sections, segment_size, segment_count, size, count = ELF_HEADER.unpack_from(code)
    if machine != instructions.ELF_MACHINE or segment_size != PROGRAM_HEADER.size or size != SECTION_HEADER.size:
        raise ValueError("its vdso is of another architecture")
    if max(segment_count, count) > MOST_SECTIONS:
        raise ValueError("its vdso has too many parts")
    loaded = [PROGRAM_HEADER.unpack_from(code, segments + i * segment_size) for i in range(segment_count)]
    if [(offset, address) for kind, _, offset, address, *_ in loaded if kind == PT_LOAD] != [(0, 0)]:
        raise ValueError("its vdso is not loaded in one piece")
    headers = [SECTION_HEADER.unpack_from(code, sections + i * size) for i in range(count)]
    for header in headers:
        if header[1] == SHT_DYNSYM:
            table = _part(code, header[4], header[5])
            if header[9] != SYMBOL.size or len(table) > MOST_SYMBOLS * SYMBOL.size or header[6] >= count:
                raise ValueError("its vdso has a broken symbol table")
            names = headers[header[6]]
            return table[: len(table) // SYMBOL.size * SYMBOL.size], _part(code, names[4], names[5])
    raise ValueError("its vdso has no symbols")


def _part(code: bytes, offset: int, size: int) -> bytes:
    if offset > len(code) or size > len(code) - offset:
        raise ValueError("its vdso is cut off")
    return code[offset : offset + size]


def _name(names: bytes, place: int) -> str:
    end = names.find(b"\0", place, place + LONGEST_NAME)
    name = names[place:end] if end > place else b""
    if not name.isascii() or not name.decode("ascii").isidentifier():
        raise ValueError("its vdso has a function without a name")
    return name.decode("ascii")


def make_bridge(code: bytes, own: Mapping[str, int]) -> bytes:
    """The source's `code`, in which every function leads to where `own`, name -> address, has it, or to the system
    call.

    Raises ValueError, with the end of a sentence on the source's kernel, if that cannot be done."""
    entries = entry_points(code)
    image = bytearray(code)
    limits = [entry.offset for entry in entries[1:]] + [len(code)]
    free = -(-len(code.rstrip(b"\0")) // ALIGNMENT) * ALIGNMENT
    for entry, following in zip(entries, limits, strict=True):
        stub = _stub(entry.name, own)
        room = min(entry.size, following - entry.offset)
        if len(stub) > room:
            if room < instructions.SHORT_JUMP or free + len(stub) > len(image):
                raise ValueError(f"there is no room in its vdso to lead {entry.name} elsewhere")
            image[free : free + len(stub)] = stub
            stub = instructions.short_jump(free - entry.offset)
            free += -(-PATCH_ROOM // ALIGNMENT) * ALIGNMENT
        image[entry.offset : entry.offset + len(stub)] = stub
    return bytes(image)


def _stub(name: str, own: Mapping[str, int]) -> bytes:
    """What a function does on this kernel."""
    if name in own and name not in BY_CALL_ALONE:
        return instructions.jump(own[name])
    if name == "getrandom":
        # With an opaque_len of ~0 __vdso_getrandom only tells of its state.
        return instructions.call_unless_all_ones(CALLS[name])
    if name in CALLS:
        return instructions.call(CALLS[name])
    if name in WITHOUT_CALL:
        return instructions.NOT_THERE
    raise ValueError(f"its vdso has a function that is not known here, {name}")


def is_passable(code: bytes, offset: int) -> bool:
    """Whether a thread that stands at `offset` of the code may go on in a bridge made of it: before the first
    instruction of a function, or at its system call, from where it reads nothing of the kernel's data any more.

    The data pages are zeros under a bridge, which the functions take for a clock that only the kernel can read; but
    some do not check the clock's kind (time(2), the coarse clocks, clock_getres). Raises ValueError as
    `entry_points`."""
    if any(entry.offset == offset for entry in entry_points(code)):
        return True
    if any(entry.offset < offset < entry.offset + PATCH_ROOM for entry in entry_points(code)):
        return False
    return instructions.SYSCALL in (code[offset : offset + 2], code[offset - 2 : offset])
