"""The list of all kinds of descriptors, and how the right one is found."""

from __future__ import annotations

import functools
import operator
import os
import stat
from typing import TYPE_CHECKING, Any, cast

import msgspec

from live_migration.process.descriptors.device import DEVICE
from live_migration.process.descriptors.directory import DIRECTORY
from live_migration.process.descriptors.epoll import EPOLL
from live_migration.process.descriptors.eventfd import EVENTFD
from live_migration.process.descriptors.files import FILE
from live_migration.process.descriptors.inet_sockets import INET_SOCKET
from live_migration.process.descriptors.inotify import INOTIFY
from live_migration.process.descriptors.kind import FileObject, Kind, SnapshotContext
from live_migration.process.descriptors.memfd import MEMFD
from live_migration.process.descriptors.netlink_sockets import NETLINK_SOCKET
from live_migration.process.descriptors.open_file import Seen
from live_migration.process.descriptors.path_only import PATH_ONLY
from live_migration.process.descriptors.pidfds import PIDFD
from live_migration.process.descriptors.pipes import PIPE
from live_migration.process.descriptors.signalfd import SIGNALFD
from live_migration.process.descriptors.terminal import TERMINAL
from live_migration.process.descriptors.timerfd import TIMERFD
from live_migration.process.descriptors.unix_sockets import UNIX_SOCKET
from live_migration.process.descriptors.unmovable import UNMOVABLE, Unmovable

# In this order they are asked whether they recognise what is seen; what none of them recognises is UNMOVABLE.
KINDS: tuple[Kind[Any], ...] = (
    EVENTFD,
    EPOLL,
    TIMERFD,
    SIGNALFD,
    INOTIFY,
    PIDFD,
    PATH_ONLY,
    PIPE,
    UNIX_SOCKET,
    INET_SOCKET,
    NETLINK_SOCKET,
    MEMFD,
    UNMOVABLE,
    FILE,
    DIRECTORY,
    TERMINAL,
    DEVICE,
)
FILE_TYPES = (0, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFLNK, stat.S_IFSOCK)
"""All values of S_IFMT; 0: anonymous inodes."""
BY_LINK = {link: kind for kind in KINDS for link in kind.links}
BY_FILE_TYPE = {
    each: [kind for kind in KINDS if not kind.links and (not kind.file_types or each in kind.file_types)]
    for each in FILE_TYPES
}
BY_OBJECT = {kind.object: kind for kind in KINDS}

if TYPE_CHECKING:
    AnyObject = msgspec.Struct
    AnyShared = Any
else:
    AnyObject = functools.reduce(operator.or_, (kind.object for kind in KINDS))
    AnyShared = functools.reduce(operator.or_, (kind.shared for kind in KINDS if kind.shared))


def kind_of(one: AnyObject) -> Kind[Any]:
    """The kind that describes it."""
    return BY_OBJECT[type(one)]


def file_of(one: AnyObject) -> FileObject | None:
    """The same as a file, if it is one."""
    return cast(FileObject, one) if BY_OBJECT[type(one)].is_file else None


def recognise(seen: Seen, context: SnapshotContext) -> Kind[Any]:
    """The kind of what is seen."""
    kind = BY_LINK.get(seen.link)
    if kind is not None:
        return kind
    file_type = stat.S_IFMT(seen.mode)
    if file_type == stat.S_IFSOCK and not seen.flags & os.O_PATH:
        before = context.before.get(seen.link)
        if before is not None and not isinstance(before, Unmovable):
            # It takes several calls to find out what a socket is.
            return kind_of(before)
    for kind in BY_FILE_TYPE[file_type]:
        if kind.recognise(seen):
            return kind
    return UNMOVABLE
