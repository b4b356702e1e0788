"""inotify(7): the files and directories that are watched, under the same watch descriptors.

On one host the instance itself is handed over, with the events that come meanwhile. Else it is made anew: the kernel
tells a watch by the file's handle, which open_by_handle_at(2) turns into a path. Watch descriptors count up and cannot
be chosen, so numbers in between are used up with a file of our own. What the new one has seen before the process runs
is dropped: the process has heard of it at the source, or lm-restore has caused it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import termios
from collections.abc import Callable, Collection, Container

import msgspec

from live_migration._lm import lib
from live_migration.kernel.kcmp import same_open_file
from live_migration.kernel.proc import read_proc
from live_migration.process.descriptors.file_locks import is_same_file
from live_migration.process.descriptors.kind import (
    BlockerContext,
    Kind,
    PreflightContext,
    SnapshotContext,
)
from live_migration.process.descriptors.open_file import (
    OpenContext,
    OpenFile,
    Seen,
    as_handed_over,
    close_all,
    read_information,
    set_flags,
)
from live_migration.wire.blockers import Blocker

WATCH = re.compile(
    r"^inotify wd:([0-9a-f]+) ino:[0-9a-f]+ sdev:([0-9a-f]+) mask:([0-9a-f]+) .*"
    r"fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+)",
    re.MULTILINE,
)
# IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT: the rest of the mask is not for inotify_add_watch(2).
MASK = 0xFFF | 0x04000000 | 0x80000000
MOST_WATCHES = 1 << 20
ESCAPED = re.compile(rb"\\([0-7]{3})")


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """A watched file or directory; `path` is None when it has none any more. `device` and `inode` are the source's."""

    watch: int
    path: str | None
    mask: int
    device: int = 0
    inode: int = 0


class Inotify(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="inotify"):
    """An inotify instance; `queued` are the bytes of events not read yet. `inode` it shares with other such objects."""

    inode: int
    watches: list[Watch]
    queued: int


def snapshot_inotify(seen: Seen, _: SnapshotContext) -> Inotify:
    """Describe an inotify instance from outside."""
    watches = [
        watch_of(seen.pid, int(watch, 16), int(mask, 16) & MASK, int(device, 16), int(kind, 16), bytes.fromhex(handle))
        for watch, device, mask, kind, handle in WATCH.findall(seen.information)
    ]
    watches.sort(key=lambda each: each.watch)
    return Inotify(inode=seen.status.st_ino, watches=watches, queued=bytes_queued(seen.duplicate))


def bytes_queued(number: int) -> int:
    """The bytes of events that nobody has read."""
    return int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), "little")


def unescaped(found: re.Match[bytes]) -> bytes:
    """The byte that proc_pid_mountinfo(5) shows as an octal number."""
    return bytes([int(found[1], 8)])


def watch_of(pid: int, watch: int, mask: int, device: int, kind: int, handle: bytes) -> Watch:
    """A watch of the file with that handle on the file system `device` (the kernel's number: major << 20 | minor)."""
    wanted = b"%d:%d" % (device >> 20, device & 0xFFFFF)
    for line in read_proc(f"/proc/{pid}/mountinfo").splitlines():
        fields = line.split()
        if fields[2] != wanted:
            continue
        try:
            mount = os.open(ESCAPED.sub(unescaped, fields[4]), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found = lib.lm_open_handle(mount, kind, handle, len(handle))
        finally:
            os.close(mount)
        if found < 0:
            continue
        try:
            path, status = os.readlink(f"/proc/self/fd/{found}"), os.fstat(found)
            named = status.st_nlink and not path.endswith(" (deleted)")
            return Watch(
                watch=watch, path=path if named else None, mask=mask, device=status.st_dev, inode=status.st_ino
            )
        finally:
            os.close(found)
    return Watch(watch=watch, path=None, mask=mask)


def inotify_blockers(one: OpenFile[Inotify], context: BlockerContext) -> list[Blocker]:
    """Blockers: watches of files without a path and, when it is frozen, events."""
    found = [
        Blocker(one.name, f"the file of watch {each.watch} has no path", "let the process remove the watch")
        for each in one.object.watches
        if each.path is None
    ]
    return found + event_blockers(one) if context.frozen else found


def event_blockers(one: OpenFile[Inotify]) -> list[Blocker]:
    """Blockers that pass when the process reads its events, which would be lost: nobody can queue them anew."""
    if not one.object.queued:
        return []
    return [Blocker(one.name, "it holds events that are not read yet", "try again when the process has read them")]


def came_since(one: OpenFile[Inotify], duplicate: int, handed_over: Container[int]) -> list[Blocker]:
    """A blocker if an event has come since the instance was described, and the destination has dropped its own."""
    if as_handed_over(one.identity) in handed_over or not bytes_queued(duplicate):
        return []
    return [Blocker(one.name, "it got an event at the moment of the freeze", "try again")]


def preflight_inotify(one: OpenFile[Inotify], context: PreflightContext) -> list[Blocker]:
    """Are the watched files there on the destination?"""
    map_path = context.options.map_path
    return [
        Blocker(
            one.name, f"it watches {map_path(each.path)}, which is not here", "create it or point to it with --map-path"
        )
        for each in one.object.watches
        if each.path is not None and not os.path.lexists(map_path(each.path))
    ]


def open_inotify(one: OpenFile[Inotify], context: OpenContext) -> int:
    """The source's own instance, or one with the same watches under the same watch descriptors."""
    handed = fetch_instance(one, context)
    if handed is not None:
        context.anchors["inotify of the source", one.identity, 0] = (handed, handed)
        context.handed_over.add(as_handed_over(one.identity))
        return handed
    number = checked(lib.lm_inotify_init(os.O_CLOEXEC | os.O_NONBLOCK))
    context.anchors["inotify", one.identity, 0] = (number, number)
    add_watches(number, one.object.watches, context.map_path, 0)
    return number


def fetch_instance(one: OpenFile[Inotify], context: OpenContext) -> int | None:
    """The source's own, if it can be reached and watches what the same paths lead to here; else None."""
    if not context.same_machine or not all(is_here(each, context.map_path) for each in one.object.watches):
        return None
    fetched = context.fetch(one.number, one.object.inode)
    if fetched is not None:
        watched = {int(each[0], 16) for each in WATCH.findall(read_information(os.getpid(), fetched))}
        if watched == {each.watch for each in one.object.watches}:
            return fetched
        close_all([fetched])
    return None


def is_here(watch: Watch, map_path: Callable[[str], str]) -> bool:
    """Does the path of a watch lead to the same file here?"""
    return watch.path is not None and is_same_file(map_path(watch.path), watch.device, watch.inode)


def update_inotify(number: int, one: OpenFile[Inotify], before: Inotify, context: OpenContext) -> None:
    """Add and remove the watches that differ by now."""
    if ("inotify of the source", one.identity, 0) in context.anchors:
        check_still_the_same(number, one, context)
        return
    after, map_path = one.object, context.map_path
    old = {each.watch: each for each in before.watches}
    new = {each.watch: each for each in after.watches}
    for watch in old.keys() - new.keys():
        checked(lib.lm_inotify_remove(number, watch))
    added = [each for watch, each in new.items() if watch not in old]
    changed = [each for watch, each in new.items() if watch in old and old[watch] != each]
    for each in changed:
        checked(lib.lm_inotify_add(number, os.fsencode(map_path(each.path or "")), each.mask))
    add_watches(number, added, map_path, max(old, default=0))


def add_watches(number: int, watches: list[Watch], map_path: Callable[[str], str], highest: int) -> None:
    """Add watches, whose watch descriptors are above `highest`, the last one given out."""
    if not watches:
        return
    if watches[-1].watch > MOST_WATCHES:
        raise OSError(22, f"inotify watch {watches[-1].watch} is too high a number")
    filler = os.memfd_create("inotify", os.MFD_CLOEXEC)
    try:
        for each in sorted(watches, key=lambda one: one.watch):
            while highest < each.watch - 1:
                highest = checked(lib.lm_inotify_add(number, b"/proc/self/fd/%d" % filler, 1))
                checked(lib.lm_inotify_remove(number, highest))
            highest = checked(lib.lm_inotify_add(number, os.fsencode(map_path(each.path or "")), each.mask))
            if highest != each.watch:
                raise OSError(22, f"inotify watch {each.watch} became {highest} here")
        # The events of the removed fillers are not for the process.
        drop_events(number)
    finally:
        os.close(filler)


def check_still_the_same(number: int, one: OpenFile[Inotify], context: OpenContext) -> None:
    """Raises OSError if the process has replaced the instance since it was handed over."""
    now = context.fetch(one.number, one.object.inode)
    try:
        if now is None or not same_open_file(os.getpid(), now, os.getpid(), number):
            raise OSError(errno.ESTALE, "the process has replaced it by another one since; try again")
    finally:
        close_all([] if now is None else [now])


def drop_events(number: int) -> None:
    """Forget what an instance has seen until now."""
    os.set_blocking(number, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.read(number, 65536)


def drop_all_events(all_of_them: Collection[OpenFile[Inotify]], context: OpenContext) -> None:
    """Forget what the instances that were made here have seen until now: lm-restore has opened and mapped files."""
    for one in all_of_them:
        made = context.anchors.get(("inotify", one.identity, 0))
        if made is not None:
            drop_events(made[0])
            set_flags(made[0], one.flags)


def checked(result: int) -> int:
    """The result of a call, or OSError."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), "inotify")
    return result


INOTIFY = Kind(
    object=Inotify,
    links=("anon_inode:inotify", "inotify"),
    snapshot=snapshot_inotify,
    blockers=inotify_blockers,
    passing=event_blockers,
    came=came_since,
    preflight=preflight_inotify,
    open=open_inotify,
    update=update_inotify,
    seal=drop_all_events,
)
