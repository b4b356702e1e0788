"""signalfd(2): signals to be read. Which ones are read, and whose, is decided by the thread that reads."""

from __future__ import annotations

import os

import msgspec

from live_migration._lm import lib
from live_migration.process.descriptors.open_file import Seen

LINK = "anon_inode:[signalfd]"


class SignalFd(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="signalfd"):
    """The signals that it takes, bit 0 for signal 1."""

    mask: int


def snapshot_signalfd(seen: Seen) -> SignalFd:
    """Describe it from outside."""
    return SignalFd(mask=int(seen.field("sigmask"), 16))


def open_signalfd(signals: SignalFd) -> int:
    """One for the same signals."""
    number: int = lib.lm_signalfd(signals.mask, os.O_CLOEXEC)
    if number < 0:
        raise OSError(-number, os.strerror(-number), "signalfd")
    return number
