"""What to do to one layout of an address space so that it becomes another.

The kernel must see every mapping as one, too: mremap(2) and others do not work across the border of two.
"""

from __future__ import annotations

import itertools
import mmap
from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from live_migration.process.memory.mappings import (
    AddressSpace,
    Mapping,
    MappingKind,
    same_object,
    shared_more_than_once,
)

# What a mapping has from its making, and no later call takes from it: MAP_NORESERVE and MAP_GROWSDOWN (mmap(2)), and
# that it counts as memory that may be written to. Pieces that differ in them are never one mapping, which matters to
# mremap(2).
LASTING = frozenset({"nr", "gd", "ac"})
HUGE_PAGES = frozenset({"hg", "nh"})


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What to do to a staged layout so that it is the final one: ranges to unmap, mappings (or parts) to make and to
    protect anew, and which of these have lost some of their flags."""

    unmap: list[tuple[int, int]]
    make: list[Mapping]
    protect: list[Mapping]
    lost: list[tuple[Mapping, frozenset[str]]] = []


def _part(mapping: Mapping, start: int, end: int) -> Mapping:
    offset = mapping.offset + (start - mapping.start) if mapping.inode else mapping.offset
    return msgspec.structs.replace(mapping, start=start, end=end, offset=offset)


def layout_difference(staged: AddressSpace, final: AddressSpace) -> Change:
    """Compare two layouts piece by piece, a piece being what lies between two neighbouring borders of either."""
    if staged.mappings == final.mappings:
        return Change(unmap=[], make=[], protect=[])
    borders = sorted({edge for space in (staged, final) for m in space.mappings for edge in (m.start, m.end)})
    before = _by_piece(staged, borders)
    after = _by_piece(final, borders)
    pieces = list(itertools.pairwise(borders))
    travels_otherwise = shared_more_than_once(staged.mappings) ^ shared_more_than_once(final.mappings)
    kept = {start for start, _ in pieces if _is_kept(before.get(start), after.get(start), travels_otherwise)}
    kept -= _apart({start: end - start for start, end in pieces if start in kept}, before, after)
    # Each mmap of shared anonymous memory makes a memory of its own, so that one mapping is never made in parts.
    broken = {
        new.start
        for start, _ in pieces
        if (new := after.get(start)) and new.kind is MappingKind.SHARED_ANONYMOUS and start not in kept
    }
    change = Change(unmap=[], make=[], protect=[], lost=[])
    for start, end in pieces:
        old, new = before.get(start), after.get(start)
        keep = start in kept and new is not None and new.start not in broken
        if old is not None and not keep:
            change.unmap.append((start, end))
        if new is None:
            continue
        if not keep:
            _make(change.make, new, start, end)
        elif old is not None and (old.protection != new.protection or old.flags != new.flags):
            change.protect.append(_part(new, start, end))
            if gone := old.flags - new.flags:
                change.lost.append((change.protect[-1], gone))
    return change


def _apart(kept: dict[int, int], before: dict[int, Mapping], after: dict[int, Mapping]) -> set[int]:
    """The pieces, of those kept (with their lengths), that the kernel would not join to the rest of their mapping.

    The kernel joins new memory to a mapping, the one below first, but never two mappings that have had pages (their
    anon_vma, mm/vma.c), and mremap(2) of what should be one would fail. Of several pieces the longest stays. Their
    pages are requested again, so this is only for anonymous memory."""
    anonymous = {start for start in kept if after[start].kind is MappingKind.ANONYMOUS}
    origins: dict[int, Counter[int]] = {}
    for start in anonymous:
        origins.setdefault(after[start].start, Counter())[before[start].start] += kept[start]
    longest = {new: lengths.most_common(1)[0] for new, lengths in origins.items()}
    ends = {mapping.end for mapping in after.values() if mapping.kind is MappingKind.ANONYMOUS}

    def stays(start: int) -> bool:
        new = after[start]
        origin, length = longest[new.start]
        if before[start].start != origin:
            return False
        begins = new.start in kept and before[new.start].start == origin
        # New memory below would be joined to its other neighbour. New memory that may not be written to does not
        # count as memory that may be; memory that has pages goes on counting.
        return length == new.length or not (
            (new.start in ends and not begins) or ("ac" in new.flags and not new.protection & mmap.PROT_WRITE)
        )

    return {start for start in anonymous if not stays(start)}


def _make(parts: list[Mapping], mapping: Mapping, start: int, end: int) -> None:
    """Add a part of a mapping to be made, in one with the part before it."""
    if parts and parts[-1].end == start and parts[-1].start >= mapping.start:
        start = parts.pop().start
    parts.append(_part(mapping, start, end))


def _is_kept(old: Mapping | None, new: Mapping | None, travels_otherwise: Collection[tuple[str, int]]) -> bool:
    """Shared memory that is now mapped at several places, or at one again, is made anew: its pages were pushed and are
    paged on demand now, or the other way round, and neither finds what the other has left."""
    return (
        old is not None
        and new is not None
        and same_object(old, new)
        and old.flags & LASTING == new.flags & LASTING
        # No advice takes this away but its opposite.
        and (not old.flags & HUGE_PAGES or bool(new.flags & HUGE_PAGES))
        and (new.device, new.inode) not in travels_otherwise
    )


def _by_piece(space: AddressSpace, borders: Sequence[int]) -> dict[int, Mapping]:
    pieces: dict[int, Mapping] = {}
    index = 0
    for mapping in sorted(space.mappings, key=lambda m: m.start):
        while borders[index] < mapping.start:
            index += 1
        position = index
        while borders[position] < mapping.end:
            pieces[borders[position]] = mapping
            position += 1
    return pieces
