"""Every descriptor of a process as it shows from outside, read in one pass of C (seen.h).

A frozen process waits for it: with a thousand descriptors, a step of the interpreter for each of them is a millisecond.
"""

from __future__ import annotations

import os
import struct

from live_migration._lm import ffi, lib
from live_migration.process.descriptors.open_file import Seen, close_all, position_and_flags

_ONE = struct.Struct(f"{int(ffi.sizeof('struct lm_descriptor_seen')) // 8}q")
_NOT_CLOSED = frozenset[int]()


def see_each(pid: int, pidfd: int, frozen: bool) -> list[Seen]:
    """Every descriptor of process `pid`, for which `pidfd` stands, with a duplicate of its own, in the order of their
    numbers. One that a live process closes meanwhile is left out.

    Raises OSError: the process has gone (ENOENT, ESRCH), or may not be read (EACCES, EPERM)."""
    out = ffi.new("struct lm_descriptors_seen *")
    error = lib.lm_descriptors_see(pid, pidfd, frozen, out)
    if error < 0:
        what = f"process {pid}" if out.failed < 0 else f"descriptor {out.failed} of process {pid}"
        raise OSError(-error, os.strerror(-error), what)
    try:
        each = ffi.buffer(out.each, out.count * _ONE.size)[:] if out.count else b""
        text = ffi.buffer(out.text, out.text_length)[:] if out.count else b""
    finally:
        lib.lm_descriptors_seen_free(out)
    rows = sorted(_ONE.iter_unpack(each))
    try:
        return [_seen(pid, row, text, frozen) for row in rows]
    except BaseException:
        close_all(row[1] for row in rows)
        raise


def _seen(pid: int, row: tuple[int, ...], text: bytes, frozen: bool) -> Seen:
    number, duplicate, link, link_length, start, length, device, inode, mode, owner_type, owner, signal = row
    information = text[start : start + length].decode(errors="surrogateescape")
    offset, flags = position_and_flags(information)
    return Seen(
        pid,
        (number,),
        duplicate,
        os.fsdecode(text[link : link + link_length]),
        information,
        device,
        inode,
        mode,
        None if owner_type < 0 else (owner_type, owner, signal),
        flags & ~os.O_CLOEXEC,
        offset,
        frozenset((number,)) if flags & os.O_CLOEXEC else _NOT_CLOSED,
        frozen,
    )
