"""The workload toucher: memory_toucher.c, and how its file of results is read."""

from __future__ import annotations

import mmap
import struct
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.histograms import bucket_of, from_counts
from live_migration.experiments.machines import Process, start, wait_for
from live_migration.experiments.programs import program
from live_migration.experiments.results import Cell
from live_migration.experiments.speed import Timeline
from live_migration.experiments.workloads import STEP_SECONDS, Observed, Place

PAGE = 4096
LOCALITIES = ("uniform", "zipf", "sequential")
# struct header of memory_toucher.c, in 64-bit words.
BEGIN, STEP, STEPS, THREADS, PAGES, COMMAND, PHASE, STATE, WRONG, BUCKETS, SLOW, LANE, MEASURE = range(1, 14)
RUNNING, VERIFIED = 1, 2
SLOW_NS = 20_000
FILL_SECONDS = 120.0
LONGEST_SECONDS = 1200
"""Of a timeline."""


@dataclass(frozen=True)
class Touched:
    """The file of a memory_toucher."""

    memory: mmap.mmap

    def word(self, index: int) -> int:
        """A word of the header."""
        return int(struct.unpack_from("=Q", self.memory, index * 8)[0])

    def say(self, index: int, value: int) -> None:
        """Set a word of the header."""
        struct.pack_into("=Q", self.memory, index * 8, value)

    def _lanes(self) -> list[int]:
        return [PAGE + number * self.word(LANE) for number in range(self.word(THREADS))]

    def operations(self) -> int:
        """How many there were so far."""
        return sum(int(struct.unpack_from("=Q", self.memory, lane)[0]) for lane in self._lanes())

    def _timeline_at(self, lane: int) -> int:
        size = PAGE + 2 * self.word(BUCKETS) * 8 + self.word(SLOW) * 16
        return lane + -(-size // PAGE) * PAGE

    def timeline(self, until: float) -> Timeline:
        """Operations of all threads, up to the last whole step before `until`."""
        begin, step = self.word(BEGIN) / 1e9, self.word(STEP) / 1e9
        steps = min(self.word(STEPS), max(0, int((until - begin) / step)))
        lanes = [struct.unpack_from(f"={steps}I", self.memory, self._timeline_at(lane)) for lane in self._lanes()]
        return Timeline(begin, step, [sum(counts) for counts in zip(*lanes, strict=True)])

    def slow(self) -> list[tuple[int, int]]:
        """(end, took) of every operation that took long, nanoseconds, in order."""
        found: list[tuple[int, int]] = []
        for lane in self._lanes():
            count = min(struct.unpack_from("=Q", self.memory, lane + 16)[0], self.word(SLOW))
            at = lane + PAGE + 2 * self.word(BUCKETS) * 8
            found += struct.iter_unpack("=QQ", self.memory[at : at + count * 16])
        return sorted(found)

    def counts_after(self, resumed: int, slow: list[tuple[int, int]]) -> Counter[int]:
        """Operations after the resume by bucket: the quick ones since the phase was told, the slow ones exactly."""
        counts: Counter[int] = Counter()
        buckets = self.word(BUCKETS)
        for lane in self._lanes():
            quick = struct.unpack_from(f"={buckets}Q", self.memory, lane + PAGE + buckets * 8)
            for bucket, count in enumerate(quick[: bucket_of(SLOW_NS)]):
                counts[bucket] += count
        counts.update(bucket_of(took) for end, took in slow if end > resumed)
        return counts


class RunningToucher:
    """A memory_toucher at work."""

    def __init__(self, process: Process, touched: Touched) -> None:
        self.process, self.touched = process, touched
        self.pid = process.pid

    def resumed(self, pid: int) -> None:
        """The other histogram is filled from now on."""
        self.touched.say(PHASE, 1)

    def finish(self, resumed: float) -> Observed:
        """See workloads.Running."""
        touched = self.touched
        done = touched.operations()
        stopped = time.time()
        touched.say(COMMAND, 1)
        try:
            state = wait_for("the toucher's check", lambda: _ended(touched), FILL_SECONDS, 0.02)
        except TimeoutError as error:
            raise ExperimentError(f"toucher: {error}; it is gone or waits for pages that do not come") from None
        slow = [one for one in touched.slow() if one[0] <= stopped * 1e9]
        wrong = touched.word(WRONG)
        return Observed(
            verified=state == VERIFIED,
            error=None if state == VERIFIED else f"toucher: {wrong} pages are not what was last written to them",
            timeline=touched.timeline(stopped),
            operations=from_counts(touched.counts_after(int(resumed * 1e9), slow)),
            waits=[(end / 1e9, took / 1e9) for end, took in slow],
            done=done,
        )


def _ended(touched: Touched) -> int | None:
    state = touched.word(STATE)
    return state if state > RUNNING else None


def start_toucher(cell: Cell, place: Place) -> RunningToucher:
    """See workloads.Starter."""
    chosen, path = place.toucher, place.folder / "touched"
    rate = -1 if cell.dirty_rate is None else cell.dirty_rate
    words = [program("memory_toucher"), str(path), f"size={cell.memory}", f"dirty-rate={rate}"]
    words += [f"locality={LOCALITIES.index(chosen.locality)}", f"working-set={chosen.working_set}"]
    words += [f"write-share={chosen.write_share}", f"compressible={chosen.compressible}"]
    words += [f"threads={chosen.threads}", f"step={round(STEP_SECONDS * 1e9)}", f"seconds={LONGEST_SECONDS}"]
    words += [f"measure={int(place.measured)}"]
    command = start(place.network.source, words, place.folder, "toucher", start_new_session=True)

    def poll() -> Touched | None:
        if command.process.poll() is not None:
            raise ExperimentError(f"toucher: it ended with {command.process.returncode}; {command.said()}")
        if not path.exists() or path.stat().st_size < PAGE:
            return None
        touched = _open(path)
        return touched if touched.word(STATE) == RUNNING else None

    return RunningToucher(command.process, wait_for("the toucher's memory", poll, FILL_SECONDS, 0.02))


def _open(path: Path) -> Touched:
    with path.open("r+b") as file:
        return Touched(mmap.mmap(file.fileno(), 0))
