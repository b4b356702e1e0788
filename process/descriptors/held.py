"""What a kind holds of an open file at the freeze: system calls for a process that has been handed over, and others for
one that has not.

They are data, so that lm-serve or its custodian can make them in C, without any of this. Nothing waits for them, and no
failure of them counts: what cannot be done is left. A row may run twice, if lm-serve dies in it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Special(enum.Enum):
    """Arguments that are known only when a row is run."""

    DESCRIPTOR = enum.auto()
    """The descriptor that the rows are about."""
    RESULT = enum.auto()
    """The descriptor that the row before the block has given."""
    RULES = enum.auto()
    """Our own socket to which rules that hold packets back belong (kernel/packet_rules.py)."""
    ROUTES = enum.auto()
    """Our own socket for the addresses of this host."""
    BUFFER = enum.auto()
    """Room for BUFFER_BYTES, which nobody reads."""


BUFFER_BYTES = 1 << 16
DESCRIPTOR, RESULT, BUFFER = Special.DESCRIPTOR, Special.RESULT, Special.BUFFER
RULES, ROUTES = Special.RULES, Special.ROUTES
# Bytes are handed over by their address.
Argument = int | bytes | Special


@dataclass(frozen=True)
class Row:
    """A system call, made at most `most` times, as long as it gives more than 0.

    With `each`, it gives descriptors: these rows are run for each of them, which is closed then. One that
    writes `expected` bytes to a connection is run only once: if so many were written before as `written` says; and if
    it writes fewer, the connection is reset.
    """

    call: int
    arguments: tuple[Argument, ...]
    most: int = 1
    each: tuple[Row, ...] = ()
    expected: int = 0
    written: int = 0


@dataclass(frozen=True)
class Held:
    """The rows about the open file that a descriptor of the source stands for. Another file that is there by then, with
    another inode, is left alone.
    """

    number: int
    inode: int
    commit: tuple[Row, ...] = ()
    undo: tuple[Row, ...] = ()
