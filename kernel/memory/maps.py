"""/proc/PID/maps and /proc/PID/smaps: the mappings of a process (proc_pid_maps(5), proc_pid_smaps(5))."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.proc import read_proc

READ_AGAIN = 20
NO_FLAGS: frozenset[str] = frozenset()


class MapEntry(msgspec.Struct, frozen=True, gc=False):
    """One mapping: addresses and the offset in bytes, `permissions` as four letters, `device` as major:minor
    in hex.

    `flags` are the two-letter VmFlags, known from smaps alone. `path` has " (deleted)" behind it where the
    kernel says so.
    """

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str
    flags: frozenset[str] = NO_FLAGS


def maps_text(pid: int) -> bytes:
    """The raw text of /proc/PID/maps: equal texts mean equal layouts. Raises ProcessGone, PermissionError."""
    return _read(pid, "maps")


def maps(pid: int) -> list[MapEntry]:
    """All mappings in the order of their addresses, none of which overlap. Raises ProcessGone, PermissionError."""
    return _disjoint(pid, "maps")


def parse_maps(text: bytes) -> list[MapEntry]:
    """The mappings that a text of /proc/PID/maps or smaps lists. Raises ValueError for another text."""
    return [MapEntry(*fields) for fields in _rows(text)]


def smaps(pid: int) -> list[MapEntry]:
    """All mappings with their flags. The kernel walks the memory for it: 13 ms per GiB of small pages.

    None overlap. Raises ProcessGone, PermissionError."""
    return _disjoint(pid, "smaps")


def _disjoint(pid: int, name: str) -> list[MapEntry]:
    """A text read in several pieces from a process that runs can list a mapping twice, as it was and as it has become.

    (Documentation/filesystems/proc.rst: only what one read(2) returns is consistent.) It is read again; if that does
    not help, the later line counts: what still changes is reread when the process stands still."""
    for _ in range(READ_AGAIN):
        entries = parse_maps(_read(pid, name))
        if all(one.end <= other.start for one, other in pairwise(entries)):
            return entries
    last: list[MapEntry] = []
    for entry in entries:
        while last and last[-1].end > entry.start:
            last.pop()
        last.append(entry)
    return last


def _rows(text: bytes) -> Iterator[Any]:
    """The fields of every mapping. C finds them, column-wise: ten thousand mappings are nothing unusual."""
    capacity = lib.lm_maps_bound(text, len(text))
    numbers = ffi.new("uint64_t[]", capacity * lib.LM_MAP_COLUMNS)
    count = lib.lm_maps_parse(text, len(text), numbers, capacity)
    if count < 0:
        raise ValueError("this is no text of /proc/PID/maps")
    flat = ffi.unpack(numbers, count * lib.LM_MAP_COLUMNS) if count else []
    columns = [flat[column :: lib.LM_MAP_COLUMNS] for column in range(lib.LM_MAP_COLUMNS)]
    start, end, offset, inode, permissions_at = columns[:5]
    permissions = [_word(text[place : place + 4]) for place in permissions_at]
    device, path, flags = (
        [decode(text[place : place + length]) for place, length in zip(places, lengths, strict=True)]
        for decode, places, lengths in (
            (_word, columns[lib.LM_MAP_DEVICE_AT], columns[lib.LM_MAP_DEVICE_LENGTH]),
            (_file_name, columns[lib.LM_MAP_PATH_AT], columns[lib.LM_MAP_PATH_LENGTH]),
            (_flags, columns[lib.LM_MAP_FLAGS_AT], columns[lib.LM_MAP_FLAGS_LENGTH]),
        )
    )
    return zip(start, end, permissions, offset, device, inode, path, flags, strict=True)


# Few words make up even a long text.
@lru_cache(maxsize=256)
def _word(text: bytes) -> str:
    return text.decode("ascii")


@lru_cache(maxsize=256)
def _flags(text: bytes) -> frozenset[str]:
    return frozenset(text.decode("ascii").split())


@lru_cache(maxsize=1024)
def _file_name(text: bytes) -> str:
    """The kernel writes a newline in a path as \\012 (proc_pid_maps(5))."""
    return text.replace(b"\\012", b"\n").decode("utf-8", "surrogateescape")


def _read(pid: int, name: str) -> bytes:
    try:
        text = read_proc(f"/proc/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    if not text:
        # It has ended, and its memory is gone before its name is.
        raise ProcessGone(pid)
    return text
