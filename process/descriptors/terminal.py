"""Terminals. They stay with their users; a terminal at 0 to 2 is replaced (stdio.py)."""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from live_migration.process.descriptors.kind import BlockerContext, Holders, Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker

TERMINAL_REMEDY = "start it with its terminal at 0 to 2 only, where --stdio replaces it, or let it close the descriptor"


class Terminal(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="terminal"):
    """A terminal; `device` is its device number."""

    path: str
    device: int


def is_terminal(seen: Seen) -> bool:
    """Is it a terminal that can be used as one?"""
    return not seen.flags & os.O_PATH and os.isatty(seen.duplicate)


def snapshot_terminal(seen: Seen, _: SnapshotContext) -> Terminal:
    """Describe a terminal."""
    return Terminal(path=seen.link, device=seen.status.st_rdev)


def terminal_blockers(one: OpenFile[Terminal], _: BlockerContext) -> list[Blocker]:
    """A blocker, if no standard descriptor replaces the terminal."""
    return [Blocker(one.name, f"terminal {one.object.path} stays with its user", TERMINAL_REMEDY)]


def is_outside(_: OpenFile[Terminal], __: object) -> bool:
    """A user has its other end."""
    return True


def open_terminal(_: OpenFile[Terminal], __: OpenContext) -> int:
    """Raises OSError: one that nothing replaces is a blocker."""
    raise OSError(errno.EINVAL, "it cannot be moved")


TERMINAL = Kind(
    object=Terminal,
    file_types=(stat.S_IFCHR,),
    recognise=is_terminal,
    snapshot=snapshot_terminal,
    holders=Holders.BY_ANYBODY,
    leads_outside=is_outside,
    alike=True,
    blockers=terminal_blockers,
    open=open_terminal,
)
