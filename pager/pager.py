"""The pager: fills the memory of a process that already runs, or is about to.

A thin cover of pager.h, where the order of calls is explained; its threads are C and never take the interpreter's lock.
Addresses and lengths are in bytes.
"""

from __future__ import annotations

import contextlib
import enum
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import check_errno
from live_migration.pager.page_source import PageSource, socket_source
from live_migration.wire import status
from live_migration.wire.stream import Stream

DROP_WORDS: int = ffi.sizeof("struct lm_drop") // 8
FIRST_OBJECT: int = lib.LM_FIRST_OBJECT
POWERS = range(14, 36)
"""Latencies are counted up to these powers of two, nanoseconds: 16 us to 34 s."""
STATISTICS_SIZE: int = ffi.sizeof("struct lm_pager_statistics")


class PagerState(enum.IntEnum):
    """STALLED: a connection is lost, faults wait; FAILED: beyond repair, faults wait for ever; COMPLETE: every page has
    come, finish may be called; FINISHED: nothing of the pager is left in the process."""

    STAGED = lib.LM_PAGER_STAGED
    RUNNING = lib.LM_PAGER_RUNNING
    COMPLETE = lib.LM_PAGER_COMPLETE
    STALLED = lib.LM_PAGER_STALLED
    FAILED = lib.LM_PAGER_FAILED
    FINISHED = lib.LM_PAGER_FINISHED


class RangeKind(enum.IntEnum):
    """ANONYMOUS and SHARED (shared anonymous memory that is mapped once) are paged on demand, WRITTEN is only
    written to by pushes."""

    ANONYMOUS = lib.LM_RANGE_ANONYMOUS
    SHARED = lib.LM_RANGE_SHARED
    WRITTEN = lib.LM_RANGE_WRITTEN


@dataclass(frozen=True)
class PagedRange:
    """[start, end) in the destination holds the source's pages from `source` on (None: from `start` on)."""

    start: int
    end: int
    kind: RangeKind = RangeKind.ANONYMOUS
    source: int | None = None
    source_space: int = 0


@dataclass(frozen=True)
class HotRun:
    """Pages to fetch before all else, by source address."""

    start: int
    end: int
    source_space: int = 0


@dataclass(frozen=True)
class Drops:
    """Stretches of memory to be dropped in the process: addresses and lengths in bytes, of private memory and, with
    their addresses, of shared anonymous memory."""

    starts: array[int]
    lengths: array[int]
    shared: list[tuple[int, int]]


@dataclass(frozen=True)
class Latencies:
    """Latencies of faults, from reading the message to placing the page, in microseconds. `at_most`: pairs of a time
    and how many took at most that."""

    count: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    sum_us: float
    at_most: list[tuple[float, int]]


class UnpageableRange(Exception):
    """A range cannot be paged: `paged_range` and the errno."""

    def __init__(self, paged_range: PagedRange | None, error: int) -> None:
        self.paged_range = paged_range
        self.errno = error
        place = f"{paged_range.start:#x}-{paged_range.end:#x}" if paged_range else "the space"
        super().__init__(f"{place} cannot be paged on demand: {os.strerror(error)}")


def latencies(memory: Any) -> Latencies:
    """The fault latencies in a piece of memory of STATISTICS_SIZE bytes."""
    statistics = ffi.from_buffer("struct lm_pager_statistics *", memory)
    histogram = ffi.addressof(statistics, "latency")

    def quantile(share: float) -> float:
        return float(lib.lm_histogram_quantile(histogram, share)) / 1000

    counted = ffi.unpack(histogram.buckets, lib.LM_HISTOGRAM_BUCKETS)
    # Every 16 buckets one power of two ends (statistics.h); the first 16 are the numbers below 16.
    at_most = [((1 << power) / 1000, sum(counted[: (power - 3) * 16])) for power in POWERS]
    return Latencies(
        histogram.count, quantile(0.5), quantile(0.9), quantile(0.99), float(histogram.maximum) / 1000,
        float(histogram.sum) / 1000, at_most,
    )  # fmt: skip


class Pager:
    """The pager of one migration.

    `memory`, when given, is writable memory of STATISTICS_SIZE bytes (a shared mmap) that takes the counters."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = memory if memory is not None else bytearray(STATISTICS_SIZE)
        self._statistics = ffi.from_buffer("struct lm_pager_statistics *", self.memory, require_writable=True)
        self._pager = lib.lm_pager_create(self._statistics)
        if not self._pager:
            raise MemoryError("no memory for the pager")

    def __enter__(self) -> Pager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. While pages are missing in a living process, the keeper stays and the process waits."""
        if self._pager:
            lib.lm_pager_destroy(self._pager)
            self._pager = None

    def add_space(self, number: int, userfaultfd: int, pid: int) -> None:
        """Add a process, by the number under which the source serves it. Takes the userfaultfd over. Raises OSError."""
        check_errno(lib.lm_pager_add_space(self._pager, number, userfaultfd, pid))

    def add_object(self, number: int, descriptor: int, size: int) -> None:
        """Add an object of `size` bytes that pushes write to through a duplicate of the descriptor. Raises OSError."""
        check_errno(lib.lm_pager_add_object(self._pager, number, descriptor, size))

    def connect(self, fault: Stream, bulk: Stream, session: bytes, attempt: int = 1) -> None:
        """Take pages from two connections, which are shared; also after a loss. Raises OSError."""
        with contextlib.closing(socket_source(fault, lib.LM_ROLE_FAULT, session, attempt)) as faults:
            self.connect_sources(faults, socket_source(bulk, lib.LM_ROLE_BULK, session, attempt))

    def connect_sources(self, fault: PageSource, bulk: PageSource) -> None:
        """Take pages from these sources: for faults, and for bulk and pushes; also after a loss. They belong to
        the pager from now on. Raises OSError."""
        check_errno(lib.lm_pager_connect(self._pager, fault.take(), bulk.take()))

    def recover(self, ledger: int, found: Iterable[tuple[int, int]]) -> None:
        """Go on where another pager was killed (recovery.h), before anything else is done: with its ledger, locked, and
        its userfaultfds, each as its number in the keeper and the number of a duplicate here. Takes all of them over,
        once `start` has returned. Raises OSError: ESRCH when no process needs its pages any more."""
        array = ffi.new("struct lm_recovered[]", [(there, here) for there, here in found])
        check_errno(lib.lm_pager_recover(self._pager, ledger, array, len(array)))

    def note(self, text: bytes) -> None:
        """Keep a note for whoever goes on after us. Raises OSError."""
        check_errno(lib.lm_pager_note(self._pager, text, len(text)))

    def set_ranges(self, ranges: Sequence[PagedRange], space: int = 0) -> None:
        """Set the whole list of a space's ranges, instead of the one before; those paged on demand are registered.

        Placed pages stay placed where the addresses have not changed. Raises UnpageableRange."""
        ordered = sorted(ranges, key=lambda one: one.start)
        listed = [
            (one.start, one.end, one.start if one.source is None else one.source, one.source_space, one.kind)
            for one in ordered
        ]
        array = ffi.new("struct lm_range_description[]", listed)
        failed = ffi.new("size_t *")
        error = lib.lm_pager_set_ranges(self._pager, space, array, len(listed), failed)
        if error:
            raise UnpageableRange(ordered[failed[0]] if failed[0] < len(ordered) else None, -error)

    def start(self) -> None:
        """Begin to answer faults and events, and start the keeper. Raises OSError."""
        check_errno(lib.lm_pager_start(self._pager))

    def receive_push(self, identifier: int) -> None:
        """Receive pushed pages up to END `identifier` into the process. Raises OSError."""
        check_errno(lib.lm_pager_receive_push(self._pager, identifier))

    def place(self, address: int, data: bytes | bytearray | memoryview, source_space: int = 0) -> None:
        """Write whole pages that came by another way, by source address. Raises OSError."""
        view = ffi.from_buffer(data)
        check_errno(lib.lm_pager_place(self._pager, source_space, address, view, len(data)))

    def discard(self, start: int, end: int, source_space: int = 0) -> None:
        """Fetch pages again that were placed, and have been dropped in the process since. Raises OSError."""
        check_errno(lib.lm_pager_discard(self._pager, source_space, start, end))

    def poison(self) -> None:
        """The source is gone for good: whoever touches a missing page from now on gets SIGBUS. Raises OSError."""
        check_errno(lib.lm_pager_poison(self._pager))

    def follow(self) -> None:
        """Keep in mind what is empty: pages are pushed while the source runs and follows what changes there."""
        lib.lm_pager_follow(self._pager)

    @property
    def is_to_discard(self) -> bool:
        """Whether pushes have taken anything back for which `dropped` was not called."""
        return bool(lib.lm_pager_is_to_discard(self._pager))

    def drops(self) -> Drops:
        """What pushes have taken back and the process has: it is to be dropped there before anything else."""
        count = lib.lm_pager_drops(self._pager, ffi.NULL, 0)
        found = ffi.new("struct lm_drop[]", count)
        lib.lm_pager_drops(self._pager, found, count)
        words = array("Q", bytes(ffi.buffer(found)))
        starts, lengths, shared = (words[column::DROP_WORDS] for column in range(DROP_WORDS))
        if not any(shared):
            return Drops(starts, lengths, [])
        private = [not one for one in shared]
        return Drops(
            array("Q", compress(starts, private)),
            array("Q", compress(lengths, private)),
            list(compress(zip(starts, lengths, strict=True), shared)),
        )

    @contextlib.contextmanager
    def unwatched_drops(self) -> Iterator[None]:
        """Within, the ranges of the drops are not watched (pager.h). Raises OSError."""
        check_errno(lib.lm_pager_watch_drops(self._pager, False))
        yield
        check_errno(lib.lm_pager_watch_drops(self._pager, True))

    def dropped(self, *, in_order: bool = False) -> None:
        """The drops are done: from now on these pages are missing, and fetched first unless `in_order`, or zero.
        Raises OSError."""
        check_errno(lib.lm_pager_dropped(self._pager, in_order))

    def prefetch_start(self) -> None:
        """Begin to fetch everything. Raises OSError."""
        check_errno(lib.lm_pager_prefetch_start(self._pager))

    def prefetch_first(self, runs: Iterable[HotRun]) -> None:
        """Runs to fetch first, in this order. Raises OSError."""
        listed = [(run.start, run.end, run.source_space, 0) for run in runs]
        array = ffi.new("struct lm_hot_run[]", listed)
        check_errno(lib.lm_pager_prefetch_first(self._pager, array, len(listed)))

    def limit(self, bytes_per_second: int) -> None:
        """Request no more in bulk than so many bytes per second; 0: no limit."""
        lib.lm_pager_limit(self._pager, bytes_per_second)

    def fault_pages(self, pages: int) -> None:
        """Set how many pages a fault requests at most, when faults follow one another in order."""
        lib.lm_pager_fault_pages(self._pager, pages)

    def notice_ends(self) -> None:
        """Find out which processes have ended: their pages are not needed any more."""
        lib.lm_pager_notice_ends(self._pager)

    @property
    def _status(self) -> Any:
        return lib.lm_pager_status(self._pager)

    @property
    def state(self) -> PagerState:
        """The state now."""
        return PagerState(lib.lm_status_state(self._status))

    def wait(self, state: PagerState, timeout: float | None = None) -> PagerState:
        """Wait until the state is no longer `state`, at most `timeout` seconds; return the state then."""
        return PagerState(status.wait(self._status, state, timeout))

    @property
    def event(self) -> int:
        """An eventfd of the pager, readable from a change of state until it is read."""
        return int(lib.lm_status_event(self._status))

    @property
    def cause(self) -> str:
        """Why the pager is stalled or failed, "" otherwise."""
        return status.cause(self._status)

    @property
    def keeper(self) -> int:
        """The keeper's process id, 0 before start."""
        return int(lib.lm_pager_keeper(self._pager))

    @property
    def counters(self) -> dict[str, int]:
        """The counters, by the names of struct lm_pager_statistics."""
        return status.counters("lm_pager_statistics", self.memory)

    @property
    def latencies(self) -> Latencies:
        """The latencies of the faults so far."""
        return latencies(self.memory)

    def let_go(self) -> None:
        """Every page has come: end the threads, close every userfaultfd; the keeper has the note still. Raises OSError
        (EBUSY)."""
        check_errno(lib.lm_pager_let_go(self._pager))

    def finish(self) -> None:
        """Every page has come: end the threads, close every userfaultfd, end the keeper. Raises OSError (EBUSY)."""
        check_errno(lib.lm_pager_finish(self._pager))
