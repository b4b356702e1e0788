"""Where in an address space something of ours finds room."""

from __future__ import annotations

import pytest

from live_migration.kernel.injection.address_gap import FIRST_CHOICE, LAST_CHOICE, free_range

PAGE = 4096


def test_ranges_do_not_touch_and_many_of_them_are_found() -> None:
    """As many as tracers that die one after the other may leave behind."""
    taken: list[tuple[int, int]] = []
    for _ in range(300):
        address = free_range(taken, 2 * PAGE)
        assert all(end <= address or start >= address + 2 * PAGE for start, end in taken)
        taken.append((address, address + 2 * PAGE))


def test_a_space_without_room_is_told() -> None:
    with pytest.raises(LookupError, match="no free range of 8192 bytes"):
        free_range([(FIRST_CHOICE - (1 << 31), LAST_CHOICE)], 2 * PAGE)
