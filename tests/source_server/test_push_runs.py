"""Which pages are pushed."""

from __future__ import annotations

from live_migration.process.descriptors.contents import Content
from live_migration.source_server.serve import push_runs


def test_what_was_pushed_as_another_object_goes_as_a_whole() -> None:
    """Its size has changed, so it may have been cut and grown: what was data is a hole, and nothing tells."""
    numbers = ((8, 1), (6, 2), (9, 3))
    grown, same, new = (Content(space=space, device=1, inode=inode, size=9000) for space, inode in numbers)
    before = [Content(space=5, device=1, inode=1, size=5000), same]
    runs = push_runs(0, [], [grown, same, new], before)
    assert [(run.space, run.present) for run in runs] == [(8, False), (6, True), (9, True)]
