"""Memory that a process shares with one that stays: shared mappings without a path, memfds, unlinked files.

Moved, each of the two would go on with a copy of its own, and neither would see what the other writes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from live_migration.process.descriptors.files import File
from live_migration.process.descriptors.memfd import MemFd
from live_migration.process.descriptors.open_file import Holder
from live_migration.process.descriptors.outsiders import holders_text, links_of, other_processes, process_name
from live_migration.process.descriptors.table import Table
from live_migration.process.memory.mappings import AddressSpace, Kind
from live_migration.wire.blockers import Blocker

# A file as /proc/PID/maps tells it: device in hexadecimal, and inode.
Identity = tuple[str, int]


def shared_memory_blockers(
    pid: int, memory: AddressSpace, table: Table, ignore: Collection[int] = ()
) -> list[Blocker]:
    """Memory of process `pid` that others map or have open; this process and those in `ignore` do not
    count.
    """
    names = shared_files(memory, table)
    links = {one.link for one in table.descriptions if identity_of(one.kind) in names}
    found = find_sharers(pid, names.keys(), links, {os.getpid(), *ignore})
    return [
        Blocker(
            names[identity],
            f"memory that is also held by {holders_text(holders)}, which will not move",
            "end the holder, or let one of the two give the memory up before the move",
        )
        for identity, holders in found.items()
    ]


def shared_files(memory: AddressSpace, table: Table) -> dict[Identity, str]:
    """What could be shared without a path leading to it, each with its name for messages."""
    names: dict[Identity, str] = {}
    for mapping in memory.mappings:
        if mapping.kind is Kind.SHARED_ANONYMOUS or (mapping.kind is Kind.BY_DESCRIPTOR and mapping.shared):
            name = f"mapping {mapping.start:x}-{mapping.end:x} {mapping.path}".rstrip()
            names.setdefault((mapping.device, mapping.inode), name)
    for one in table.descriptions:
        identity = identity_of(one.kind)
        if identity is not None and one.standard is None:
            names.setdefault(identity, one.name)
    return names


def identity_of(kind: object) -> Identity | None:
    """The identity of a file that only descriptors lead to, or None."""
    if isinstance(kind, MemFd) or (isinstance(kind, File) and not kind.linked):
        return device_name(kind.device), kind.inode
    return None


def device_name(device: int) -> str:
    """A device number as /proc/PID/maps writes it."""
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def find_sharers(
    pid: int, wanted: Collection[Identity], links: Collection[str], ignore: Collection[int]
) -> dict[Identity, list[Holder]]:
    """Who else maps one of the files, or has it open under one of the `links`."""
    texts = {f" {device} {inode} ": (device, inode) for device, inode in wanted}
    found: dict[Identity, list[Holder]] = {}
    for other in other_processes(pid, ignore) if wanted else ():
        maps = maps_of(other)
        held = {identity for text, identity in texts.items() if text in maps}
        for number, link in links_of(other) if links else ():
            if link in links:
                held |= {opened_file(other, number)} & set(wanted)
        for identity in held:
            found.setdefault(identity, []).append(Holder(pid=other, name=process_name(other)))
    return found


def maps_of(pid: int) -> str:
    """The text of /proc/PID/maps; empty if the process has gone or may not be looked at."""
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""


def opened_file(pid: int, number: int) -> Identity:
    """The identity of the file behind a descriptor of another process; one of nothing if it has gone."""
    try:
        status = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return "", 0
    return device_name(status.st_dev), status.st_ino
