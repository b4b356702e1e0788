"""Results of runs that never were, for tests of the report: what a plausible machine would have measured."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from live_migration.experiments.results import NAME, Cell, Cost, Floor, Histogram, Link, Machine, Result, Speed, append

MIB = 2**20
MACHINE = Machine(kernel="6.18.0", processor="A <processor> & more", cores=2, memory=8 * 2**30, python="3.11.2",
                  versions={"redis": "7"})  # fmt: skip
LINKS = {
    "1gbit": Link(name="1gbit", asked_rtt_ms=0.2, asked_rate=125_000_000, by="tbf", measured_rtt_ms=0.23,
                  measured_rate=118_000_000),
    "loopback": Link(name="loopback", measured_rtt_ms=0.03, measured_rate=2_400_000_000),
    "wan": Link(name="wan", asked_rtt_ms=20, asked_rate=12_500_000, by="relay", measured_rtt_ms=20.4,
                measured_rate=12_200_000),
}  # fmt: skip
SPEED = 400_000.0
PACES = {"1gbit": 118e6, "loopback": 900e6, "wan": 12e6}


def histogram(generator: random.Random, count: int, middle: float) -> Histogram:
    """A long-tailed distribution around a median, microseconds."""
    if not count:
        return Histogram()
    values = sorted(middle * math.exp(abs(generator.gauss(0, 0.3)) ** 1.7 + generator.gauss(0, 0.12))
                    for _ in range(min(count, 300)))  # fmt: skip
    buckets: dict[float, int] = {}
    for value in values:
        bucket = round(2 ** (math.ceil(math.log2(value) * 16) / 16), 2)
        buckets[bucket] = buckets.get(bucket, 0) + max(1, count // len(values))

    def at(share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    return Histogram(buckets=sorted(buckets.items()), count=count, p50_us=at(0.5), p90_us=at(0.9), p99_us=at(0.99),
                     max_us=values[-1])  # fmt: skip


Timeline = list[tuple[float, float]]


def timeline(generator: random.Random, start: float, frozen: float, slow: float, steps: float) -> Timeline:
    """Operations in steps of `steps` milliseconds: slower in the rounds, none while frozen, recovering over `slow`."""
    points = []
    at = start - 600.0
    while at < max(slow * 2, 600.0) + 300:
        speed = SPEED * generator.uniform(0.97, 1.0)
        if start <= at < frozen - steps:
            speed *= 0.88
        still = max(0.0, min(at + steps, 0.0) - max(at, frozen)) / steps
        speed *= 1 - still
        if at >= 0:
            speed *= 1 - 0.75 * math.exp(-3 * at / slow) if slow else 1.0
        points.append((round(at, 3), round(speed * steps / 1000, 1)))
        at += steps
    return points


def result(
    strategy: str, memory: int = 512 * MIB, dirty: int | None = 0, link: str = "1gbit", run: int = 0, peer: str = "",
    workload: str = "toucher", **changes: Any,
) -> Result:  # fmt: skip
    """A verified run as a plausible machine would have it; `changes` are fields of Result."""
    generator = random.Random(f"{strategy}/{memory}/{dirty}/{link}/{run}/{peer}/{workload}")
    noise = generator.uniform(0.92, 1.12)
    pages, pace, rate = memory // 4096 + 900, PACES[link], min((dirty or 0) / PACES[link], 0.9)
    whole = pages * 4096 / pace * 1000
    rounds: list[dict[str, Any]] = []
    resent, down, faults, slow, trip = 0, 6.0, 0, 0.0, LINKS[link].measured_rtt_ms
    if strategy in ("pre-copy", "hybrid"):
        left, number = float(pages), 0
        while left > 200 and number < 6:
            length = left * 4096 / pace * 1000
            rounds.append({"pages": int(left), "bytes": int(left * 4096), "ms": length, "dirty": int(left * rate),
                           "rate": pace})  # fmt: skip
            left, number = left * rate, number + 1
            resent += int(left)
        if strategy == "pre-copy":
            down += left * 4096 / pace * 1000
        else:
            faults, slow = int(left * 0.08), max(20.0, left * 4096 / pace * 1000)
    elif strategy == "stop-and-copy":
        down += whole
    else:
        faults, slow = int(pages * 0.05 * noise), whole
    if peer == "criu":
        down = 80 + whole * (0.02 if strategy == "lazy-pages" else 1.8)
        faults = int(pages * 0.3) if strategy == "lazy-pages" else 0
        slow *= 2.5
    down = down * noise + trip
    frozen = -down
    start = frozen - sum(one["ms"] for one in rounds) - 120
    complete = slow * 1.02 if slow else 0.0
    step = 10.0 if slow < 2000 else 50.0
    lost = SPEED * (down / 1000 + slow / 1000 * 0.25 + sum(one["ms"] for one in rounds) / 1000 * 0.12)
    speed = Speed(step_ms=step, timeline=timeline(generator, start, frozen, slow, step), before=SPEED,
                  during_rounds=SPEED * 0.88 if rounds else None, lowest=0.0 if down > step else SPEED * 0.2,
                  recovered_ms=slow * 0.9 + 5, lost=lost)  # fmt: skip
    fields: dict[str, Any] = {
        "cell": Cell(workload=workload, strategy=strategy, link=link, memory=memory, dirty_rate=dirty, peer=peer,
                     run=run),
        "link": LINKS[link], "machine": MACHINE, "started": 1_750_000_000.0 + run, "verified": True,
        "downtime_ms": down,
        "reported_downtime_ms": None if peer else down * 0.9, "total_ms": complete - start,
        "wire_bytes": int((pages + resent) * 4096 * 0.7), "pages": pages, "pages_sent": pages + resent,
        "pages_resent": resent, "faults": histogram(generator, faults, trip * 1000 + (90 if not peer else 160)),
        "operations": Histogram(count=100_000, p50_us=2, p99_us=300, max_us=5000), "speed": speed,
        "moments_ms": {"start": start, "frozen": frozen, "resumed": 0.0, "complete": complete}, "rounds": rounds,
        "costs": {} if peer else {"serve": Cost(cpu_seconds=whole / 2500 * noise, memory=int(60 * MIB * noise)),
                                  "restore": Cost(cpu_seconds=whole / 1800 * noise, memory=int(74 * MIB * noise))},
        "samples": {"working_set_pages": pages - 900, "latencies": [1, 2, 3]},
    }  # fmt: skip
    return Result(**(fields | changes))


def floor(link: str = "1gbit") -> Floor:
    """The floor of a link."""
    trip = LINKS[link].measured_rtt_ms
    return Floor(link=LINKS[link], machine=MACHINE, fault_p50_us=trip * 1000 + 40, fault_p99_us=trip * 1300 + 95,
                 bulk_rate=PACES[link] * 1.05, downtime_ms=0.6 + trip)  # fmt: skip


def sweep(
    memories: Iterable[int] = (64 * MIB, 512 * MIB, 2048 * MIB),
    dirty: Iterable[int | None] = (0, 10 * MIB, 100 * MIB),
    links: Iterable[str] = ("1gbit",),
    runs: int = 3,
    workload: str = "toucher",
) -> list[Result]:
    """Our four strategies in every combination."""
    return [
        result(strategy, memory, rate, link, run, workload=workload)
        for link in links
        for memory in memories
        for rate in dirty
        for strategy in ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
        for run in range(runs)
    ]


def put(folder: Path, results: Iterable[Result], floors: Iterable[Floor] = ()) -> Path:
    """Write results as lm-bench run does, and floors as lm-bench floor does."""
    for one in results:
        append(folder / NAME, one)
    for limit in floors:
        append(folder / "floor.jsonl", limit)
    return folder
