"""The account of the downtime."""

from __future__ import annotations

import time

import pytest

from live_migration.wire.account import Account


def test_the_steps_of_the_last_freeze_add_up() -> None:
    kept = Account()
    kept.begin(time.monotonic_ns())
    kept.step("an earlier freeze's")
    began = time.monotonic_ns()
    kept.begin(began)
    kept.step("one")
    ended = kept.step("two")
    assert list(kept.in_us()) == ["one", "two"]
    assert sum(kept.in_us().values()) == pytest.approx((ended - began) / 1000)
