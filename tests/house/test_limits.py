"""docs/limits.md is what the programs' comments say."""

from __future__ import annotations

from tests.house import make_limits


def test_limits_are_up_to_date() -> None:
    assert make_limits.TARGET.read_text() == make_limits.as_markdown(), "run python -m tests.house.make_limits"
