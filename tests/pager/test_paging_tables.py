"""The page table and the ranges of a space, against plain models of them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from live_migration._lm import ffi, lib

PAGE = 4096
PAGES = 1500
WANTED = (lib.LM_PAGE_MISSING, lib.LM_PAGE_REQUESTED)

stretches = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda pair: (pair[0], min(pair[1], PAGES - pair[0]))
)
changes = st.lists(
    st.tuples(stretches, st.integers(1, (1 << lib.LM_PAGE_STATES) - 1), st.integers(0, lib.LM_PAGE_STATES - 1)),
    max_size=20,
)


def states_of(table: Any, pages: int) -> list[int]:
    """Every page's state."""
    return [lib.lm_page_table_get(table, page) for page in range(pages)]


@settings(max_examples=60, deadline=None)
@given(changes, stretches, st.integers(1, (1 << lib.LM_PAGE_STATES) - 1), st.integers(1, 40))
def test_a_page_table_is_a_list_of_states(
    made: list[tuple[tuple[int, int], int, int]], where: tuple[int, int], wanted: int, most: int
) -> None:
    total = ffi.new("uint64_t *", 7)
    table = lib.lm_page_table_create(ffi.NULL, PAGES, total)
    model = [lib.LM_PAGE_MISSING] * PAGES
    for (first, count), chosen, to in made:
        assert lib.lm_page_table_set(table, first, count, chosen, to) == 0
        for page in range(first, first + count):
            if chosen >> model[page] & 1:
                model[page] = to
    assert states_of(table, PAGES) == model
    assert table.wanted == sum(state in WANTED for state in model) == total[0] - 7

    first, end = where[0], where[0] + where[1]
    found = next((page for page in range(first, end) if wanted >> model[page] & 1), end)
    row = found
    while row < end and row - found < most and wanted >> model[row] & 1:
        row += 1
    length = ffi.new("uint64_t *")
    assert lib.lm_page_table_find(table, first, end, wanted, most, length) == found
    assert length[0] == row - found

    other = lib.lm_page_table_create(ffi.NULL, where[1] + 3, total)
    assert lib.lm_page_table_take(other, 2, table, first, where[1], wanted) == 0
    taken = [state if wanted >> state & 1 else lib.LM_PAGE_MISSING for state in model[first:end]]
    assert states_of(other, where[1] + 3) == [0, 0, *taken, 0]
    lib.lm_page_table_release(other)
    lib.lm_page_table_release(table)
    assert total[0] == 7


pieces = st.tuples(st.integers(0, 59), st.integers(1, 20))
steps = st.lists(st.tuples(st.sampled_from(["insert", "cut", "move"]), pieces, st.integers(100, 140)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_a_space_is_a_map_from_addresses_to_source_pages(made: list[tuple[str, tuple[int, int], int]]) -> None:
    total = ffi.new("uint64_t *", 0)
    space = ffi.new("struct lm_space *")
    lib.lm_space_init(space, 0, -1, 0, -1)
    model: dict[int, int] = {}
    source = 1000
    for action, (first, count), elsewhere in made:
        if action == "insert":
            piece = {
                "start": first * PAGE,
                "end": (first + count) * PAGE,
                "source": source * PAGE,
                "source_space": 0,
                "kind": lib.LM_RANGE_ANONYMOUS,
                "table": lib.lm_page_table_create(ffi.NULL, count, total),
                "first": 0,
            }
            taken = any(page in model for page in range(first, first + count))
            result = lib.lm_space_insert(space, ffi.new("struct lm_range *", piece))
            assert (result < 0) == taken
            if taken:
                lib.lm_page_table_release(piece["table"])
            else:
                model |= {first + i: source + i for i in range(count)}
            source += 100
        elif action == "cut":
            assert lib.lm_space_cut(space, first * PAGE, (first + count) * PAGE, ffi.NULL) == 0
            for page in range(first, first + count):
                model.pop(page, None)
        else:
            move(space, model, first, count, elsewhere)
        check_space(space, model)
    lib.lm_space_deinit(space)
    assert total[0] == 0


def move(space: Any, model: dict[int, int], first: int, count: int, to: int) -> None:
    """As mremap does: what was at the target goes, what was here is there."""
    assert lib.lm_space_cut(space, to * PAGE, (to + count) * PAGE, ffi.NULL) == 0
    moved = ffi.new("struct lm_space *")
    lib.lm_space_init(moved, 0, -1, 0, -1)
    assert lib.lm_space_cut(space, first * PAGE, (first + count) * PAGE, moved) == 0
    for i in range(moved.count):
        one = moved.ranges[i]
        one.start += (to - first) * PAGE
        one.end += (to - first) * PAGE
        assert lib.lm_space_insert(space, ffi.addressof(moved.ranges, i)) == 0
        one.table = ffi.NULL
    lib.lm_space_deinit(moved)
    for i in range(count):
        model.pop(to + i, None)
    for i in range(count):
        if first + i in model:
            model[to + i] = model.pop(first + i)


def check_space(space: Any, model: dict[int, int]) -> None:
    """Every address finds its source page and back, and every page its own place in the table."""
    back = {page: address for address, page in model.items()}
    for address in range(170):
        found = lib.lm_space_at(space, address * PAGE)
        assert (found != ffi.NULL) == (address in model)
        if found == ffi.NULL:
            continue
        offset = address * PAGE - found.start
        assert (found.source + offset) // PAGE == model[address]
        assert (found.first + offset // PAGE) == model[address] % 100
    for page, address in back.items():
        found = lib.lm_space_by_source(space, 0, page * PAGE, (page + 1) * PAGE)
        assert found.start + (page * PAGE - found.source) == address * PAGE
    for page in (999, 1099, 4000):
        found = lib.lm_space_by_source(space, 0, page * PAGE, (page + 1) * PAGE)
        assert (found != ffi.NULL) == (page in back)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200), st.floats(0.01, 1))
def test_quantiles_are_right_to_a_sixteenth(values: list[int], share: float) -> None:
    histogram = ffi.new("struct lm_histogram *")
    for value in values:
        lib.lm_histogram_add(histogram, value)
    ordered = sorted(values)
    exact = ordered[max(0, min(len(values), -(-int(share * len(values) * 1e6) // 1000000)) - 1)]
    found = lib.lm_histogram_quantile(histogram, share)
    assert histogram.count == len(values)
    assert histogram.maximum == ordered[-1]
    assert any(value <= found <= value * 17 / 16 + 1 for value in values)
    assert found >= exact * 15 / 16
