"""The kernel's own mappings in a process, [vdso] and its data pages, on a host whose kernel has others.

If the destination's kernel has the same code, its mappings take the places of the source's. If it has other code, the
places get a bridge (process/memory/vdso.py): private memory with the source's code, which leads to the kernel's own
mappings elsewhere, and zeros for the data. A process that moves again has this as memory of its own.

The data must not be read under a bridge, so no thread may stand in the middle of the old code: lm-serve leads such a
thread out before the process is described (source_server/vdso_exit.py).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.memory.maps import MapEntry, maps
from live_migration.process.memory.mappings import PAGE, AddressSpace, KernelMapping, Mapping, MappingKind, mapping_of
from live_migration.process.memory.vdso import NAME, entry_points, make_bridge, own_code
from live_migration.wire.blockers import Blocker

# The kernel's mappings get a random place in so many bytes of the address gap: code that is the same in every process
# should not be where anybody expects it.
SPREAD = 1 << 38


@dataclass(frozen=True)
class Move:
    """A mapping of the kernel's: its name, where it is, its length in bytes, and where it goes."""

    name: str
    start: int
    length: int
    to: int


@dataclass(frozen=True)
class Bridge:
    """What to do in a husk: where the kernel's own mappings go, the places of the source's, and the code for [vdso]."""

    moves: list[Move]
    places: list[KernelMapping]
    code: bytes


def is_needed(space: AddressSpace) -> bool:
    """Whether the kernel's mappings of the source, in its live snapshot, cannot be this kernel's. Raises OSError."""
    here = {mapping.path: mapping.length for mapping in _kernel_mappings(maps(os.getpid()))}
    wanted = {mapping.name: mapping.length for mapping in space.kernel_mappings()}
    return not (wanted.items() <= here.items() and space.vdso in (b"", own_code()))


def bridge_blockers(space: AddressSpace) -> list[Blocker]:
    """What stands in the way of a bridge, if one is needed. Raises OSError."""
    if not is_needed(space):
        return []
    cause = "maps another vdso into processes than this one's"
    try:
        _code(space, 0)
    except ValueError as error:
        return [Blocker("the source's kernel", f"{cause}, and {error}", "run the same kernel on both hosts")]
    return []


def changed_blockers(pid: int, code: bytes) -> list[Blocker]:
    """Blockers on the source: `code`, the process's vdso, differs from its kernel's. Raises OSError."""
    if code in (b"", own_code()):
        return []
    cause, remedy = "was changed by the program", "run the program without what changes the vdso"
    return [Blocker(f"the vdso of process {pid}", cause, remedy)]


def plan_bridge(entries: Sequence[MapEntry], kept: tuple[int, int], space: AddressSpace) -> Bridge:
    """The bridge for a husk that has `entries` mapped, of which the range `kept` stays, and is to become `space`.

    Raises ValueError if it cannot be made, LookupError if there is no room for the kernel's mappings."""
    own = _kernel_mappings(entries)
    start = min((mapping.start for mapping in own), default=0)
    length = max((mapping.end for mapping in own), default=0) - start
    taken = [kept, *((m.start, m.end) for m in entries), *((m.start, m.end) for m in space.mappings)]
    place = free_range(taken, SPREAD) + secrets.randbelow((SPREAD - length) // PAGE) * PAGE
    moves = [Move(m.path, m.start, m.length, place + m.start - start) for m in own]
    vdso = next((move.to for move in moves if move.name == NAME), 0)
    return Bridge(moves, space.kernel_mappings(), _code(space, vdso))


def _kernel_mappings(entries: Iterable[MapEntry]) -> list[Mapping]:
    return [mapping for entry in entries if (mapping := mapping_of(entry)).kind is MappingKind.KERNEL]


def _code(space: AddressSpace, vdso: int) -> bytes:
    """The code of a bridge to this kernel's vdso at the address `vdso`. Raises ValueError."""
    places = [mapping for mapping in space.kernel_mappings() if mapping.name == NAME]
    if any(place.length != len(space.vdso) for place in places):
        raise ValueError("its vdso is not whole in the process")
    if not places:
        return b""
    code = own_code()
    return make_bridge(space.vdso, {entry.name: vdso + entry.offset for entry in entry_points(code)} if code else {})
