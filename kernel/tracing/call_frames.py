"""Where a function's return address is, at any of its instructions: the call frame information of an ELF image.

It stands in .eh_frame, found by the table of .eh_frame_hdr (Linux Standard Base Core, 10.6), and is a small program of
rules (DWARF 5, 6.4). This module reads what compilers write for plain C functions, and refuses all else; it guesses
nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# elf(5), 64 bits: e_phoff, e_phentsize and e_phnum in the header.
ELF_MAGIC = b"\x7fELF\x02\x01"
ELF_HEADER = struct.Struct("<32xQ14xHH4x")
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
PT_GNU_EH_FRAME = 0x6474E550
# Version 1; four bytes relative to their place, four bytes, four bytes relative to the table (DW_EH_PE_...).
TABLE_START = b"\x01\x1b\x03\x3b"
TABLE_HEADER, TABLE_ENTRY = struct.Struct("<4siI"), struct.Struct("<ii")
RELATIVE_TO_PLACE = 0x1B
# The augmentation, code and data alignment, and column of the return address that x86-64 has (its psABI, 3.7).
AUGMENTATION, CODE_ALIGNMENT, DATA_ALIGNMENT, RETURN_ADDRESS = b"zR", 1, -8, 16
WORD = 8
MOST_ENTRIES, LONGEST_NUMBER = 1024, 9
# DW_CFA_...: how many LEB128 numbers follow. Of the saved registers, only the return address matters.
NO_RULE_OF_FRAME = {0x00: 0, 0x06: 1, 0x07: 1, 0x08: 1, 0x2E: 1}
ADVANCES = {0x02: "<B", 0x03: "<H", 0x04: "<I"}


@dataclass(frozen=True)
class Frame:
    """The end of a function's frame, before which its return address stands: the value of a register, by its DWARF
    number, and bytes to add."""

    register: int
    offset: int


def find_frame(image: bytes, place: int) -> Frame:
    """The frame at the instruction at offset `place` of a loaded ELF image.

    Raises ValueError if the image does not tell."""
    try:
        record = _record(image, place)
        start, length, common, rules = _description(image, record)
        if not start <= place < start + length:
            raise ValueError("no function is described there")
        # First the rules that all functions of the kind share, then its own.
        frame = _execute(image, common, _end(image, common[0]), None, 1)
        return _execute(image, (record, rules), _end(image, record), frame, place - start + 1)
    except (struct.error, IndexError, OverflowError):
        raise ValueError("its call frame information is cut off") from None


def _record(image: bytes, place: int) -> int:
    """The offset of the last record that begins before `place`."""
    if not image.startswith(ELF_MAGIC):
        raise ValueError("no ELF image")
    headers, size, count = ELF_HEADER.unpack_from(image)
    if size != PROGRAM_HEADER.size:
        raise ValueError("no ELF image of 64 bits")
    for index in range(count):
        kind, _, offset, *_ = PROGRAM_HEADER.unpack_from(image, headers + index * size)
        if kind == PT_GNU_EH_FRAME:
            start, _, entries = TABLE_HEADER.unpack_from(image, offset)
            if start != TABLE_START or entries > MOST_ENTRIES:
                raise ValueError("a table of call frames in another form")
            found = [
                (function, record)
                for function, record in (
                    TABLE_ENTRY.unpack_from(image, offset + TABLE_HEADER.size + number * TABLE_ENTRY.size)
                    for number in range(entries)
                )
                if offset + function <= place
            ]
            if found:
                return int(offset + max(found)[1])
    raise ValueError("no function is described there")


def _end(image: bytes, record: int) -> int:
    (length,) = struct.unpack_from("<I", image, record)
    if not 0 < length <= len(image) - record - 4:
        raise ValueError("a record of another form")
    return int(record) + 4 + int(length)


def _description(image: bytes, record: int) -> tuple[int, int, tuple[int, int], int]:
    """Of a function's record: where the function begins, its length, the common record with the place of its rules, and
    the place of its own rules."""
    if record < 0:
        raise ValueError("a record outside")
    pointer, start, length = struct.unpack_from("<IiI", image, record + 4)
    shared = record + 4 - pointer
    if shared < 0:
        raise ValueError("a record outside")
    identifier, version = struct.unpack_from("<IB", image, shared + 4)
    at = shared + 9
    if identifier != 0 or version != 1 or image[at : at + 3] != AUGMENTATION + b"\0":
        raise ValueError("call frames of another kind")
    code_alignment, at = _number(image, at + 3)
    data_alignment, at = _signed_number(image, at)
    column, at = _number(image, at)
    size, at = _number(image, at)
    if (code_alignment, data_alignment, column, size, image[at]) != (
        CODE_ALIGNMENT,
        DATA_ALIGNMENT,
        RETURN_ADDRESS,
        1,
        RELATIVE_TO_PLACE,
    ):
        raise ValueError("call frames of another architecture")
    size, rules = _number(image, record + 16)
    return record + 8 + start, length, (shared, at + 1), rules + size


def _execute(image: bytes, rules: tuple[int, int], end: int, frame: Frame | None, length: int) -> Frame:
    """The frame after the rules for the first `length` bytes of a function; `frame` is the one at its beginning."""
    at = rules[1]
    remembered: list[Frame] = []
    position = 0
    register, offset = (frame.register, frame.offset) if frame else (-1, 0)
    while at < end:
        operation, at = image[at], at + 1
        advance = operation & 0x3F if operation & 0xC0 == 0x40 else 0
        if operation in ADVANCES:
            (advance,) = struct.unpack_from(ADVANCES[operation], image, at)
            at += struct.calcsize(ADVANCES[operation])
        position += advance
        if position >= length:
            break
        if operation & 0xC0 == 0x80:  # offset
            factor, at = _number(image, at)
            if operation & 0x3F == RETURN_ADDRESS and factor * DATA_ALIGNMENT != -WORD:
                raise ValueError("a return address elsewhere")
        elif operation & 0xC0 or operation in ADVANCES:  # advance_loc, restore
            pass
        elif operation == 0x0A:  # remember_state
            remembered.append(Frame(register, offset))
        elif operation == 0x0B:  # restore_state
            last = remembered.pop()
            register, offset = last.register, last.offset
        elif operation == 0x0C:  # def_cfa
            register, at = _number(image, at)
            offset, at = _number(image, at)
        elif operation == 0x0D:  # def_cfa_register
            register, at = _number(image, at)
        elif operation == 0x0E:  # def_cfa_offset
            offset, at = _number(image, at)
        elif operation in NO_RULE_OF_FRAME:
            for _ in range(NO_RULE_OF_FRAME[operation]):
                number, at = _number(image, at)
                if number == RETURN_ADDRESS and operation != 0x2E:
                    raise ValueError("a return address elsewhere")
        else:
            raise ValueError(f"a rule of another kind, {operation:#x}")
    if register < 0:
        raise ValueError("no rule for the frame")
    return Frame(register, offset)


def _number(image: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number and the place behind it (DWARF 5, 7.6)."""
    value = 0
    for index in range(LONGEST_NUMBER):
        byte = image[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number that is too long")


def _signed_number(image: bytes, at: int) -> tuple[int, int]:
    """A signed one."""
    value, behind = _number(image, at)
    bits = 7 * (behind - at)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), behind
