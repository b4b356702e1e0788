"""Latencies in buckets of 3 percent, as memory_toucher.c counts them and as results.Histogram keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from live_migration.experiments.results import Histogram

FINE_BITS = 5
"""32 buckets for each doubling, as in memory_toucher.c."""


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a latency."""
    if nanoseconds < 2 << FINE_BITS:
        return nanoseconds
    shift = nanoseconds.bit_length() - 1 - FINE_BITS
    return (shift << FINE_BITS) + (nanoseconds >> shift)


def upper_bound(bucket: int) -> int:
    """The largest latency that falls into a bucket, nanoseconds."""
    if bucket < 2 << FINE_BITS:
        return bucket
    shift = (bucket >> FINE_BITS) - 1
    return ((bucket - (shift << FINE_BITS) + 1) << shift) - 1


def from_counts(counts: Mapping[int, int]) -> Histogram:
    """The histogram of latencies that are counted by bucket."""
    pairs = [(upper_bound(bucket) / 1000, count) for bucket, count in sorted(counts.items()) if count]
    return from_pairs(pairs)


def from_latencies(latencies: Iterable[int]) -> Histogram:
    """The histogram of latencies in nanoseconds."""
    return from_counts(Counter(map(bucket_of, latencies)))


def from_pairs(pairs: list[tuple[float, int]]) -> Histogram:
    """The histogram of (microseconds, count) in growing order."""
    total = sum(count for _, count in pairs)
    if not total:
        return Histogram()

    def quantile(share: float) -> float:
        seen = 0
        for value, count in pairs:
            seen += count
            if seen >= share * total:
                return value
        return pairs[-1][0]

    p50, p90, p99 = (quantile(share) for share in (0.5, 0.9, 0.99))
    return Histogram(buckets=pairs, count=total, p50_us=p50, p90_us=p90, p99_us=p99, max_us=pairs[-1][0])
