"""Regular files, also unlinked ones.

A file is opened again by its path. One that is unlinked, or whose path now names another file, is not
reachable by a path: it is made anew in the same directory, and its content travels.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import Any, Literal

import msgspec

from live_migration.kernel.opening import open_as
from live_migration.process.descriptors.file_locks import held_locks, is_same_file, take_locks
from live_migration.process.descriptors.kind import BlockerContext, FileObject, Kind, PreflightContext, SnapshotContext
from live_migration.process.descriptors.open_file import (
    REOPEN_FLAGS,
    OpenContext,
    OpenFile,
    Seen,
    close_all,
    reopen,
    seek,
)
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.wire.blockers import Blocker

DELETED = " (deleted)"
# Files whose size and times say nothing (proc(5), sysfs(5)).
KERNEL_FILES = ("/proc/", "/sys/")


class File(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """A regular file. `linked`: its path still names it. Times in nanoseconds since the epoch."""

    path: str
    device: int
    inode: int
    size: int
    accessed: int
    modified: int
    mode: int
    uid: int
    gid: int
    linked: bool
    links: int


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
    return msgspec.structs.replace(seen, link=os.readlink(f"/proc/self/fd/{seen.duplicate}"))


def snapshot_file(seen: Seen, _: SnapshotContext) -> File:
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
        accessed=seen.status.st_atime_ns,
        modified=seen.status.st_mtime_ns,
        mode=stat.S_IMODE(seen.status.st_mode),
        uid=seen.status.st_uid,
        gid=seen.status.st_gid,
        linked=linked,
        links=seen.status.st_nlink,
    )


def is_writable(flags: int) -> bool:
    """Can an open file with these flags be written to?"""
    return flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH


def is_same(old: File, new: File) -> bool:
    """Is it one file, and does a path lead to it as before?"""
    return (old.device, old.inode, old.linked) == (new.device, new.inode, new.linked)


def is_inherited(one: OpenFile[File]) -> bool:
    """Is it one at 0 to 2, which a waiting shell may hold too? The destination opens it by its path, and only its
    offset is no longer shared.
    """
    return one.number <= 2 and one.object.linked


def process_blockers(name: str, path: str) -> list[Blocker]:
    """What is opened below /proc/PID stands for that very process (proc(5)): opened anew it would be another's."""
    if not (path.startswith("/proc/") and path.split("/")[2][:1].isdigit()):
        return []
    cause = "it belongs to one process of the source, and opened anew it would be another's"
    return [Blocker(name, cause, "let the process close it before the move; if it does so by itself, try again")]


def file_blockers(one: OpenFile[File], _: BlockerContext) -> list[Blocker]:
    """The blockers of a regular file, as far as the source can tell."""
    file, flags, name = one.object, one.flags, one.name
    if blockers := process_blockers(name, file.path):
        return blockers
    if not file.linked and file.links > 0 and is_writable(flags):
        return [
            Blocker(
                name,
                f"open for writing; {file.path} no longer names it, but {file.links} other name(s) do",
                "let the process reopen it, or remove its other names",
            )
        ]
    return []


def file_difference(
    file: File, found: os.stat_result, compare: Literal["strict", "size", "trust"], same_machine: bool
) -> str | None:
    """How the destination's file differs from the source's, in words, or None. On the `same_machine` a file does not
    differ from itself, whatever others have written to it meanwhile."""
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
    """Can the destination open the file, and is it the same one? Files that are open for writing are compared after the
    freeze. On the `same_machine`, the process itself has just removed a missing file.
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
    wrong = file_difference(file, found, "trust" if is_writable(flags) else options.files, same_machine)
    if wrong is not None:
        return [Blocker(name, f"{path}: {wrong}", "copy it here with its times, or relax --files")]
    if flags & os.O_PATH:
        return []
    mode = os.R_OK if flags & os.O_ACCMODE != os.O_WRONLY else 0
    if not os.access(path, mode | (os.W_OK if is_writable(flags) else 0)):
        return [Blocker(name, f"{path}: no permission to open it", "change its permissions or run lm-restore as root")]
    return []


def preflight(one: OpenFile[File], context: PreflightContext) -> list[Blocker]:
    """The preflight of an open file."""
    return preflight_file(one.object, one.flags, one.name, context.options, context.reach.same_machine)


def open_file(one: OpenFile[File], context: OpenContext) -> int:
    """Open the file on the destination, or, on one machine, take the source's own open file if that holds a lock.

    An unlinked file is made anew and empty, once for all its open files; its content has to follow.
    """
    file, flags = one.object, one.flags
    if held_locks(one.locks) and is_same_file_here(file, context):
        handed_over = context.fetch(one.number, file.inode)
        if handed_over is not None:
            return handed_over
    # A file made with O_TMPFILE still says so in its flags, and with it O_DIRECTORY.
    flags &= ~os.O_TMPFILE
    if file.linked:
        return open_as(stat.S_IFREG, context.place(file.path), flags & REOPEN_FLAGS)
    key = ("file", file.device, file.inode)
    if key not in context.anchors:
        anchor = make_unlinked(file, context)
        context.content_wanted[file.device, file.inode] = anchor
        context.anchors[key] = (anchor, anchor)
        context.close_later.append(anchor)
    return reopen(context.anchors[key][0], flags)


def is_same_file_here(file: File, context: OpenContext) -> bool:
    """Does the path lead to the source's own file, on one machine?"""
    return context.same_machine and is_same_file(context.map_path(file.path), file.device, file.inode)


def make_unlinked(file: File, context: OpenContext) -> int:
    """An empty file without a name, in the directory of the old one, or in memory if that is impossible."""
    directory = os.path.dirname(context.place(file.path))
    try:
        number = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, file.mode)
    except OSError:
        # The file system has no O_TMPFILE, or the directory is missing here.
        number = os.memfd_create(os.path.basename(file.path), os.MFD_CLOEXEC)
    try:
        give_rights(number, file)
        os.truncate(number, file.size)
    except OSError:
        close_all([number])
        raise
    return number


def give_rights(number: int, file: FileObject) -> None:
    """Give a file that was made here its owner, as far as this process may, and its permissions, where they differ. To
    give it an owner takes away some of its permissions."""
    found = os.fstat(number)
    if os.geteuid() == 0 and (found.st_uid, found.st_gid) != (file.uid, file.gid):
        os.fchown(number, file.uid, file.gid)
    if stat.S_IMODE(os.fstat(number).st_mode) != file.mode:
        os.fchmod(number, file.mode)


def give_times(all_of_them: Collection[OpenFile[Any]], context: OpenContext) -> None:
    """Give the files that were made here their times, when their content is in place. Raises OSError."""
    for file in {one.object.inode: one.object for one in all_of_them}.values():
        made = context.content_wanted.get((file.device, file.inode))
        if made is not None:
            os.utime(made, ns=(file.accessed, file.modified))


def update_bytes(number: int, one: OpenFile[Any], file: FileObject, context: OpenContext) -> None:
    """Give a file its size and rights, if its bytes travel, then the locks and the offset of its open file."""
    made = context.content_wanted.get((file.device, file.inode))
    if made is not None:
        if os.fstat(made).st_size != file.size:
            os.truncate(made, file.size)
        give_rights(made, file)
    take_locks(number, one.locks)
    seek(number, one.offset)


def update_file(number: int, one: OpenFile[File], _: File, context: OpenContext) -> None:
    """Its size, locks and offset."""
    update_bytes(number, one, one.object, context)


FILE = Kind(
    object=File,
    file_types=(stat.S_IFREG,),
    snapshot=snapshot_file,
    same=is_same,
    may_be_held=is_inherited,
    blockers=file_blockers,
    is_file=True,
    preflight=preflight,
    open=open_file,
    may_vanish=True,
    update=update_file,
    seal=give_times,
)
