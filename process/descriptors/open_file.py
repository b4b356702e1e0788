"""What every open file has, whatever its kind: how the source sees it from outside.

A *descriptor* is a number in one process. An *open file* is what it stands for: offset, status flags, owner (open(2)
calls it an open file description). Several descriptors, of several processes, may stand for one open file.
"""

from __future__ import annotations

import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from live_migration._lm import lib
from live_migration.kernel.pidfd import fetch_descriptor
from live_migration.kernel.proc import read_proc
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.scope import Holder

# Flags that reopening a file takes over; those of creation (O_CREAT, O_EXCL, O_TRUNC, O_NOCTTY) are gone by then.
REOPEN_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_NOATIME
    | os.O_PATH | os.O_DIRECTORY
)  # fmt: skip
# Flags that fcntl(F_SETFL) can change on an open file.
CHANGEABLE_FLAGS = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
SET_AT_OPENING = REOPEN_FLAGS & ~CHANGEABLE_FLAGS


Object = TypeVar("Object", bound=msgspec.Struct)


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets a signal when a descriptor is ready: fcntl(2), F_SETOWN_EX and F_SETSIG. Signal 0 stands for SIGIO.

    `id` is as the process itself sees it, 0 for nobody; `own`: it is the process, a thread of it or its
    group.
    """

    type: int
    id: int
    signal: int
    own: bool


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """A lock as /proc tells it: its kind, whether it excludes readers too, and the range; length 0: to the end.
    """

    kind: str
    write: bool
    start: int
    length: int


class OpenFile(msgspec.Struct, Generic[Object], frozen=True, kw_only=True, omit_defaults=True):
    """An open file. `identity` is the same in every table of one migration.

    `link` is what /proc/PID/fd says, `flags` the access mode and status flags as for open(2), `object` what its kind
    knows of it. `holders` are the processes that stay and hold it too, `peer_holders` those that hold its other end;
    `standard` is the descriptor among 0 to 2 that replaces it when it leads outside, or None.
    """

    identity: int
    number: int
    link: str
    flags: int
    offset: int
    object: Object
    owner: Owner | None = None
    holders: list[Holder] = []
    peer_holders: list[Holder] = []
    standard: int | None = None
    locks: list[Lock] = []

    @property
    def name(self) -> str:
        """For messages."""
        return f"descriptor {self.number} ({self.link})"


class Seen(msgspec.Struct, frozen=True, dict=True, eq=False):
    """An open file as seen from outside, through a duplicate in this process.

    `link` and `information` are what /proc/PID/fd and /proc/PID/fdinfo say; `owner` is type, id and signal, None where
    nobody can be (O_PATH). `flags` are its status flags and access mode, as open(2) takes them; `closed_at_exec` those
    of its numbers that are closed at exec.
    """

    pid: int
    numbers: tuple[int, ...]
    duplicate: int
    link: str
    information: str
    device: int
    inode: int
    mode: int
    owner: tuple[int, int, int] | None
    flags: int
    offset: int
    closed_at_exec: frozenset[int]
    frozen: bool

    @functools.cached_property
    def status(self) -> os.stat_result:
        """What fstat(2) says."""
        return os.fstat(self.duplicate)

    @property
    def shown(self) -> tuple[object, ...]:
        """All that was read of it, whatever its kind."""
        return (self.link, self.information, self.device, self.inode, self.mode, self.owner)

    @functools.cached_property
    def fields(self) -> dict[str, str]:
        """The lines of /proc/PID/fdinfo by name (proc(5)), the first of each."""
        lines = (line.partition(":") for line in reversed(self.information.splitlines()))
        return {name.strip(): value.strip() for name, colon, value in lines if colon}

    @property
    def number(self) -> int:
        """The lowest descriptor that stands for it."""
        return self.numbers[0]

    def field(self, name: str) -> str:
        """The value of a line of /proc/PID/fdinfo (proc(5)). KeyError if there is none."""
        return self.fields[name]

    def again(self, name: str) -> str:
        """The value of a line of /proc/PID/fdinfo as it is now."""
        return msgspec.structs.replace(self, information=read_information(self.pid, self.number)).field(name)

    def has_field(self, name: str) -> bool:
        """Does /proc/PID/fdinfo have such a line?"""
        return name in self.fields


@dataclass
class OpenContext:
    """What the destination's worker needs while it opens files. The caller closes `close_later`.

    `source_pidfd` stands for the source process if it can be reached (one machine, one PID namespace), and
    `same_network` says that it also lives in this network namespace. `shared` is what several open files have in
    common, by its type and inode (`DescriptorTable.shared_by_inode`). `anchors` are descriptors by which what several
    open files share is found again; `content_wanted` are the files, by device and inode of the source, whose content
    has to be written before the process runs. `monotonic` is the process's clock, `process` its id here (the husk's).
    `options` are the user's; `begun` is what has to be done, when the process runs here, to descriptors that are kept
    from doing anything until then. `root` is where this process finds the husk's mounts, "" if they are its own.
    """

    options: DescriptorOptions
    standard: tuple[int, int, int] = (0, 1, 2)
    source_pidfd: int | None = None
    same_network: bool = False
    same_machine: bool = False
    shared: Mapping[tuple[type, int], Any] = field(default_factory=dict)
    anchors: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict)
    content_wanted: dict[tuple[int, int], int] = field(default_factory=dict)
    close_later: list[int] = field(default_factory=list)
    handed_over: set[int] = field(default_factory=set)
    made_paths: list[str] = field(default_factory=list)
    monotonic: Callable[[], int] = time.monotonic_ns
    process: int = 0
    root: str = ""
    begun: list[Held] = field(default_factory=list)

    @property
    def map_path(self) -> Callable[[str], str]:
        """Where the source's paths are here."""
        return self.options.map_path

    def place(self, path: str) -> str:
        """Where to open the source's `path`. In a PID namespace the husk has mounts of its own, and rename(2) and
        link(2) between a descriptor and a path fail (EXDEV) unless both are of the same mount."""
        return self.root + self.map_path(path)

    @property
    def stdio(self) -> str:
        """What stands at 0 to 2 if they lead outside."""
        return self.options.stdio

    @property
    def reaches_sockets(self) -> bool:
        """Whether bound sockets are the source's own."""
        return self.same_network and self.source_pidfd is not None

    def fetch(self, source_number: int, inode: int) -> int | None:
        """A duplicate of the source's descriptor, where the source can be reached and has what is described there; else
        None."""
        if self.source_pidfd is None:
            return None
        try:
            fetched = fetch_descriptor(self.source_pidfd, source_number)
        except OSError:
            return None
        if os.fstat(fetched).st_ino == inode:
            return fetched
        os.close(fetched)
        return None


def as_handed_over(identity: int) -> int:
    """How an open file that is handed over is named among inodes, if its inode is that of many."""
    return -1 - identity


def read_information(pid: int, number: int) -> str:
    """The text of /proc/PID/fdinfo/NUMBER. FileNotFoundError when it has been closed."""
    return read_proc(f"/proc/{pid}/fdinfo/{number}").decode(errors="surrogateescape")


def position_and_flags(information: str) -> tuple[int, int]:
    """The offset and the flags, close-on-exec among them, from the first two lines of fdinfo (proc(5))."""
    position, flags, _ = information.split("\n", 2)
    return int(position[4:]), int(flags[6:], 8)


def owner_of(seen: Seen) -> Owner | None:
    """The owner for signals of an open file, or None."""
    if seen.owner is None:
        return None
    pid = seen.pid
    kind, own, signal = seen.owner
    if own == 0:
        return Owner(type=kind, id=0, signal=signal, own=True) if signal else None
    if kind == lib.F_OWNER_PGRP and own != pid:
        return Owner(type=kind, id=own, signal=signal, own=False)
    try:
        inner = inner_id(f"/proc/{pid}/task/{own}/status")
    except OSError:
        return Owner(type=kind, id=own, signal=signal, own=False)
    return Owner(type=kind, id=inner, signal=signal, own=True)


def inner_id(status: str) -> int:
    """A task's id in its own PID namespace (NSpid, proc_pid_status(5))."""
    with open(status, errors="replace") as text:
        for line in text:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    raise ProcessLookupError(status)


def set_flags(number: int, flags: int) -> None:
    """Give an open file the changeable ones of `flags`, where they differ."""
    if flags & os.O_PATH:
        return
    present = fcntl.fcntl(number, fcntl.F_GETFL)
    wanted = (present & ~CHANGEABLE_FLAGS) | (flags & CHANGEABLE_FLAGS)
    if wanted != present:
        fcntl.fcntl(number, fcntl.F_SETFL, wanted)


def seek(number: int, offset: int) -> None:
    """Give an open file its offset, where it differs."""
    if os.lseek(number, 0, os.SEEK_CUR) != offset:
        os.lseek(number, offset, os.SEEK_SET)


def reopen(number: int, flags: int) -> int:
    """A new open file of the file, pipe or memfd that `number` of this process stands for."""
    return os.open(f"/proc/self/fd/{number}", (flags & REOPEN_FLAGS) | os.O_CLOEXEC)


def give_to(number: int, uid: int, gid: int) -> None:
    """Make a user and group the owner of a file, pipe or socket, as far as this process may."""
    if os.geteuid() == 0 and (uid or gid):
        os.fchown(number, uid, gid)


def close_all(numbers: Iterable[int]) -> None:
    """Close descriptors of this process, whatever each close returns: Linux has closed it in any case (close(2)).
    """
    for number in numbers:
        try:
            os.close(number)
        except OSError:
            continue
