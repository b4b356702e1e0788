"""Where the downtime goes: the accounts of both sides' reports (`downtime_us`) as one, which adds up."""

from __future__ import annotations

from collections.abc import Mapping

SOURCE_WAIT, DESTINATION_WAIT = "the destination", "the decision"
"""The steps of one side that contain steps of the other."""
ON_THE_WAY = "messages on their way"


def whole(source: Mapping[str, float], destination: Mapping[str, float], downtime_us: float) -> dict[str, float]:
    """One account of both sides' reports, microseconds: each step once, and what is left of the downtime for the ways
    of the three messages FINAL, READY and COMMIT, with the wake-ups at their ends; less than 0 where a step
    of one side overlaps with one of the other. Its sum is the downtime."""
    steps = {f"source: {name}": us for name, us in source.items() if name != SOURCE_WAIT}
    steps |= {f"destination: {name}": us for name, us in destination.items() if name != DESTINATION_WAIT}
    return steps | {ON_THE_WAY: downtime_us - sum(steps.values())}
