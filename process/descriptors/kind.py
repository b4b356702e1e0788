"""Everything about one kind of descriptor, as a record.

Every file of this folder that stands for a kind exports such a record, and registry.py lists them. The files that go
over all descriptors of a process (snapshot.py, blockers.py, opening.py, rows.py, contents.py) know records and no kind.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

import msgspec

from live_migration.kernel.injection.program import Program
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.open_file import Object, OpenContext, OpenFile, Seen, close_all
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import Reach
from live_migration.wire.blockers import Blocker


@dataclass
class SnapshotContext:
    """What one snapshot of process `pid` has for all kinds. Close it.

    `before` is what an earlier snapshot knew, by link, of objects whose link names them. `recent` has, by link, what
    takes long to read: a frozen process's snapshot takes it from there, and whether it has changed is looked up later
    (`Kind.changed`).
    """

    pid: int
    before: Mapping[str, msgspec.Struct] = field(default_factory=dict)
    recent: dict[str, bytes] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[int], Any]) -> Any:
        """What `make` finds out for `pid`, at the first use."""
        if name not in self.found:
            self.found[name] = make(self.pid)
        return self.found[name]

    def descriptor(self, name: str, make: Callable[[int], int]) -> int:
        """A descriptor of this process through which a kind queries the kernel: made for `pid` at the first use, and
        closed with the context.
        """
        if name not in self.opened:
            self.opened[name] = make(self.pid)
        return self.opened[name]

    def close(self) -> None:
        """Close what was opened."""
        close_all(self.opened.values())
        self.opened.clear()


@dataclass(frozen=True)
class BlockerContext:
    """What matters to blockers: the user's options, the links of all that the process has open, is it frozen?"""

    options: DescriptorOptions
    own: Container[str]
    frozen: bool


@dataclass(frozen=True)
class PreflightContext:
    """What matters to the preflight. `shared` as for OpenContext; what has been checked once is taken out of it."""

    options: DescriptorOptions
    reach: Reach
    shared: dict[tuple[type, int], Any]


@dataclass(frozen=True)
class RowsContext:
    """All numbers of the process with their close-on-exec flags; those in `unsure` stand for something else than on the
    source. `handed_over` are inodes of what is the source's own.
    """

    numbers: Mapping[int, bool]
    unsure: Container[int]
    handed_over: Container[int]


class Holders(enum.Enum):
    """Which other processes keep an open file from being moved alone."""

    BY_OPEN_FILE = enum.auto()
    """Those that hold this very open file."""
    BY_OBJECT = enum.auto()
    """Those that hold any descriptor of the object."""
    BY_ANYBODY = enum.auto()
    """None: it does not matter who holds it."""


class FileObject(Protocol):
    """What the objects of kinds that stand for files have. A file that is not `linked` has no path: only descriptors
    lead to it, and its bytes travel.
    """

    @property
    def device(self) -> int:
        """The number of its file system."""

    @property
    def inode(self) -> int:
        """Its number there."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def linked(self) -> bool:
        """Does its path still name it?"""

    @property
    def mode(self) -> int:
        """Its permissions."""

    @property
    def uid(self) -> int:
        """Its owner."""

    @property
    def gid(self) -> int:
        """Its group."""

    @property
    def accessed(self) -> int:
        """When it was read, in nanoseconds since the epoch."""

    @property
    def modified(self) -> int:
        """When it was written to."""


def always(*_: object) -> bool:
    """For a record: yes, in any case."""
    return True


def _never(*_: object) -> bool:
    return False


def _no_blockers(*_: object) -> list[Blocker]:
    return []


def _nowhere(*_: object) -> str:
    return ""


def _nothing(*_: object) -> None:
    return None


def _none_shared(*_: object) -> list[Any]:
    return []


@dataclass(frozen=True, eq=False)
class Kind(Generic[Object]):
    """A kind of descriptor. Where a record says nothing, the defaults hold.

    On the source, live and frozen:

    object      its form on the wire, a frozen Struct with a tag of its own
    links       it is of this kind if /proc/PID/fd says exactly one of these; else
    file_types  if its type (S_IFMT of its mode; empty: any) is one of these, and
    recognise   this agrees
    snapshot    describes it from outside, through a duplicate
    told        whether `Seen.shown` tells everything: as long as that is the same, so is the object
    same        whether two snapshots show one object, or two so alike that an update makes one of the other
    shared      the struct of what several open files have in common, with a tag and an `inode`; it travels once
    snapshot_shared  ... and how it is described, from all that was seen of this kind
    holders     which other processes count as its holders
    may_be_held whether it can be moved although others hold it
    other_end   the link by which others show that they hold its other end
    leads_outside    whether a process that stays, or a user, has the other end: at 0 to 2 it is replaced
    alike       whether all of this kind count as the same one when they are replaced
    blockers    why it cannot be moved, including what passes by itself
    passing     the blockers of a frozen process that pass when it runs
    is_file     whether the object is a FileObject
    changed     all of the kind at once, with duplicates: the blockers of a frozen process in what its snapshot took
                from an earlier one
    came        the blockers of a frozen process in what has come since it was described, when the destination is ready;
                the third is what has been handed over (inodes, `as_handed_over`)
    hold        for a frozen process: what is done at the source after the handover (commit), or without it (undo), as
                rows of system calls (held.py), which C runs

    On the destination:

    preflight   the blockers here
    connects    whether it needs others of the process, and so is opened after them
    open        a descriptor for it in this process. Raises OSError
    may_vanish  whether the process may have removed it since the live snapshot (ENOENT)
    fill        all of the kind at once, frozen: put in what waits in them, before any is updated
    update      brings one to its frozen state; the third is what it was opened or last updated as
    seal        all of the kind at once, when contents and mappings are in place
    rows        what only the process can do, with its numbers in place
    last_rows   the same, with its own credentials
    """

    object: type[Object]
    snapshot: Callable[[Seen, SnapshotContext], Object]
    open: Callable[[OpenFile[Object], OpenContext], int]

    links: tuple[str, ...] = ()
    file_types: tuple[int, ...] = ()
    told: Callable[[Seen], bool] = _never
    recognise: Callable[[Seen], bool] = always
    same: Callable[[Object, Object], bool] = always
    shared: type | None = None
    snapshot_shared: Callable[[Sequence[Seen]], Sequence[Any]] = _none_shared
    holders: Holders = Holders.BY_OPEN_FILE
    may_be_held: Callable[[OpenFile[Object]], bool] = _never
    other_end: Callable[[Object], str] = _nowhere
    leads_outside: Callable[[OpenFile[Object], Container[str]], bool] = _never
    alike: bool = False
    blockers: Callable[[OpenFile[Object], BlockerContext], list[Blocker]] = _no_blockers
    passing: Callable[[OpenFile[Object]], list[Blocker]] = _no_blockers
    is_file: bool = False
    changed: Callable[[Sequence[tuple[OpenFile[Object], int]], SnapshotContext], list[Blocker]] = _no_blockers
    came: Callable[[OpenFile[Object], int, Container[int]], list[Blocker]] = _no_blockers
    hold: Callable[[OpenFile[Object]], Held | None] = _nothing

    preflight: Callable[[OpenFile[Object], PreflightContext], list[Blocker]] = _no_blockers
    connects: Callable[[Object], bool] = _never
    may_vanish: bool = False
    fill: Callable[[Collection[OpenFile[Object]], OpenContext], None] = _nothing
    update: Callable[[int, OpenFile[Object], Object, OpenContext], None] = _nothing
    seal: Callable[[Collection[OpenFile[Object]], OpenContext], None] = _nothing
    rows: Callable[[Program, OpenFile[Object], RowsContext], None] = _nothing
    last_rows: Callable[[Program, OpenFile[Object], RowsContext], None] = _nothing
