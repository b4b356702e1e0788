"""Strategies. Not code paths: how much is copied before the freeze, and when the destination resumes.

`python -m live_migration.wire.strategy` prints docs/strategies.md from the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

USUAL_DOWNTIME_MS = 300.0
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


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What lm-restore asks of lm-serve, in its Greeting.

    strategy            a name of STRATEGIES, or AUTO: the source chooses by what it measures
    rounds              at most so many before the freeze
    resume_at_once      before the last page has arrived
    max_downtime_ms     the rounds end when what is dirty can be sent in this time; None: in USUAL_DOWNTIME_MS, and
                        another round would leave no less
    round_timeout       seconds after which a round is ended; None: none
    no_convergence      one of NO_CONVERGENCE
    bandwidth_limit     bytes per second for bulk, 0 for none
    hot_first           fetch what was touched last before all else
    """

    strategy: str = "post-copy"
    rounds: int = 0
    resume_at_once: bool = True
    max_downtime_ms: float | None = None
    round_timeout: float | None = None
    no_convergence: str = "post-copy"
    bandwidth_limit: int = 0
    hot_first: bool = True


TEXT = """
## A round
1. The layout is looked at; if it is another, the destination lays its husk out anew.
2. What was written to since it was looked at last is armed again, read and sent, in pieces of 8 MiB at most, so that
   little is written to between. A page lands at its final place in the husk. A page that was written to in three
   rounds behind one another waits for the end. In the first round everything that exists counts as written to, and
   the destination is told what does not exist.
3. Changed pages of private file mappings, and memory that is reached by a descriptor, are compared with digests of
   what was sent.
4. When the destination has all of it, the dirty pages are counted, and the rule is asked
   (`source_server/convergence.py`): freeze when what is dirty can be sent within `--max-downtime` at the rate of this
   round (where none is given: within 300 ms, and is no less than a quarter of this round, since a round so short leaves
   nearly nothing); another round; or, when two rounds behind one another have left no less than before or
   `--max-rounds` are done, the end of the rounds. Then hybrid freezes, and pre-copy does as `--on-no-convergence` says.
5. Before the next round the process is left in peace, so that being tracked costs it half of its speed at most: a
   round takes 12 us for each page that was written to in it.

## At the freeze
Every page that was sent and is another now is found by one look at the page tables, while the frozen process is being
described. Where everything has to be there before the resume it is sent again; else the destination is told to discard
it, drops it in the husk, and fetches it as any page that is missing, before all others. From the first round to the
resume the husk has no huge pages: while pages are dropped its memory is not registered, so that it need not wait for
the pager at each, and a huge page put together then would fill what is missing with zeros. A page that was sent and
does not exist any more is dropped, too, and zero. A mapping that is another at an old place is wholly dirty: the
kernel tells that it is not tracked.

Shared anonymous memory may be written to through other page tables than those looked at: by a child that has ended
since, or through a second mapping. What was sent of it is read again and compared with digests. Where such memory
was mapped at one place and is mapped at several, or the other way round, the husk makes it anew.

## Tracking
| how | where | what it costs |
|---|---|---|
| `userfaultfd` | UFFD_FEATURE_WP_ASYNC, PAGEMAP_SCAN (Linux 6.7) | a minor fault for a page's first write in a round |
| `soft-dirty` | /proc/PID/clear_refs and bit 55 of pagemap | the same, and a short stop at the begin of each round |
| `none` | other kernels; a file open with O_DIRECT, as its reads are not told | see below |

Without tracking pre-copy is one plain round, and in the freeze all memory is compared with digests of what was sent;
hybrid and auto become post-copy. It is said.

Which it is, is found by trying. The userfaultfd is made by the process itself, in a program that closes its
descriptor by itself even if lm-serve dies in the middle; the tracking ends with lm-serve's own descriptor, on every
way out. While it lasts the process cannot register the same memory with a userfaultfd of its own (EBUSY). Soft-dirty
bits of shared memory are not reliable: on such a kernel it is not copied in rounds.

`--strategy auto` sends for a quarter of a second, looks for a third how much of that is written to, and chooses:
stop-and-copy when the rest fits into `--max-downtime`, pre-copy when it writes at most half as fast as the link
sends, post-copy when it writes faster than that, hybrid in between. It prints the figures and the choice.
"""


def picture(strategy: Strategy) -> list[str]:
    """What travels while the process runs at the source, stands still, and runs at the destination, after the name."""
    before = f"round 1 ... {strategy.rounds} at most" if strategy.rounds else ""
    frozen = "state" if strategy.resume_at_once else "state, what is missing"
    after = "what is missing, by faults and in bulk" if strategy.resume_at_once else ""
    return [strategy.name, before, frozen, after]


def as_markdown() -> str:
    """docs/strategies.md."""
    heads = ["", "runs at the source", "stands still", "runs at the destination"]
    lines = [heads, *(picture(strategy) for strategy in STRATEGIES.values())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    padded = [[word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in lines]
    drawn = [" | ".join(line).rstrip() for line in padded]
    rows = [
        f"| `{one.name}` | {f'at most {one.rounds}' if one.rounds else '0'} | "
        f"{'at once' if one.resume_at_once else 'when complete'} |"
        for one in STRATEGIES.values()
    ]
    return (
        "\n".join(
            [
                "# Strategies",
                "",
                "Generated by `python -m live_migration.wire.strategy` from the table in `wire/strategy.py`.",
                "",
                "One engine, two numbers: how many rounds are copied before the freeze, and whether the destination",
                "resumes before or after the last page has arrived.",
                "",
                "| strategy | rounds before the freeze | resume |",
                "|---|---|---|",
                *rows,
                "",
                "What travels when:",
                "",
                *(f"    {line}" for line in drawn),
                TEXT,
            ]
        ).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    print(as_markdown(), end="")
