"""Every blocker that a process's descriptors put in the way, on the source and on the destination."""

from __future__ import annotations

from live_migration.process.descriptors.file_locks import kept_locks, lock_blockers
from live_migration.process.descriptors.kind import BlockerContext, PreflightContext
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import reach_of
from live_migration.process.descriptors.registry import AnyObject, kind_of
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.scope import holders_text
from live_migration.wire.blockers import Blocker


def descriptor_blockers(table: DescriptorTable, options: DescriptorOptions) -> list[Blocker]:
    """All the blockers that the source can find."""
    context = BlockerContext(options, table.own_links(), table.frozen)
    return [blocker for one in table.open_files for blocker in blockers_of(one, context)]


def blockers_of(one: OpenFile[AnyObject], context: BlockerContext) -> list[Blocker]:
    """The blockers of one open file."""
    if one.standard is not None:
        return []
    kind = kind_of(one.object)
    found: list[Blocker] = []
    if one.holders and not kind.may_be_held(one):
        found.append(
            Blocker(
                one.name,
                f"it is also held by {holders_text(one.holders)}, which will not move",
                "let either side close it before the move, or end the holder",
            )
        )
    found += kind.blockers(one, context)
    if one.owner is not None and not one.owner.own:
        found.append(
            Blocker(
                one.name,
                f"it sends signals to process or group {one.owner.id}, which stays",
                "let the process give it another owner (F_SETOWN)",
            )
        )
    return found + lock_blockers(one.locks, one.name)


def passing_blockers(table: DescriptorTable, same_machine: bool) -> list[Blocker]:
    """Blockers of a frozen process that pass by themselves once it runs: another freeze is worth a try."""
    found: list[Blocker] = []
    for one in table.open_files:
        if one.standard is not None:
            continue
        if same_machine:
            found += kept_locks(one.locks, one.name)
        found += kind_of(one.object).passing(one)
    return found


def preflight_descriptors(table: DescriptorTable, options: DescriptorOptions) -> list[Blocker]:
    """The blockers that the destination can find: files that are missing or different, no permission, ports that are
    taken.
    """
    context = PreflightContext(options, reach_of(table.place), table.shared_by_inode())
    return [
        blocker
        for one in table.open_files
        if one.standard is None
        for blocker in kind_of(one.object).preflight(one, context)
    ]
