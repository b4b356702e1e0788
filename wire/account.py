"""Where the downtime goes: an account of the steps between the freeze and the resume, which adds up.

Each side accounts for what happens on it, by its own clock (CLOCK_MONOTONIC). Each step is from the end of the one
before it, so there is no time between two. Both together are the downtime, but for the messages on their way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SOURCE_WAIT = "the destination"
"""The source's step that contains the destination's steps up to READY."""
DESTINATION_WAIT = "the decision"
"""The destination's step that contains the source's steps after READY."""
RESUMING = "resuming"


@dataclass
class Account:
    """One side's steps, nanoseconds, in the order in which they were made."""

    steps: dict[str, int] = field(default_factory=dict)
    last_ns: int = 0

    def begin(self, now_ns: int) -> None:
        """Forget an earlier freeze; the first step begins at `now_ns`."""
        self.steps.clear()
        self.last_ns = now_ns

    def step(self, name: str) -> int:
        """The step `name` ends now, and the next one begins; when that is, nanoseconds."""
        now_ns = time.monotonic_ns()
        self.steps[name] = now_ns - self.last_ns
        self.last_ns = now_ns
        return now_ns

    def in_us(self) -> dict[str, float]:
        """The steps in microseconds, as the report has them."""
        return {name: ns / 1000 for name, ns in self.steps.items()}
