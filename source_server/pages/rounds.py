"""Rounds of copying while the process runs: a thin cover of rounds.h, whose calls never take the interpreter's lock."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import check
from live_migration.kernel.injection.dirty_tracking import Tracker, Tracking
from live_migration.process.member import Runs
from live_migration.process.memory.mappings import PAGE, AddressSpace, MappingKind
from live_migration.source_server.pages.client import PageClient


@dataclass(frozen=True)
class RoundRange:
    """Memory, [start, end) in bytes; `shared` anonymous memory or private. The range that is followed reaches over the
    free addresses around it (rounds.h)."""

    start: int
    end: int
    shared: bool
    follow_start: int
    follow_end: int


@dataclass(frozen=True)
class RoundResult:
    """What a round did, in pages and bytes; see struct lm_round_result."""

    pages: int
    zero: int
    again: int
    deferred: int
    discarded: int
    bytes: int
    cut: bool


def round_ranges(memory: AddressSpace) -> list[RoundRange]:
    """The memory that rounds copy: all that is paged on demand. A followed range ends only at other mappings."""
    paged = memory.paged_on_demand
    starts = {mapping.start for mapping in paged}
    others = [mapping for mapping in memory.mappings if mapping.start not in starts]
    ranges = []
    for mapping in paged:
        after = bisect(others, mapping.start, key=lambda other: other.start)
        low = others[after - 1].end if after else paged[0].start
        high = others[after].start if after < len(others) else paged[-1].end
        ranges.append(RoundRange(mapping.start, mapping.end, mapping.kind is MappingKind.SHARED_ANONYMOUS, low, high))
    return ranges


class Rounds:
    """The rounds of one process. Takes the tracker over; `close` ends the tracking."""

    def __init__(self, client: PageClient, space: int, pid: int, tracker: Tracker) -> None:
        self.kind = tracker.kind
        self._pid = pid
        fields = {"kind": int(tracker.kind), "pagemap": tracker.pagemap, "control": tracker.control}
        self._rounds = lib.lm_rounds_create(client.handle, space, ffi.new("struct lm_dirty_tracker *", fields))
        if not self._rounds:
            tracker.close()
            raise MemoryError("no memory for the rounds")

    @property
    def collects(self) -> bool:
        """Whether the process has to stand still for a moment before each round."""
        return self.kind is Tracking.SOFT_DIRTY

    def close(self) -> None:
        """End the tracking; nothing of it stays in the process."""
        if self._rounds:
            lib.lm_rounds_destroy(self._rounds)
            self._rounds = None

    def watch(self, ranges: Iterable[RoundRange]) -> None:
        """Set the ranges from now on. Raises OSError, and ProcessGone when the process runs another program or none."""
        listed = [(one.start, one.end, one.follow_start, one.follow_end, int(one.shared), 0) for one in ranges]
        array = ffi.new("struct lm_round_range[]", listed)
        check(lib.lm_rounds_watch(self._rounds, array, len(listed)), self._pid)

    def collect(self) -> None:
        """Note what was written to, and arm everything, while the process stands still. Raises OSError, ProcessGone."""
        check(lib.lm_rounds_collect(self._rounds), self._pid)

    def round(self, push: int, number: int, deadline_ns: int) -> RoundResult:
        """Send what was written to, until the deadline (CLOCK_MONOTONIC); called again, it goes on from there.

        Raises OSError, ProcessGone."""
        result = ffi.new("struct lm_round_result *")
        check(lib.lm_rounds_round(self._rounds, push, number, deadline_ns, result), self._pid)
        return _result(result)

    def arm(self) -> None:
        """Arm everything and send nothing: what is written to from now on is hot. Raises OSError, ProcessGone."""
        check(lib.lm_rounds_arm(self._rounds), self._pid)

    def dirty(self) -> int:
        """How many pages a round would send now. Raises OSError, ProcessGone."""
        pages = ffi.new("uint64_t *")
        check(lib.lm_rounds_dirty(self._rounds, pages), self._pid)
        return int(pages[0])

    def last(self, push: int, *, discard: bool, void: bool = False) -> RoundResult:
        """Correct what was sent, at the frozen process: send what has changed again, or tell the destination to
        `discard` it. `void`: trust nothing that was sent. Raises OSError, ProcessGone."""
        flags = (lib.LM_LAST_DISCARD if discard else lib.LM_LAST_PUSH) | (lib.LM_LAST_VOID if void else 0)
        result = ffi.new("struct lm_round_result *")
        check(lib.lm_rounds_last(self._rounds, push, flags, result), self._pid)
        return _result(result)

    def hot(self, most: int) -> list[Runs]:
        """At most so many runs of pages that were written to last. Raises OSError, ProcessGone."""
        runs = ffi.new("struct lm_page_run[]", most)
        count = ffi.new("size_t *")
        check(lib.lm_rounds_hot(self._rounds, runs, most, count), self._pid)
        return [Runs(runs[i].start, (runs[i].end - runs[i].start) // PAGE) for i in range(count[0])]


def _result(result: Any) -> RoundResult:
    return RoundResult(
        result.pages, result.zero, result.again, result.deferred, result.discarded, result.bytes, bool(result.cut)
    )
