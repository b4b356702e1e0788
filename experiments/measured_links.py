"""What a link really does: its round trip and rate, measured before it is used."""

from __future__ import annotations

import json
import statistics
import subprocess
from typing import Any

import msgspec

from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.network import Network
from live_migration.experiments.programs import program
from live_migration.experiments.results import Link

ROUND_TRIPS = 200
RTT_SECONDS = 2.0
"""How long the round trips may take together."""
RATE_SECONDS = 1.0
RATE_ROUND_TRIPS = 60
"""How many round trips a TCP connection gets to find its rate."""


def probe(network: Network) -> dict[str, Any]:
    """rtt_us: every round trip; rate: bytes per second. Raises ExperimentError."""
    rtt = network.link.asked_rtt_ms / 1000
    count = max(10, min(ROUND_TRIPS, round(RTT_SECONDS / (rtt + 0.001))))
    seconds = max(RATE_SECONDS, rtt * RATE_ROUND_TRIPS)
    namespaces = [f"/run/netns/{machine.namespace}" for machine in (network.source, network.destination)]
    words = [program("probe"), *namespaces, network.source.address, str(count), str(seconds)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60 + 2.5 * count + seconds)
    except subprocess.TimeoutExpired:
        raise ExperimentError(f"link {network.link.name}: it cannot be measured, nothing comes through it") from None
    if done.returncode:
        raise ExperimentError(f"link {network.link.name}: it cannot be measured; {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["rtt_us"] or not found["rate"]:
        raise ExperimentError(f"link {network.link.name}: it carries nothing; ask for a faster one or for less loss")
    return found


def measure_link(network: Network) -> Link:
    """The network's link with what it really does. Raises ExperimentError."""
    found = probe(network)
    rtt = statistics.median(found["rtt_us"])
    return msgspec.structs.replace(
        network.link,
        measured_rtt_ms=round(rtt / 1000, 4),
        measured_jitter_ms=round(statistics.median(abs(each - rtt) for each in found["rtt_us"]) / 1000, 4),
        measured_rate=int(found["rate"]),
    )
