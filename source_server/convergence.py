"""When the rounds end: a rule over what they have measured, without any I/O."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence

from live_migration.wire.report import Round
from live_migration.wire.strategy import USUAL_DOWNTIME_MS, Parameters

# Nobody feels it when a freeze sends fewer pages than this.
FEW_PAGES = 64
# If so many rounds in a row leave no fewer dirty pages, no later one will be better.
PATIENCE = 2
SHRINKS = 0.9
# A short round sends what was written during a long one, and leaves little. It is worth it if it is so much shorter and
# the user has not said which downtime is allowed.
MUCH_SHORTER = 0.25
# The first write to a page in a round is a fault of 1 us or, on a virtual machine, of up to six. This is twice that.
SECONDS_PER_PAGE = 12e-6
LONGEST_PAUSE = 2.0


class NextStep(enum.Enum):
    """What to do after a round."""

    GO_ON = "another round"
    FREEZE = "what is dirty can be sent in the time that is allowed"
    NO_CONVERGENCE = "the process writes as fast as the link sends"
    NO_ROUNDS_LEFT = "the last round that was allowed is over"


def sendable(round_: Round, milliseconds: float) -> float:
    """How many pages can be sent in so many milliseconds, by the rate of a round; 0 if it sent none."""
    return round_.pages / round_.ms * milliseconds if round_.ms > 0 else 0.0


def allowed_downtime_ms(parameters: Parameters) -> float:
    """How long sending the last dirty pages may take, in milliseconds."""
    return USUAL_DOWNTIME_MS if parameters.max_downtime_ms is None else parameters.max_downtime_ms


def next_step(rounds: Sequence[Round], parameters: Parameters) -> NextStep:
    """What to do after the last of these rounds."""
    last = rounds[-1]
    if last.dirty <= FEW_PAGES:
        return NextStep.FREEZE
    if last.dirty <= sendable(last, allowed_downtime_ms(parameters)):
        leaves_little = last.dirty <= MUCH_SHORTER * last.pages and len(rounds) < parameters.rounds
        return NextStep.GO_ON if leaves_little and parameters.max_downtime_ms is None else NextStep.FREEZE
    if len(rounds) >= parameters.rounds:
        return NextStep.NO_ROUNDS_LEFT
    if len(rounds) > PATIENCE:
        dirty = [one.dirty for one in rounds[-PATIENCE - 1 :]]
        if all(after > SHRINKS * before for before, after in itertools.pairwise(dirty)):
            return NextStep.NO_CONVERGENCE
    return NextStep.GO_ON


def pause_before_next(last: Round) -> float:
    """Seconds to leave the process in peace before the next round, so that being tracked costs it little."""
    return min(LONGEST_PAUSE, max(0.0, SECONDS_PER_PAGE * last.dirty - last.ms / 1000))
