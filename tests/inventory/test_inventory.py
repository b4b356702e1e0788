"""The inventory is whole: it leaves out no name of the kernel's, and says of each what becomes of it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.inventory import inventory
from tests.inventory.inventory import Row

ROWS = inventory.all_rows()


def test_no_name_is_left_out() -> None:
    assert inventory.names_wanted() - {name for row in ROWS for name in row.names} == set()


def test_each_name_stands_once() -> None:
    names = Counter(name for row in ROWS for name in row.names)
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_a_row_says_what_becomes_of_it(row: Row) -> None:
    assert row.becomes in inventory.BECOMES
    if row.becomes != "nothing":
        assert (inventory.ROOT / row.file).is_file(), "no such file"
    assert bool(row.says) == (row.becomes in ("refused", "different"))


def test_the_page_is_up_to_date() -> None:
    assert inventory.TARGET.read_text() == inventory.as_markdown(), "run python -m tests.inventory.inventory"
