"""A changed layout: what is kept of the memory that is there, and when it must be made anew."""

from __future__ import annotations

import mmap

from live_migration.process.memory.layout_change import Change, layout_difference
from live_migration.process.memory.mappings import PAGE, AddressSpace, Mapping, MappingKind
from live_migration.source_server.pages.rounds import round_ranges

BASE = 0x7F0000000000
NONE, READ, WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
COUNTED = frozenset({"ac"})


def mapping(first: int, last: int, protection: int = WRITE, flags: frozenset[str] = COUNTED) -> Mapping:
    """Anonymous memory from page `first` to before page `last`."""
    return Mapping(
        BASE + first * PAGE, BASE + last * PAGE, MappingKind.ANONYMOUS, protection, 0, "00:00", 0, "", False, flags
    )


def library(first: int, last: int) -> Mapping:
    start, end = BASE + first * PAGE, BASE + last * PAGE
    return Mapping(start, end, MappingKind.PRIVATE_FILE, READ, 0, "08:01", 7, "/lib/x.so", False)


def change(before: list[Mapping], after: list[Mapping]) -> Change:
    return layout_difference(AddressSpace(mappings=before), AddressSpace(mappings=after))


def pages(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [((start - BASE) // PAGE, (end - BASE) // PAGE) for start, end in ranges]


def made(found: Change) -> list[tuple[int, int]]:
    return pages([(one.start, one.end) for one in found.make])


def test_what_grows_is_kept() -> None:
    for after in (mapping(0, 30), mapping(0, 20)):
        found = change([mapping(10, 20)], [after])
        assert found.unmap == []
    assert made(change([mapping(0, 10)], [mapping(0, 30)])) == [(10, 30)]


def test_of_two_mappings_that_become_one_the_longer_is_kept() -> None:
    found = change([mapping(0, 5), mapping(10, 30)], [mapping(0, 30)])
    assert pages(found.unmap) == [(0, 5)]
    assert made(found) == [(0, 10)]


def test_nothing_is_kept_where_new_memory_would_be_joined_to_a_neighbour() -> None:
    found = change([mapping(0, 10), mapping(20, 30)], [mapping(0, 10), mapping(10, 30)])
    assert pages(found.unmap) == [(20, 30)]
    assert made(found) == [(10, 30)]


def test_advice_that_was_taken_back_is_taken_back() -> None:
    advised = frozenset({"ac", "mg"})
    [(part, gone)] = change([mapping(0, 10, flags=advised)], [mapping(0, 4), mapping(4, 10, flags=advised)]).lost
    assert pages([(part.start, part.end)]) == [(0, 4)]
    assert gone == {"mg"}


def test_memory_to_which_huge_pages_mean_nothing_any_more_is_new() -> None:
    huge = frozenset({"ac", "hg"})
    assert made(change([mapping(0, 10, flags=huge)], [mapping(0, 10)])) == [(0, 10)]
    assert made(change([mapping(0, 10, flags=huge)], [mapping(0, 10, flags=frozenset({"ac", "nh"}))])) == []


def test_memory_that_is_not_writable_any_more_is_not_made_in_parts() -> None:
    found = change([mapping(0, 10)], [mapping(0, 20, NONE)])
    assert pages(found.unmap) == [(0, 10)]
    assert made(found) == [(0, 20)]
    assert not change([mapping(0, 10)], [mapping(0, 10, NONE)]).unmap, "a change of protection alone keeps the pages"


def shared(first: int, last: int, inode: int = 9) -> Mapping:
    """Shared anonymous memory, all of it."""
    start, end = BASE + first * PAGE, BASE + last * PAGE
    return Mapping(
        start, end, MappingKind.SHARED_ANONYMOUS, WRITE, 0, "00:01", inode, "/dev/zero (deleted)", True, COUNTED
    )


def test_shared_memory_that_is_mapped_once_more_is_made_anew() -> None:
    """It was paged on demand, and is pushed now; or the other way round."""
    once, twice = [shared(0, 10), shared(20, 30, 8)], [shared(0, 10), shared(20, 30, 8), shared(40, 50)]
    assert not change(twice, twice).unmap
    found = change(once, twice)
    assert pages(found.unmap) == [(0, 10)]
    assert made(found) == [(0, 10), (40, 50)]
    back = change(twice, once)
    assert pages(back.unmap) == [(0, 10), (40, 50)]
    assert made(back) == [(0, 10)]


def test_what_the_rounds_follow_ends_at_other_mappings() -> None:
    """Never at the border of memory that may have become another meanwhile."""
    space = AddressSpace(mappings=[mapping(1, 5), library(10, 20), mapping(25, 30), mapping(30, 40), library(90, 95)])
    followed = [pages([(one.follow_start, one.follow_end)])[0] for one in round_ranges(space)]
    assert followed == [(1, 10), (20, 90), (20, 90)]
