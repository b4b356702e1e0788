"""Call frame information is understood or refused; test_vdso_exit.py tells that what is understood is true."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from live_migration.kernel.tracing.call_frames import Frame, find_frame
from live_migration.process.memory.vdso import entry_points, own_code

STACK_POINTER = 7
IMAGE = own_code()


def test_a_function_begins_with_its_return_address_on_the_stack() -> None:
    for entry in entry_points(IMAGE):
        assert find_frame(IMAGE, entry.offset) == Frame(STACK_POINTER, 8)


@pytest.mark.parametrize("place", [0, 0x40, len(IMAGE) - 1, len(IMAGE) + 4096, -1])
def test_outside_of_functions_there_is_no_frame(place: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        find_frame(IMAGE, place)


@example([], 0, 0)
@example([(39, 128)], 1, 0)
@given(
    st.lists(st.tuples(st.integers(0, 0x800), st.integers(0, 255)), min_size=1, max_size=20),
    st.integers(0, len(IMAGE)),
    st.integers(0, len(IMAGE)),
)
def test_any_bytes_are_understood_or_refused(changes: list[tuple[int, int]], length: int, place: int) -> None:
    image = bytearray(IMAGE[:length] if length % 4 == 0 else IMAGE)
    for at, value in changes:
        image[at : at + 1] = bytes([value])
    with contextlib.suppress(ValueError):
        find_frame(bytes(image), place)
