"""pidfds (pidfd_open(2)) of the process itself, and of processes that have ended. /proc/PID/fdinfo tells which."""

from __future__ import annotations

import os

import msgspec

from live_migration._lm import lib
from live_migration.process.descriptors.kind import BlockerContext, Kind, SnapshotContext
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker

ENDED = -1
PIDFD_THREAD = os.O_EXCL


class PidFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pidfd"):
    """A pidfd: `own`, of the process itself, or `ended`. Else `process` stays, whose id that is on the source."""

    own: bool
    ended: bool
    process: int


def snapshot_pidfd(seen: Seen, _: SnapshotContext) -> PidFd:
    """Describe a pidfd from outside."""
    process = int(seen.field("Pid"))
    return PidFd(own=process == seen.pid, ended=process == ENDED, process=process)


def is_same(old: PidFd, new: PidFd) -> bool:
    """Do both stand for the same process, and lives it as before?"""
    return old == new


def pidfd_blockers(one: OpenFile[PidFd], _: BlockerContext) -> list[Blocker]:
    """A blocker if the process it stands for stays."""
    if one.object.own or one.object.ended:
        return []
    # 0: a process that lies outside of lm-serve's PID namespace.
    which = f"process {one.object.process}" if one.object.process else "a process"
    return [Blocker(one.name, f"a pidfd of {which}, which stays", "let the process close it before the move")]


def open_pidfd(one: OpenFile[PidFd], context: OpenContext) -> int:
    """A pidfd of the process as it is here, or of one that has ended."""
    flags = one.flags & (PIDFD_THREAD | os.O_NONBLOCK)
    if one.object.own:
        return os.pidfd_open(context.process, flags)
    number: int = lib.lm_ended_pidfd(context.process, flags)
    if number < 0:
        raise OSError(-number, os.strerror(-number), "making a pidfd of a process that has ended")
    return number


PIDFD = Kind(
    object=PidFd,
    links=("anon_inode:[pidfd]",),
    snapshot=snapshot_pidfd,
    same=is_same,
    blockers=pidfd_blockers,
    open=open_pidfd,
)
