"""Strategies. Not code paths: how much is copied before the freeze, and when the destination resumes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """`rounds` are copied while the source runs; `resume_at_once`: before the last page has arrived."""

    name: str
    rounds: int
    resume_at_once: bool


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("post-copy", rounds=0, resume_at_once=True),
        Strategy("stop-and-copy", rounds=0, resume_at_once=False),
    )
}
