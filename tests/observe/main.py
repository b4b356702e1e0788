"""Moves many seeds by every strategy: python -m tests.observe.main [--whole] [SEEDS [FIRST]] (make observe SEEDS=1000).

Prints what is not as it was, each cause once, with the few calls that lead to it (--whole: as it is);
exits with 1 if there is any.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from live_migration.experiments.machines import adopt_orphans, leave_on_signals, two_machines
from tests.observe.seeds import STRATEGIES, Outcome, Seed, build, move, shrink
from tests.support.started import end_everything, end_warm

REFUSABLE_EVERY = 8
"""Every so many seeds draw what is refused, too: more would leave little that is moved."""


def seed_of(number: int) -> Seed:
    """Strategies in turns; half of the seeds go on changing, and the others are looked at from outside."""
    turn = number // len(STRATEGIES)
    return Seed(
        number, STRATEGIES[number % len(STRATEGIES)], bool(turn % 2), refusable=turn % REFUSABLE_EVERY == 0
    )


def describe(seed: Seed, outcome: Outcome) -> str:
    """A failing seed, for whoever mends it."""
    how = f"{seed.strategy}{', changing' if seed.changing else ''}{', refusable' if seed.refusable else ''}"
    log = outcome.log if seed.calls is not None and len(outcome.log) < 60 else outcome.log[-30:]
    calls = "".join(f"    {line}\n" for line in log)
    return f"seed {seed.number} ({how}): {outcome.what}\n{outcome.text[:3000]}{calls}"


def main(count: int, first: int, shrinking: bool = True) -> int:
    """Run the seeds. Returns the exit status."""
    build()
    leave_on_signals()
    adopt_orphans()
    outcomes: Counter[str] = Counter()
    known: Counter[str] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lm-observe-") as name, two_machines() as machines:
        folder = Path(name).resolve() / "run"
        Path(name).chmod(0o755)
        for number in range(first, first + count):
            seed = seed_of(number)
            outcome = move(seed, folder, machines)
            outcomes[outcome.what] += 1
            if outcome.what == "same" or (outcome.what == "refused" and seed.refusable):
                continue
            known[outcome.signature] += 1
            if known[outcome.signature] == 1:
                if shrinking:
                    seed, outcome = shrink(seed, lambda one: move(one, folder, machines), outcome)
                print(describe(seed, outcome), flush=True)
    print(f"{count} seeds in {time.monotonic() - begun:.0f} s: {dict(outcomes)}")
    for signature, times in known.most_common():
        print(f"{times:6} {signature}")
    return 1 if known else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    try:
        status = main(
            numbers[0] if numbers else 20, numbers[1] if len(numbers) > 1 else 0, "--whole" not in sys.argv
        )
    finally:
        end_everything()
        end_warm()
    sys.exit(status)
