"""Memory that a process shares with one that stays: shared mappings without a path, memfds, unlinked files.

After a move each of the two would go on with a copy of its own, and neither would see what the other writes.
"""

from __future__ import annotations

from live_migration.process.descriptors.registry import AnyObject, file_of
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.memory.mappings import AddressSpace, MappingKind
from live_migration.process.scope import FileIdentity, HostScan, device_name, holders_text
from live_migration.wire.blockers import Blocker


def shared_memory_blockers(memory: AddressSpace, table: DescriptorTable, scan: HostScan) -> list[Blocker]:
    """Blockers: memory of a member that processes which stay map or have open."""
    names = shared_files(memory, table)
    links = {one.link for one in table.open_files if identity_of(one.object) in names}
    found = scan.sharers(names.keys(), links)
    return [
        Blocker(
            names[identity],
            f"memory that is also held by {holders_text(holders)}, which will not move",
            "end the holder, or let one of the two give the memory up before the move",
        )
        for identity, holders in found.items()
    ]


def shared_files(memory: AddressSpace, table: DescriptorTable) -> dict[FileIdentity, str]:
    """What could be shared although no path leads to it, each with its name for messages."""
    names: dict[FileIdentity, str] = {}
    for mapping in memory.mappings:
        if mapping.kind is MappingKind.SHARED_ANONYMOUS or (
            mapping.kind is MappingKind.BY_DESCRIPTOR and mapping.shared
        ):
            name = f"mapping {mapping.start:x}-{mapping.end:x} {mapping.path}".rstrip()
            names.setdefault((mapping.device, mapping.inode), name)
    for one in table.open_files:
        identity = identity_of(one.object)
        if identity is not None and one.standard is None:
            names.setdefault(identity, one.name)
    return names


def identity_of(one: AnyObject) -> FileIdentity | None:
    """The identity of a file that only descriptors lead to, or None."""
    file = file_of(one)
    return (device_name(file.device), file.inode) if file is not None and not file.linked else None
