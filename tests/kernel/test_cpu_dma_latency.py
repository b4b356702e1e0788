"""Keeping idle processors awake, against a file in the place of the kernel's and against the kernel's own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from live_migration.kernel.cpu_dma_latency import FILE, awake
from tests.kernel.husks import wait_until


def asked_us() -> int:
    """What everybody together asks the kernel for, microseconds."""
    try:
        return int.from_bytes(FILE.read_bytes()[:4], "little")
    except OSError as error:
        pytest.skip(f"the kernel does not tell: {error}")


def asked_by_others_us() -> int:
    """The same when nobody asks for no latency at all, as a move beside this test may do for a moment."""
    for _ in range(2000):
        if found := asked_us():
            return found
        time.sleep(0.005)
    pytest.skip("somebody asks for it already")


def test_it_asks_for_no_latency_at_all(tmp_path: Path) -> None:
    asked = tmp_path / "cpu_dma_latency"
    asked.touch()
    with awake(asked):
        assert asked.read_bytes() == bytes(4)


def test_nothing_happens_where_the_kernel_does_not_offer_it(tmp_path: Path) -> None:
    within = False
    with awake(tmp_path / "nowhere"):
        within = True
    assert within


def test_the_kernel_keeps_to_it_as_long_as_it_is_asked() -> None:
    before = asked_by_others_us()
    with awake():
        assert asked_us() == 0
    # A move beside this test may ask for it at this very moment.
    wait_until(lambda: asked_us() == before)


def test_it_ends_by_itself_where_nothing_comes_to_an_end() -> None:
    before = asked_by_others_us()
    with awake(most_seconds=0.2):
        assert asked_us() == 0
        wait_until(lambda: asked_us() == before)
