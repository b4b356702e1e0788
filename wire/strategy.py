"""Strategies. Not code paths: how much is copied before the freeze, and when the destination resumes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

AUTO = "auto"
MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Strategy:
    """At most `rounds` are copied while the source runs; `resume_at_once`: before the last page has arrived."""

    name: str
    rounds: int
    resume_at_once: bool


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("post-copy", rounds=0, resume_at_once=True),
        Strategy("hybrid", rounds=5, resume_at_once=True),
        Strategy("pre-copy", rounds=30, resume_at_once=False),
        Strategy("stop-and-copy", rounds=0, resume_at_once=False),
    )
}

# What becomes of rounds that do not converge: freeze all the same, resume at once, or give up.
NO_CONVERGENCE = ("freeze", "post-copy", "abort")


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What lm-restore asks of lm-serve, in its Greeting.

    strategy            a name of STRATEGIES, or AUTO: the source chooses by what it measures
    rounds              at most so many before the freeze
    resume_at_once      before the last page has arrived
    max_downtime_ms     the rounds end when what is dirty can be sent in this time
    round_timeout       seconds after which a round is ended; None: none
    no_convergence      one of NO_CONVERGENCE
    bandwidth_limit     bytes per second for bulk, 0 for none
    hot_first           fetch what was written to last before all else
    """

    strategy: str = "post-copy"
    rounds: int = 0
    resume_at_once: bool = True
    max_downtime_ms: float = 300.0
    round_timeout: float | None = None
    no_convergence: str = "post-copy"
    bandwidth_limit: int = 0
    hot_first: bool = True
