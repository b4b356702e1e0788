"""Character devices whose descriptors keep no state, such as /dev/null; all others are a blocker."""

from __future__ import annotations

import os
import stat

import msgspec

from live_migration.kernel.opening import open_as
from live_migration.process.descriptors.kind import (
    BlockerContext,
    Holders,
    Kind,
    PreflightContext,
    SnapshotContext,
    always,
)
from live_migration.process.descriptors.open_file import REOPEN_FLAGS, OpenContext, OpenFile, Seen
from live_migration.wire.blockers import Blocker

# Devices whose descriptors hold nothing but their flags: null, zero, full, random, urandom
# (Documentation/admin-guide/devices.txt).
STATELESS_DEVICES = {os.makedev(1, minor) for minor in (3, 5, 7, 8, 9)}


class Device(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="device"):
    """A character device that keeps no state for its descriptors, such as /dev/null."""

    path: str
    device: int


def snapshot_device(seen: Seen, _: SnapshotContext) -> Device:
    """Describe a character device from outside."""
    return Device(path=seen.link, device=seen.status.st_rdev)


def device_blockers(one: OpenFile[Device], _: BlockerContext) -> list[Blocker]:
    """What keeps a device from being moved: any state behind it stays on its machine."""
    device = one.object.device
    if device in STATELESS_DEVICES:
        return []
    return [
        Blocker(
            one.name,
            f"device {os.major(device)}:{os.minor(device)} belongs to this machine",
            "let the process close it before the move",
        )
    ]


def preflight_device(one: OpenFile[Device], context: PreflightContext) -> list[Blocker]:
    """Is there the same device on the destination?"""
    path = context.options.map_path(one.object.path)
    try:
        found = os.stat(path)
    except OSError as error:
        return [Blocker(one.name, f"{path}: {error.strerror}", "create the device node here")]
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == one.object.device:
        return []
    return [Blocker(one.name, f"{path} is another device here", "create the device node here")]


def open_device(one: OpenFile[Device], context: OpenContext) -> int:
    """Open it by its path."""
    path, flags = context.place(one.object.path), one.flags & REOPEN_FLAGS
    return open_as(stat.S_IFCHR, path, flags, one.object.device)


DEVICE = Kind(
    object=Device,
    file_types=(stat.S_IFCHR,),
    snapshot=snapshot_device,
    told=always,
    holders=Holders.BY_ANYBODY,
    blockers=device_blockers,
    preflight=preflight_device,
    open=open_device,
)
