"""How long lm-restore's worker calls a source that it cannot reach."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from live_migration.restorer.finish import Following
from live_migration.restorer.phases import Running
from live_migration.wire.again import Link

LONG = 1e7


@pytest.mark.parametrize(
    ("finished", "process_ended", "lost_for", "refused_for", "limit", "given_up"),
    [
        (False, False, LONG, LONG, None, False),
        (False, True, LONG, LONG, None, False),
        (True, False, LONG, 0.0, None, False),
        (True, True, 100.0, 0.0, None, False),
        (True, True, LONG, 0.0, None, True),
        (True, False, 100.0, 100.0, None, True),
        (False, False, 100.0, 0.0, 60.0, True),
        (True, False, 100.0, 0.0, 60.0, True),
    ],
)
def test_the_source_is_told_as_long_as_the_process_lives(
    *, finished: bool, process_ended: bool, lost_for: float, refused_for: float, limit: float | None, given_up: bool
) -> None:
    options = SimpleNamespace(reconnect_timeout=limit)
    running = cast(Running, SimpleNamespace(connected=SimpleNamespace(options=options)))
    link = cast(Link, SimpleNamespace(lost_for=lost_for, refused_for=refused_for))
    assert Following(running, link, process_ended, finished).is_given_up is given_up
