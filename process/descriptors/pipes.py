"""Pipes and FIFOs, with the data in them.

The data is read without consuming it: tee(2) copies the pipe's buffers into a pipe of our own, with their
bounds where the pipe is in packet mode (pipe(2), O_DIRECT).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import termios
from collections.abc import Callable, Collection, Container, Sequence
from pathlib import Path

import msgspec

from live_migration._lm import lib
from live_migration.kernel.opening import open_as
from live_migration.process.descriptors.kind import Holders, Kind, PreflightContext, SnapshotContext, always
from live_migration.process.descriptors.open_file import (
    OpenContext,
    OpenFile,
    Seen,
    close_all,
    give_to,
    reopen,
    set_flags,
)
from live_migration.wire.blockers import Blocker

DELETED = " (deleted)"


class Pipe(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pipe"):
    """An end of a pipe. The access mode in the open file's flags tells which one. `pipe` is the inode."""

    pipe: int


class PipeBody(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pipe"):
    """What the ends of the pipe with this inode share.

    `path` is that of a FIFO, or None; `removed`: it no longer leads there. `capacity` and `queued` are in bytes. Only
    the snapshot of the frozen process fills in `content`, one element for each packet if the pipe is in packet mode,
    else at most one.
    """

    inode: int
    device: int
    path: str | None
    removed: bool
    capacity: int
    queued: int
    mode: int
    uid: int
    gid: int
    content: list[bytes] = []


def is_pipe(seen: Seen) -> bool:
    """Is it an end of a pipe or FIFO?"""
    return not seen.flags & os.O_PATH


def snapshot_pipe(seen: Seen, _: SnapshotContext) -> Pipe:
    """Describe one end of a pipe."""
    return Pipe(pipe=seen.inode)


def snapshot_pipe_bodies(ends: Sequence[Seen]) -> list[PipeBody]:
    """What the ends of each pipe share, read through an end that can be read from, if there is one."""
    bodies: dict[int, PipeBody] = {}
    for one in sorted(ends, key=lambda each: each.flags & os.O_ACCMODE == os.O_WRONLY):
        if one.inode not in bodies:
            bodies[one.inode] = snapshot_pipe_body(one)
    return list(bodies.values())


def snapshot_pipe_body(seen: Seen) -> PipeBody:
    """Describe what the ends share; the content only if this end can be read from and the process is
    frozen.
    """
    readable = seen.flags & os.O_ACCMODE != os.O_WRONLY
    capacity = fcntl.fcntl(seen.duplicate, fcntl.F_GETPIPE_SZ)
    queued = int.from_bytes(fcntl.ioctl(seen.duplicate, termios.FIONREAD, bytes(4)), "little")
    anonymous = seen.link.startswith("pipe:[")
    removed = not anonymous and seen.status.st_nlink == 0
    return PipeBody(
        inode=seen.status.st_ino,
        device=seen.status.st_dev,
        path=None if anonymous else seen.link.removesuffix(DELETED) if removed else seen.link,
        removed=removed,
        capacity=capacity,
        queued=queued,
        mode=stat.S_IMODE(seen.status.st_mode),
        uid=seen.status.st_uid,
        gid=seen.status.st_gid,
        content=peek_pipe(seen.duplicate, capacity) if seen.frozen and readable and queued else [],
    )


def peek_pipe(number: int, capacity: int) -> list[bytes]:
    """The data in the pipe whose read end is `number`, left where it is."""
    copy_out, copy_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if fcntl.fcntl(copy_in, fcntl.F_GETPIPE_SZ) != capacity:
            fcntl.fcntl(copy_in, fcntl.F_SETPIPE_SZ, capacity)
        copied = lib.lm_tee(number, copy_in, capacity)
        if copied < 0:
            raise OSError(-copied, os.strerror(-copied), "tee")
        packets = []
        left = copied
        while left:
            # A read ends at a packet's end, and elsewhere only when the pipe is empty or the buffer full.
            packets.append(os.read(copy_out, capacity))
            left -= len(packets[-1])
    finally:
        close_all([copy_out, copy_in])
    return packets


def pipe_size_limit() -> int:
    """The largest capacity that an unprivileged process can give a pipe, in bytes (proc(5))."""
    return int(Path("/proc/sys/fs/pipe-max-size").read_text())


def is_same(old: Pipe, new: Pipe) -> bool:
    """Are they of one pipe?"""
    return old.pipe == new.pipe


def leads_outside(one: OpenFile[Pipe], _: Container[str]) -> bool:
    """Does a process that stays hold the pipe?"""
    return bool(one.holders)


def preflight_pipe(one: OpenFile[Pipe], context: PreflightContext) -> list[Blocker]:
    """Is the FIFO here, or room for the pipe? Only one of its ends reports that."""
    body = context.shared.pop((PipeBody, one.object.pipe), None)
    return preflight_body(body, one.name, context.options.map_path) if body is not None else []


def preflight_body(body: PipeBody, name: str, map_path: Callable[[str], str]) -> list[Blocker]:
    """The same for what the ends share."""
    if body.path is not None and not body.removed:
        path = map_path(body.path)
        try:
            found = os.stat(path)
        except OSError as error:
            return [Blocker(name, f"{path}: {error.strerror}", "create the FIFO here with mkfifo")]
        if not stat.S_ISFIFO(found.st_mode):
            return [Blocker(name, f"{path} is not a FIFO here", "create it with mkfifo")]
    if body.queued > pipe_size_limit():
        return [
            Blocker(
                name,
                f"it holds {body.queued} bytes, more than a pipe can here",
                f"raise the sysctl fs.pipe-max-size to {body.capacity}",
            )
        ]
    return []


def open_pipe(one: OpenFile[Pipe], context: OpenContext) -> int:
    """One end, an open file of its own. The pipe itself is made once, and two anchors keep it until all is opened.
    """
    flags, body = one.flags, context.shared[PipeBody, one.object.pipe]
    anchors = pipe_anchors(body, context)
    writes = flags & os.O_ACCMODE == os.O_WRONLY
    anchor = anchors[1 if writes else 0]
    if body.path is None and flags & os.O_ACCMODE != os.O_RDWR:
        # The ends that pipe2(2) made; opening them again, as for further open files, adds O_LARGEFILE.
        first_use = ("pipe end", int(writes), body.inode)
        if first_use not in context.anchors:
            context.anchors[first_use] = (anchor, anchor)
            set_flags(anchor, flags)
            return os.dup(anchor)
    # O_NONBLOCK: opening must not wait for the other end. Only fcntl can set packet mode (fcntl(2), F_SETFL).
    number = reopen(anchor, (flags | os.O_NONBLOCK) & ~os.O_DIRECT)
    set_flags(number, flags)
    return number


def pipe_anchors(body: PipeBody, context: OpenContext) -> tuple[int, int]:
    """A read and a write end of the pipe, made at the first call."""
    key = ("pipe", body.device, body.inode)
    if key in context.anchors:
        return context.anchors[key]
    if body.path is None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.fchmod(read_end, body.mode)
        give_to(read_end, body.uid, body.gid)
    elif body.removed:
        read_end = make_fifo(body, context.map_path(body.path))
        write_end = os.dup(read_end)
    else:
        # When it is opened for both directions, a FIFO waits for nobody (fifo(7)).
        read_end = open_as(stat.S_IFIFO, context.place(body.path), os.O_RDWR | os.O_NONBLOCK)
        write_end = os.dup(read_end)
    context.close_later += [read_end, write_end]
    context.anchors[key] = (read_end, write_end)
    if fcntl.fcntl(read_end, fcntl.F_GETPIPE_SZ) != body.capacity:
        # Without CAP_SYS_RESOURCE it gets as much room as it may; writing the content shows whether that is enough.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, min(body.capacity, max(pipe_size_limit(), 4096)))
    return read_end, write_end


def make_fifo(body: PipeBody, path: str) -> int:
    """A FIFO without a path, open for both directions, made where `path` is, or where temporary files are.

    Raises OSError.
    """
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK):
        folder = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".lm-") as made:
        place = os.path.join(made, os.path.basename(path))
        os.mkfifo(place, 0o600)
        number = os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    give_to(number, body.uid, body.gid)
    os.fchmod(number, body.mode)
    return number


def fill_pipes(ends: Collection[OpenFile[Pipe]], context: OpenContext) -> None:
    """Put the content into the pipes that have these ends. Raises OSError (ENOSPC) when it does not all fit."""
    packets = {one.object.pipe for one in ends if one.flags & os.O_DIRECT}
    for pipe in dict.fromkeys(one.object.pipe for one in ends):
        body = context.shared.get((PipeBody, pipe))
        if body is not None and body.content:
            fill_pipe(body, pipe in packets or len(body.content) > 1, context)


def fill_pipe(body: PipeBody, packets: bool, context: OpenContext) -> None:
    """Put the content into the pipe. Raises OSError (ENOSPC) when it does not all fit."""
    read_end, write_end = pipe_anchors(body, context)
    if body.path is not None and is_same_fifo(body, read_end, context):
        return
    flags = fcntl.fcntl(write_end, fcntl.F_GETFL)
    fcntl.fcntl(write_end, fcntl.F_SETFL, os.O_NONBLOCK | (os.O_DIRECT if packets else 0))
    for piece in body.content:
        if os.write(write_end, piece) != len(piece):
            raise OSError(errno.ENOSPC, "the pipe is too small here for the data that it held on the source")
    fcntl.fcntl(write_end, fcntl.F_SETFL, flags)


def is_same_fifo(body: PipeBody, number: int, context: OpenContext) -> bool:
    """Is the FIFO opened here the source's own, on one machine, so that its content is there already?"""
    found = os.fstat(number)
    return context.same_machine and (found.st_dev, found.st_ino) == (body.device, body.inode)


PIPE = Kind(
    object=Pipe,
    file_types=(stat.S_IFIFO,),
    recognise=is_pipe,
    snapshot=snapshot_pipe,
    told=always,
    same=is_same,
    shared=PipeBody,
    snapshot_shared=snapshot_pipe_bodies,
    holders=Holders.BY_OBJECT,
    leads_outside=leads_outside,
    preflight=preflight_pipe,
    open=open_pipe,
    fill=fill_pipes,
)
