"""The options of sockets, all from one table (socket_option_table.c).

It takes 40 to 100 us to read those of one socket. So what the last look at the running process has found counts in the
freeze, and while the destination gets ready it is compared with what they are (`changed_options`). On the destination
only what differs from a new socket's is set: that keeps the destination's own defaults, and needs no privilege for an
option that nobody has touched.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.process.descriptors.kind import SnapshotContext
from live_migration.process.descriptors.open_file import Seen
from live_migration.wire.blockers import Blocker

LARGEST = 60_000
allocate = ffi.new_allocator(should_clear_after_alloc=False)


def snapshot_options(one: socket.socket, seen: Seen, context: SnapshotContext) -> bytes:
    """The options of a socket, of a frozen process as they were when it was last read. Raises OSError."""
    known = context.recent.get(seen.link) if seen.frozen else None
    if known is None:
        known = context.recent[seen.link] = read_options(one, context)
    return known


@dataclass(frozen=True)
class Described:
    """A socket of a frozen process, by its name and a duplicate, with the options that its description has."""

    name: str
    duplicate: int
    options: bytes

    @property
    def changed(self) -> Blocker:
        """It has others."""
        return Blocker(self.name, "its options changed at the moment of the freeze", "try again")


def changed_options(those: Iterable[Described], context: SnapshotContext) -> list[Blocker]:
    """A blocker for each socket whose options are others by now. Raises OSError."""
    found = []
    for each in those:
        with socket.socket(fileno=os.dup(each.duplicate)) as one:
            if read_options(one, context) != each.options:
                found.append(each.changed)
    return found


def changed_in_repair(those: Sequence[Described], family: int) -> list[Blocker]:
    """The same for connections of that family in repair, which has changed some by itself. One call reads all of them,
    beside the interpreter. Raises OSError."""
    usual = usual_options(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    compared = ffi.new("struct lm_described[]", len(those))
    options = [ffi.from_buffer(each.options) for each in those]
    for one, each, known in zip(compared, those, options, strict=True):
        one.options, one.length, one.number = known, len(known), each.duplicate
    failed = lib.lm_compare_in_repair(compared, len(those), usual, len(usual))
    if failed:
        raise OSError(-failed, os.strerror(-failed), "options of a connection")
    return [each.changed for one, each in zip(compared, those, strict=True) if one.changed]


def read_options(one: socket.socket, context: SnapshotContext) -> bytes:
    """The options of a socket, as records for `set_options`. Raises OSError."""
    groups: list[Any] = []
    if one.family != socket.AF_UNIX and one.type == socket.SOCK_DGRAM:
        groups = context.once("groups", joined_groups)
    room = context.once("room for options", lambda _: allocate("char[]", LARGEST))
    usual = usual_options(one.family, one.type, one.proto)
    known = ffi.new("struct lm_group[]", groups)
    return read_records(one, usual, known, room)


def read_records(one: socket.socket, usual: bytes, groups: Any, room: Any) -> bytes:
    """The options of a socket, written in `room`. Raises OSError."""
    length = lib.lm_read_socket_options(one.fileno(), usual, len(usual), groups, len(groups), room, LARGEST)
    if length < 0:
        raise OSError(-length, os.strerror(-length), "options of a socket")
    return bytes(ffi.buffer(room, length))


@functools.cache
def usual_options(family: int, kind: int, protocol: int) -> bytes:
    """The options of a new socket; none if one cannot be made."""
    try:
        with socket.socket(family, kind, protocol) as new:
            return read_records(new, b"", ffi.new("struct lm_group[]", 0), allocate("char[]", LARGEST))
    except OSError:
        return b""


def joined_groups(pid: int) -> list[tuple[int, int, bytes]]:
    """The multicast groups that somebody in a process's network namespace has joined: family, number of the interface,
    address. Which sockets have joined them, only these tell.
    """
    found = []
    interface = 0
    for line in lines_of(f"/proc/{pid}/net/igmp")[1:]:
        words = line.split()
        if line[:1] != "\t":
            interface = int(words[0])
        else:
            # Printed as a number of this machine, though it is in the network's order.
            found.append((int(socket.AF_INET), interface, int(words[0], 16).to_bytes(4, sys.byteorder)))
    for line in lines_of(f"/proc/{pid}/net/igmp6"):
        number, _, address, *_ = line.split()
        found.append((int(socket.AF_INET6), int(number), bytes.fromhex(address)))
    return found


def lines_of(path: str) -> list[str]:
    """The lines of a file, none if there is no such protocol."""
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def set_options(number: int, options: bytes, before: bytes = b"", *, filters: bool) -> None:
    """Give a socket its options, filters or all but filters, and take back those of `before` that it has no longer.
    Raises OSError naming the option.
    """
    failed = ffi.new("const char **")
    result = lib.lm_set_socket_options(number, before, len(before), options, len(options), filters, failed)
    if result < 0:
        name = ffi.string(failed[0]).decode() if failed[0] else "of a socket"
        raise OSError(-result, f"the option {name} cannot be set here: {os.strerror(-result)}")


def set_all_options(number: int, options: bytes, before: bytes = b"") -> None:
    """Give a socket its options and filters. Raises OSError naming the option."""
    set_options(number, options, before, filters=False)
    set_options(number, options, before, filters=True)


def made_with(options: bytes, level: int, number: int) -> int:
    """The value that an option with a number has in records; 0 where there is none."""
    found: int = lib.lm_recorded_option(options, len(options), level, number)
    return found


def option_blockers(name: str, options: bytes) -> list[Blocker]:
    """Options that cannot be moved."""
    at, found = ffi.new("size_t *"), []
    while (option := lib.lm_refused_socket_option(options, len(options), at)) != ffi.NULL:
        what = ffi.string(option).decode()
        found.append(Blocker(name, *REFUSED[what]))
    return found


REFUSED = {
    "SO_BINDTOIFINDEX": (
        "a socket bound to a network interface that is gone",
        "let the process bind it to another one, or close it, before the move",
    ),
    "SO_ATTACH_BPF": (
        "a socket with a filter of eBPF (SO_ATTACH_BPF), which cannot be read back",
        "let the process detach it before the move",
    ),
    "TCP_REPAIR": (
        "a socket that is being repaired (TCP_REPAIR)",
        "let the process end that, or close the socket, before the move",
    ),
    "TCP_ULP": (
        "a socket with a protocol of the kernel on top of TCP (TCP_ULP)",
        "let the process close it before the move",
    ),
}
