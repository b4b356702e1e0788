"""Bulk takes what is left of a link: a fault does not stand in a queue that bulk has filled."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pyroute2 import NetNS

from live_migration.experiments.machines import two_machines
from live_migration.experiments.measures import HELD_BACK, Laboratory, moving

pytestmark = pytest.mark.alone

RATE = 10**8 // 8
"""Of the link, bytes per second, so slow that it is the limit on a busy machine too. A page takes 0.33 ms."""
QUEUE = 256 * 1024
"""Of its bottleneck, bytes, which take 20 ms."""
MEBIBYTES = 16


@pytest.fixture
def laboratory(tmp_path: Path, orphans: None) -> Iterator[Laboratory]:
    with two_machines() as (source, destination):
        for machine in (source, destination):
            with NetNS(machine.namespace) as sockets:
                index = sockets.link_lookup(ifname=machine.link)[0]
                sockets.tc("add", "tbf", index, 0x10000, rate=RATE, burst=1 << 15, limit=QUEUE)
        yield Laboratory(source, destination, tmp_path)


def faults(laboratory: Laboratory, serve: Sequence[str], count: int, *, complete: bool) -> tuple[list[int], float]:
    """How long a process waited for each missing page that it touched at random, nanoseconds; and for how long it was
    without some of its memory, seconds."""
    words = ["toucher", str(MEBIBYTES), str(count)]
    with moving(laboratory, words, serve=["--compress", "none", *serve], held_until="resumed") as trial:
        trial.told()
        seconds = 0.0
        if complete:
            seconds = trial.moment("complete") - trial.moment("resumed")
            trial.told()
        return trial.read_numbers(), seconds


def test_a_fault_waits_hardly_longer_while_bulk_comes(laboratory: Laboratory) -> None:
    idle, _ = faults(laboratory, ["--bandwidth-limit", HELD_BACK], 400, complete=False)
    busy, seconds = faults(laboratory, [], 1 << 16, complete=True)
    # It is about the same. Behind a full queue it is twenty times.
    assert statistics.median(busy) < 4 * statistics.median(idle)
    # And bulk is not held back more than that takes: alone it needs this.
    assert seconds < 3 * MEBIBYTES * 2**20 / RATE
