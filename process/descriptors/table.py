"""The table of a process's descriptors, in the form that travels."""

from __future__ import annotations

import msgspec

from live_migration.process.descriptors.epoll import Epoll
from live_migration.process.descriptors.eventfd import EventFd
from live_migration.process.descriptors.file_locks import Lock
from live_migration.process.descriptors.files import Device, Directory, File
from live_migration.process.descriptors.inet_sockets import InetSocket
from live_migration.process.descriptors.inotify import Inotify
from live_migration.process.descriptors.memfd import MemFd
from live_migration.process.descriptors.open_file import Owner
from live_migration.process.descriptors.pipes import Pipe, PipeBody
from live_migration.process.descriptors.signalfd import SignalFd
from live_migration.process.descriptors.stdio import Terminal
from live_migration.process.descriptors.timerfd import TimerFd
from live_migration.process.descriptors.unix_sockets import UnixSocket
from live_migration.process.scope import Holder


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="refused"):
    """A kind of object that cannot be moved, with the words for its blocker."""

    cause: str
    remedy: str


Kind = (
    File | Directory | Device | MemFd | Pipe | UnixSocket | InetSocket | EventFd | TimerFd | SignalFd | Epoll
    | Inotify | Terminal | Refused
)  # fmt: skip


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A number of the process and the identity of the description that it stands for."""

    number: int
    description: int
    close_on_exec: bool


class OpenFile(msgspec.Struct, frozen=True, kw_only=True):
    """An open file description. `identity` is the same in every table of one migration.

    `link` is what /proc/PID/fd says, `flags` the access mode and status flags as for open(2). `holders` are
    the processes that hold it as well and stay; `standard` is the descriptor among 0 to 2 by which it is
    replaced when it leads outside, or None.
    """

    identity: int
    number: int
    link: str
    flags: int
    offset: int
    kind: Kind
    owner: Owner | None = None
    holders: list[Holder] = []
    standard: int | None = None
    locks: list[Lock] = []

    @property
    def name(self) -> str:
        """For messages."""
        return f"descriptor {self.number} ({self.link})"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the process runs, so that the destination can tell whether it is the same machine and network.

    `pid` and `start_time` (clock ticks since boot) name the process in the PID namespace `pid_namespace`.
    """

    boot: str
    pid: int
    start_time: int
    pid_namespace: int
    network_namespace: int


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All descriptors of a process, the descriptions that they stand for, and what those share."""

    place: Place
    descriptors: list[Descriptor]
    descriptions: list[OpenFile]
    pipes: list[PipeBody] = []
    frozen: bool = False

    def unix_inodes(self) -> set[int]:
        """The inodes of the process's own unix sockets."""
        return {each.kind.inode for each in self.descriptions if isinstance(each.kind, UnixSocket)}

    def by_identity(self) -> dict[int, OpenFile]:
        """The descriptions by their identity."""
        return {description.identity: description for description in self.descriptions}

    def pipe_bodies(self) -> dict[int, PipeBody]:
        """The pipes by their inode."""
        return {body.pipe: body for body in self.pipes}
