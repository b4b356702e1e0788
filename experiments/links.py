"""Links by name: what can be asked for, and how it is written (`lan-1gbit`, or `rtt=1ms,rate=1gbit,loss=0.1%`)."""

from __future__ import annotations

import re

from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.results import Link

PRESETS: dict[str, Link] = {
    "loopback": Link(name="loopback"),
    "10gbit": Link(name="10gbit", asked_rate=10**10 // 8),
    "lan-1gbit": Link(name="lan-1gbit", asked_rate=10**9 // 8, asked_rtt_ms=0.2),
    "wan-20ms": Link(name="wan-20ms", asked_rate=200 * 10**6 // 8, asked_rtt_ms=20.0),
}
MEANINGS = {
    "loopback": "a plain veth pair, as fast as the machine",
    "10gbit": "10 Gbit/s, no delay",
    "lan-1gbit": "1 Gbit/s, 0.2 ms there and back",
    "wan-20ms": "200 Mbit/s, 20 ms there and back",
}
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
BITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
LONGEST_RTT_MS = 2_000.0
SLOWEST_RATE = 8_000
"""Bytes per second. Below it a page takes half a second."""
QUEUE_MS = 5.0
"""The bottleneck's queue holds what the link carries in this time, or in one round trip if that is longer."""
QUEUE_LEAST = 256 * 1024


def parse_link(text: str) -> Link:
    """A link as it is asked for. ExperimentError (USAGE) when it is neither a preset nor made of rtt, rate and loss."""
    if text in PRESETS:
        return PRESETS[text]
    found = {"rtt": 0.0, "rate": 0.0, "loss": 0.0}
    for word in text.split(","):
        name, is_given, value = word.partition("=")
        if not is_given or name not in found:
            raise ExperimentError(
                f"link {text!r}: {word!r} is neither a preset ({', '.join(PRESETS)}) nor one of rtt=1ms, rate=1gbit, "
                "loss=0.1%; say one of these",
                Status.USAGE,
            )
        found[name] = _number(text, name, value)
    if found["rtt"] > LONGEST_RTT_MS or not 0 <= found["loss"] < 1 or 0 < found["rate"] < SLOWEST_RATE:
        raise ExperimentError(
            f"link {text!r}: out of range; an rtt is at most 2s, a rate at least 64kbit, a loss below 100%",
            Status.USAGE,
        )
    return Link(name=text, asked_rtt_ms=found["rtt"], asked_rate=int(found["rate"]), loss=found["loss"])


def _number(link: str, name: str, value: str) -> float:
    """rtt in milliseconds, rate in bytes per second, loss as a share."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*|%)", value)
    number, unit = (float(matched[1]), matched[2]) if matched else (0.0, None)
    if name == "rtt" and unit in MILLISECONDS:
        return number * MILLISECONDS[unit]
    if name == "rate" and unit in BITS:
        return number * BITS[unit] / 8
    if name == "loss" and unit in ("%", ""):
        return number / 100 if unit == "%" else number
    units = {"rtt": "us, ms or s", "rate": "bit, kbit, mbit or gbit", "loss": "% or nothing"}[name]
    raise ExperimentError(f"link {link!r}: {name}={value} is not a number with {units} behind it", Status.USAGE)


def queue_bytes(link: Link) -> int:
    """How much waits at the bottleneck at most, in bytes; 0 for a link without one."""
    return max(int(link.asked_rate * max(link.asked_rtt_ms, QUEUE_MS) / 1000), QUEUE_LEAST) if link.asked_rate else 0
