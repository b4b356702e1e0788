"""Files of /proc are read whole, however small the parts are in which the kernel gives them."""

from __future__ import annotations

import os

import pytest

from live_migration.kernel.proc import read_proc

PARTS, PART = 12_000, b"x" * 3_584
"""What smaps of a process comes in that has as many mappings as it may (vm.max_map_count). To copy what is there once
more for each part would be a quarter of a terabyte."""


def test_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    left = PARTS

    def read(descriptor: int, length: int) -> bytes:
        nonlocal left
        left -= 1
        return PART if left >= 0 else b""

    monkeypatch.setattr(os, "read", read)
    text = read_proc("/proc/self/status")
    monkeypatch.undo()
    assert len(text) == PARTS * len(PART)
