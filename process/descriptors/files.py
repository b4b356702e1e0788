"""Regular files, also unlinked ones, directories and character devices that keep no state.

A file is opened again by its path. One that is unlinked, or whose path now names another file, is not
reachable by a path: it is made anew in the same directory, and its content travels.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from typing import Literal

import msgspec

from live_migration.process.descriptors.open_file import REOPEN_FLAGS, OpenContext, Seen, close_all, reopen
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.wire.blockers import Blocker

DELETED = " (deleted)"
# Character devices whose descriptors hold nothing but their flags: null, zero, full, random, urandom
# (Documentation/admin-guide/devices.txt).
STATELESS_DEVICES = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)}
# Files whose size and times say nothing (proc(5), sysfs(5)).
KERNEL_FILES = ("/proc/", "/sys/")


class File(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """A regular file. `linked`: its path still names it. Times in nanoseconds since the epoch."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    mode: int
    uid: int
    gid: int
    linked: bool
    links: int


class Directory(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="directory"):
    """A directory. Its offset is the position of getdents64(2)."""

    path: str
    linked: bool


class Device(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="device"):
    """A character device that keeps no state for its descriptors, such as /dev/null."""

    path: str
    device: int


def names(pid: int, path: str, status: os.stat_result) -> bool:
    """Does `path`, as process `pid` sees it or as this process does, name the file with that status?"""
    for place in (f"/proc/{pid}/root{path}", path):
        try:
            found = os.stat(place, follow_symlinks=False)
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            return True
    return False


def seen_again(seen: Seen) -> Seen:
    """The file as it is now, by the descriptor of this process."""
    link = os.readlink(f"/proc/self/fd/{seen.duplicate}")
    return dataclasses.replace(seen, link=link, status=os.fstat(seen.duplicate))


def snapshot_file(seen: Seen) -> File:
    """Describe a regular file from outside: /proc/PID/fd names the path, following renames."""
    linked = seen.status.st_nlink > 0 and names(seen.pid, seen.link, seen.status)
    if not linked and seen.status.st_nlink > 0 and not seen.frozen:
        # It may have been removed or renamed since its link was read.
        seen = seen_again(seen)
        linked = seen.status.st_nlink > 0 and names(seen.pid, seen.link, seen.status)
    return File(
        path=seen.link if linked else seen.link.removesuffix(DELETED),
        device=seen.status.st_dev,
        inode=seen.status.st_ino,
        size=seen.status.st_size,
        modified=seen.status.st_mtime_ns,
        mode=stat.S_IMODE(seen.status.st_mode),
        uid=seen.status.st_uid,
        gid=seen.status.st_gid,
        linked=linked,
        links=seen.status.st_nlink,
    )


def snapshot_directory(seen: Seen) -> Directory:
    """Describe a directory from outside."""
    linked = seen.status.st_nlink > 0 and names(seen.pid, seen.link, seen.status)
    return Directory(path=seen.link if linked else seen.link.removesuffix(DELETED), linked=linked)


def snapshot_device(seen: Seen) -> Device:
    """Describe a character device from outside."""
    return Device(path=seen.link, device=seen.status.st_rdev)


def is_writable(flags: int) -> bool:
    """Can a description with these flags be written to?"""
    return flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH


def file_blockers(file: File, flags: int, name: str) -> list[Blocker]:
    """What keeps a regular file from being moved, as far as the source can tell."""
    if file.path.startswith("/proc/") and file.path.split("/")[2][:1].isdigit():
        return [Blocker(name, "it belongs to one process of the source", "let the process close it before the move")]
    if not file.linked and file.links > 0 and is_writable(flags):
        return [
            Blocker(
                name,
                f"open for writing; {file.path} no longer names it, but {file.links} other name(s) do",
                "let the process reopen it, or remove its other names",
            )
        ]
    return []


def directory_blockers(directory: Directory, name: str) -> list[Blocker]:
    """What keeps a directory from being moved."""
    if directory.linked:
        return []
    return [
        Blocker(
            name,
            "the directory has been removed",
            f"create {directory.path} again or let the process close it",
        )
    ]


def device_blockers(device: Device, name: str) -> list[Blocker]:
    """What keeps a device from being moved: any state behind it stays on its machine."""
    if device.device in STATELESS_DEVICES:
        return []
    return [
        Blocker(
            name,
            f"device {os.major(device.device)}:{os.minor(device.device)} belongs to this machine",
            "let the process close it before the move",
        )
    ]


def difference(
    file: File, found: os.stat_result, compare: Literal["strict", "size", "trust"], same_machine: bool
) -> str | None:
    """How the destination's file differs from the source's, in words, or None. On the `same_machine` one file does not
    differ from itself, whatever others may have written to it meanwhile."""
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file here"
    if same_machine and (found.st_dev, found.st_ino) == (file.device, file.inode):
        return None
    if compare == "trust" or file.path.startswith(KERNEL_FILES):
        return None
    if found.st_size != file.size:
        return f"its size is {found.st_size} bytes here and {file.size} bytes on the source"
    if compare == "strict" and found.st_mtime_ns != file.modified:
        return "it was modified at another time than the source's"
    return None


def preflight_file(
    file: File, flags: int, name: str, options: DescriptorOptions, same_machine: bool = False
) -> list[Blocker]:
    """Can the destination open the file, and is it the same one? Files to be written are compared after the
    freeze. On the `same_machine` a missing file has just been removed by the process itself.
    """
    path = options.map_path(file.path)
    if not file.linked:
        return []
    try:
        found = os.stat(path)
    except OSError as error:
        if same_machine and error.errno == errno.ENOENT and path == file.path:
            return []
        return [Blocker(name, f"{path}: {error.strerror}", "copy it here or point to it with --map-path OLD=NEW")]
    wrong = difference(file, found, "trust" if is_writable(flags) else options.files, same_machine)
    if wrong is not None:
        return [Blocker(name, f"{path}: {wrong}", "copy it here with its times, or relax --files")]
    if flags & os.O_PATH:
        return []
    mode = os.R_OK if flags & os.O_ACCMODE != os.O_WRONLY else 0
    if not os.access(path, mode | (os.W_OK if is_writable(flags) else 0)):
        return [Blocker(name, f"{path}: no permission to open it", "change its permissions or run lm-restore as root")]
    return []


def preflight_directory(directory: Directory, name: str, options: DescriptorOptions) -> list[Blocker]:
    """Is there such a directory on the destination?"""
    path = options.map_path(directory.path)
    if os.path.isdir(path):
        return []
    return [Blocker(name, f"{path} is not a directory here", "create it or point to it with --map-path OLD=NEW")]


def preflight_device(device: Device, name: str, options: DescriptorOptions) -> list[Blocker]:
    """Is there the same device on the destination?"""
    path = options.map_path(device.path)
    try:
        found = os.stat(path)
    except OSError as error:
        return [Blocker(name, f"{path}: {error.strerror}", "create the device node here")]
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == device.device:
        return []
    return [Blocker(name, f"{path} is another device here", "create the device node here")]


def open_file(file: File, flags: int, context: OpenContext) -> int:
    """Open the file on the destination.

    An unlinked one is made anew and empty, once for all its descriptions; its content has to follow.
    """
    # A file made with O_TMPFILE still says so in its flags, and with it O_DIRECTORY.
    flags &= ~os.O_TMPFILE
    if file.linked:
        return os.open(context.map_path(file.path), (flags & REOPEN_FLAGS) | os.O_CLOEXEC | os.O_NOCTTY)
    key = ("file", file.device, file.inode)
    if key not in context.anchors:
        anchor = make_unlinked(file, context)
        context.content_wanted[file.device, file.inode] = anchor
        context.anchors[key] = (anchor, anchor)
        context.close_later.append(anchor)
    return reopen(context.anchors[key][0], flags)


def make_unlinked(file: File, context: OpenContext) -> int:
    """An empty file without a name, in the directory of the old one; in memory where that cannot be had."""
    directory = os.path.dirname(context.map_path(file.path))
    try:
        number = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, file.mode)
    except OSError:
        # The file system has no O_TMPFILE, or the directory is missing here.
        number = os.memfd_create(os.path.basename(file.path), os.MFD_CLOEXEC)
    try:
        os.fchmod(number, file.mode)
        if os.geteuid() == 0:
            os.fchown(number, file.uid, file.gid)
        os.truncate(number, file.size)
    except OSError:
        close_all([number])
        raise
    return number


def open_path(path: str, flags: int, context: OpenContext) -> int:
    """Open a directory or a device on the destination."""
    return os.open(context.map_path(path), (flags & REOPEN_FLAGS) | os.O_CLOEXEC | os.O_NOCTTY)
