"""Which kind of object a descriptor stands for, and whether two looks saw the same one."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable

from live_migration._lm import lib
from live_migration.process.descriptors.epoll import LINK as EPOLL
from live_migration.process.descriptors.epoll import snapshot_epoll
from live_migration.process.descriptors.eventfd import LINK as EVENTFD
from live_migration.process.descriptors.eventfd import EventFd, snapshot_eventfd
from live_migration.process.descriptors.files import File, snapshot_device, snapshot_directory, snapshot_file
from live_migration.process.descriptors.inet_sockets import InetSocket, is_supported, snapshot_inet
from live_migration.process.descriptors.inotify import LINK as INOTIFY
from live_migration.process.descriptors.inotify import snapshot_inotify
from live_migration.process.descriptors.memfd import MemFd, is_memfd, snapshot_memfd
from live_migration.process.descriptors.open_file import Seen
from live_migration.process.descriptors.pipes import Pipe, snapshot_pipe
from live_migration.process.descriptors.signalfd import LINK as SIGNALFD
from live_migration.process.descriptors.signalfd import SignalFd, snapshot_signalfd
from live_migration.process.descriptors.stdio import is_terminal, snapshot_terminal
from live_migration.process.descriptors.table import Kind, Refused, Table
from live_migration.process.descriptors.timerfd import LINK as TIMERFD
from live_migration.process.descriptors.timerfd import TimerFd, snapshot_timerfd
from live_migration.process.descriptors.unix_sockets import UnixSocket, snapshot_unix

CLOSE_BEFORE = "let the process close it before the move"
IO_URING = "anon_inode:[io_uring]"
ANONYMOUS: dict[str, Callable[[Seen], Kind]] = {
    EVENTFD: snapshot_eventfd,
    EPOLL: snapshot_epoll,
    TIMERFD: snapshot_timerfd,
    SIGNALFD: snapshot_signalfd,
    INOTIFY: snapshot_inotify,
    "inotify": snapshot_inotify,
}
# What cannot be moved, in words, by what /proc/PID/fd says of it.
REFUSED = {
    IO_URING: "an io_uring instance, whose queues the kernel shares with the process",
    "anon_inode:[userfaultfd]": "a userfaultfd of the process's own, which the migration would need itself",
    "anon_inode:[perf_event]": "a performance counter of this machine",
    "anon_inode:[fanotify]": "a fanotify group, which belongs to this machine's file systems",
    "anon_inode:[pidfd]": "a pidfd, which stands for a process of this machine",
    "anon_inode:bpf-map": "a BPF map in this machine's kernel",
    "anon_inode:bpf-prog": "a BPF program in this machine's kernel",
    "anon_inode:bpf_link": "a BPF link in this machine's kernel",
    "anon_inode:seccomp notify": "a seccomp listener, which belongs to filters of other processes",
    "/secretmem (deleted)": "secret memory, which nobody else can read",
}
NAMESPACE = re.compile(r"^(\w+):\[\d+\]$")


class Kinds:
    """Describes objects for one look. Holds a socket for questions to the kernel; close it."""

    def __init__(self, pid: int, previous: Table | None) -> None:
        self.pid = pid
        self.sockets = {
            each.kind.inode: each.kind
            for each in (previous.descriptions if previous else [])
            if isinstance(each.kind, UnixSocket | InetSocket)
        }
        self.diag = -1

    def close(self) -> None:
        """Close what was opened."""
        if self.diag >= 0:
            os.close(self.diag)
            self.diag = -1

    def describe(self, seen: Seen) -> Kind:
        """What the descriptor stands for."""
        mode = seen.status.st_mode
        if seen.link in ANONYMOUS:
            return ANONYMOUS[seen.link](seen)
        if is_pipe(seen):
            return snapshot_pipe(seen)
        if stat.S_ISSOCK(mode) and not seen.flags & os.O_PATH:
            return self.describe_socket(seen)
        named = refused_by_name(seen.link)
        if named is not None:
            return named
        if stat.S_ISREG(mode):
            return snapshot_memfd(seen) if is_memfd(seen) else snapshot_file(seen)
        if stat.S_ISDIR(mode):
            return snapshot_directory(seen)
        if stat.S_ISCHR(mode):
            return snapshot_terminal(seen) if is_terminal(seen) else snapshot_device(seen)
        if stat.S_ISBLK(mode):
            return Refused(cause="a block device of this machine", remedy=CLOSE_BEFORE)
        return Refused(cause="an object of a kind that cannot be moved", remedy=CLOSE_BEFORE)

    def describe_socket(self, seen: Seen) -> Kind:
        """What kind of socket it is."""
        before = self.sockets.get(seen.status.st_ino)
        if isinstance(before, UnixSocket):
            return snapshot_unix(seen, self.questions(), before)
        if isinstance(before, InetSocket):
            return snapshot_inet(seen, before)
        if lib.lm_has_socket_filter(seen.duplicate) == 1:
            return Refused(
                cause="a socket with a filter (SO_ATTACH_FILTER), which cannot be read back",
                remedy="let the process detach it before the move",
            )
        with socket.socket(fileno=os.dup(seen.duplicate)) as one:
            if one.family == socket.AF_UNIX:
                return snapshot_unix(seen, self.questions(), None)
            if is_supported(one):
                return snapshot_inet(seen, None)
            family = getattr(one.family, "name", f"address family {one.family}")
            return Refused(
                cause=f"a socket of {family}, type {int(one.type)}, protocol {one.proto}", remedy=CLOSE_BEFORE
            )

    def questions(self) -> int:
        """The socket for questions about sockets, in the process's network namespace; opened at the first
        use.
        """
        if self.diag < 0:
            network = -1
            if os.stat(f"/proc/{self.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
                network = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.diag = lib.lm_diag_open(network)
            finally:
                if network >= 0:
                    os.close(network)
            if self.diag < 0:
                raise OSError(-self.diag, os.strerror(-self.diag), "asking the kernel about sockets (sock_diag)")
        return self.diag


def refused_by_name(link: str) -> Refused | None:
    """What cannot be moved and says so in its link."""
    if link == IO_URING:
        return Refused(
            cause=REFUSED[link], remedy=f"{CLOSE_BEFORE} (a program on libuv: start it with UV_USE_IO_URING=0)"
        )
    if link in REFUSED:
        return Refused(cause=REFUSED[link], remedy=CLOSE_BEFORE)
    namespace = NAMESPACE.match(link)
    if namespace:
        return Refused(cause=f"a {namespace[1]} namespace of this machine", remedy=CLOSE_BEFORE)
    if link.startswith("anon_inode:"):
        what = link.removeprefix("anon_inode:").strip("[]")
        return Refused(cause=f"a kernel object of kind {what}, which cannot be moved", remedy=CLOSE_BEFORE)
    return None


def is_pipe(seen: Seen) -> bool:
    """Is it an end of a pipe or FIFO?"""
    return stat.S_ISFIFO(seen.status.st_mode) and not seen.flags & os.O_PATH


def same_object(old: Kind, new: Kind) -> bool:
    """Are these two looks at one object, or at two so alike that one can be brought to the other's state?"""
    if isinstance(old, File) and isinstance(new, File):
        return (old.device, old.inode, old.linked) == (new.device, new.inode, new.linked)
    if isinstance(old, MemFd) and isinstance(new, MemFd):
        return (old.device, old.inode) == (new.device, new.inode)
    if isinstance(old, EventFd) and isinstance(new, EventFd):
        return (old.identity, old.semaphore) == (new.identity, new.semaphore)
    if isinstance(old, TimerFd) and isinstance(new, TimerFd):
        return old.clock == new.clock
    if isinstance(old, SignalFd) and isinstance(new, SignalFd):
        return old.mask == new.mask
    if isinstance(old, UnixSocket) and isinstance(new, UnixSocket):
        return (old.inode, old.state, old.address, old.backlog, old.peer_address) == (
            new.inode,
            new.state,
            new.address,
            new.backlog,
            new.peer_address,
        )
    if isinstance(old, InetSocket) and isinstance(new, InetSocket):
        return (old.inode, old.state, old.address, old.peer, old.backlog) == (
            new.inode,
            new.state,
            new.address,
            new.peer,
            new.backlog,
        )
    if isinstance(old, Pipe) and isinstance(new, Pipe):
        return old.pipe == new.pipe
    return type(old) is type(new)
