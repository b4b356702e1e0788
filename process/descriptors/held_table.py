"""Puts what is held (process/descriptors/held.py) into the file that a command and its custodian share (held_table.h).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from live_migration._lm import ffi, lib
from live_migration.process.descriptors.held import BUFFER_BYTES, Argument, Held, Row, Special

KINDS = {
    Special.DESCRIPTOR: lib.LM_HELD_DESCRIPTOR,
    Special.RESULT: lib.LM_HELD_RESULT,
    Special.BUFFER: lib.LM_HELD_BUFFER,
    Special.RULES: lib.LM_HELD_RULES,
    Special.ROUTES: lib.LM_HELD_ROUTES,
}
assert BUFFER_BYTES == lib.LM_HELD_ROOM


NO_SOCKETS = (-1, -1)
INDEX, NAMED = struct.Struct("=I"), struct.Struct("=iIQ")
ROW_BYTES = int(ffi.sizeof("struct lm_held_row"))
assert NAMED.size == ffi.sizeof("struct lm_held_descriptor")


def write_held(file: int, pid: int, held: Iterable[Held], sockets: tuple[int, int] = NO_SOCKETS) -> None:
    """Write the tables of process `pid`; `sockets` are those of Special.RULES and ROUTES. Raises OSError."""
    those = list(held)
    data, templates = bytearray(), dict[int, Template]()
    tables = [
        table_of([one.commit for one in those], data, templates),
        table_of([one.undo for one in those], data, templates),
    ]
    counts = [len(rows) // ROW_BYTES for rows in tables]
    head = ffi.new("struct lm_held *", {"pid": pid, "descriptors": len(those), "rows": counts})
    head.sockets = sockets
    descriptors = b"".join(NAMED.pack(one.number, 0, one.inode) for one in those)
    os.ftruncate(file, 0)
    os.pwrite(file, b"".join([bytes(ffi.buffer(head)), descriptors, *tables, data]), 0)


@dataclass(frozen=True)
class Template:
    """Rows as the file has them, for the first descriptor, and where in them the descriptor's index stands."""

    packed: bytes
    places: tuple[int, ...]


def table_of(those: Sequence[tuple[Row, ...]], data: bytearray, templates: dict[int, Template]) -> bytes:
    """A table, with the rows of one descriptor after the other. Rows that many of them share are packed once."""
    found = bytearray()
    for index, rows in enumerate(those):
        if not rows:
            continue
        template = templates.get(id(rows))
        if template is None:
            template = templates[id(rows)] = template_of(rows, data)
        start = len(found)
        found += template.packed
        for place in template.places:
            INDEX.pack_into(found, start + place, index)
    return bytes(found)


def template_of(rows: tuple[Row, ...], data: bytearray) -> Template:
    """Rows, packed; their bytes are added to `data`."""
    plain_rows = list(flat(rows, 0, data))
    packed = bytes(ffi.buffer(ffi.new("struct lm_held_row[]", plain_rows)))
    at = int(ffi.offsetof("struct lm_held_row", "descriptor"))
    named = (place for place, row in enumerate(plain_rows) if row[1] != lib.LM_HELD_NO_DESCRIPTOR)
    return Template(packed, tuple(place * ROW_BYTES + at for place in named))


PlainRow = tuple[int, int, int, int, int, int, list[int], list[int]]


def flat(rows: Iterable[Row], descriptor: int, data: bytearray) -> Iterator[PlainRow]:
    """The rows of one table, blocks after the rows that begin them; bytes are added to `data`."""
    for row in rows:
        block = list(flat(row.each, descriptor, data))
        pairs = [plain(argument, data) for argument in row.arguments]
        named = Special.DESCRIPTOR in row.arguments
        yield (
            row.call,
            descriptor if named else lib.LM_HELD_NO_DESCRIPTOR,
            row.most,
            len(block),
            row.expected,
            row.written,
            [value for _, value in pairs],
            [kind for kind, _ in pairs],
        )
        yield from block


def plain(argument: Argument, data: bytearray) -> tuple[int, int]:
    """What an argument is, and its value."""
    if isinstance(argument, Special):
        return KINDS[argument], 0
    if isinstance(argument, int):
        return lib.LM_HELD_VALUE, argument % (1 << 64)
    # Aligned, as the kernel's structures are.
    data += bytes(-len(data) % 8)
    data += argument
    return lib.LM_HELD_DATA, len(data) - len(argument)


def use_sockets(file: int, sockets: tuple[int, int]) -> None:
    """Another process goes on with the tables: its sockets take the place of the first one's. Raises OSError."""
    os.pwrite(file, bytes(ffi.buffer(ffi.new("int32_t[2]", sockets))), int(ffi.offsetof("struct lm_held", "sockets")))


def spare(file: int, held: Iterable[Held], inodes: Collection[int]) -> None:
    """Leave the descriptors alone that the destination has taken over as they are. Raises OSError."""
    first, size = int(ffi.sizeof("struct lm_held")), int(ffi.sizeof("struct lm_held_descriptor"))
    place = first + int(ffi.offsetof("struct lm_held_descriptor", "spared"))
    for index, one in enumerate(held):
        if one.inode in inodes:
            os.pwrite(file, b"\1", place + index * size)
