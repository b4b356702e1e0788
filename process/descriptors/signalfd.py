"""signalfd(2): signals to be read. The thread that reads decides which ones are read, and whose."""

from __future__ import annotations

import os

import msgspec

from live_migration._lm import lib
from live_migration.process.descriptors.kind import Kind, SnapshotContext, always
from live_migration.process.descriptors.open_file import OpenContext, OpenFile, Seen


class SignalFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="signalfd"):
    """The signals that it takes, bit 0 for signal 1."""

    mask: int


def snapshot_signalfd(seen: Seen, _: SnapshotContext) -> SignalFd:
    """Describe it from outside."""
    return SignalFd(mask=int(seen.field("sigmask"), 16))


def is_same(old: SignalFd, new: SignalFd) -> bool:
    """Do they take the same signals? There is nothing else to a signalfd."""
    return old.mask == new.mask


def open_signalfd(one: OpenFile[SignalFd], _: OpenContext) -> int:
    """One for the same signals."""
    number: int = lib.lm_signalfd(one.object.mask, os.O_CLOEXEC)
    if number < 0:
        raise OSError(-number, os.strerror(-number), "signalfd")
    return number


SIGNALFD = Kind(
    object=SignalFd,
    links=("anon_inode:[signalfd]",),
    snapshot=snapshot_signalfd,
    told=always,
    same=is_same,
    open=open_signalfd,
)
