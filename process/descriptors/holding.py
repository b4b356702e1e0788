"""What all kinds hold of a frozen process's descriptors, for after the handover or the thaw."""

from __future__ import annotations

from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.registry import kind_of
from live_migration.process.descriptors.table import DescriptorTable


def hold_descriptors(table: DescriptorTable) -> list[Held]:
    """What is held of the open files that no standard descriptors replace."""
    found = (kind_of(one.object).hold(one) for one in table.open_files if one.standard is None)
    return [held for held in found if held is not None]
