"""Strategies are not code paths, but how much is copied before the freeze, and when the destination resumes.

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
    """What lm-restore wants of lm-serve, in its Greeting.

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
1. The source rereads the layout. If it has changed, the destination lays its husk out anew.
2. The source arms, reads and sends again what has been written to since the last reading, in pieces of 8 MiB at most,
   so that the process writes little in between. A page lands at its final place in the husk. A page that was written
   to in three rounds in a row waits for the end. In the first round everything that exists counts as written to, and
   the destination is told what does not exist.
3. The source compares changed pages of private file mappings, and memory that is reached by a descriptor, with digests
   of what was sent.
4. When the destination has everything, the source counts the dirty pages and applies the rule
   (`source_server/convergence.py`). It freezes when the dirty pages can be sent within `--max-downtime` at the rate of
   this round. (Without the option: when they can be sent within 300 ms, and are no less than a quarter of this round,
   since a round so short leaves nearly nothing.) Otherwise there is another round. The rounds end when two in a row
   have left no fewer dirty pages than before, or when `--max-rounds` are done. Then hybrid freezes, and pre-copy does
   what `--on-no-convergence` says.
5. Before the next round the process is left in peace, so that tracking costs it half of its speed at most: a
   round takes 12 us for each page that was written to in it.

## At the freeze
One scan of the page tables finds every page that was sent and has changed since, while the frozen process is being
described. If everything has to be there before the resume, the page is sent again. Otherwise the destination is told to
discard it: it drops the page in the husk, and fetches it like any missing page, before all others. From the first round
to the resume the husk has no huge pages. While pages are dropped its memory is not registered, so that it need not wait
for the pager at each of them, and a huge page that the kernel put together then would fill missing pages with zeros. A
page that was sent and does not exist any more is dropped too, and is zero. A new mapping at an old place is wholly
dirty: the kernel tells that it is not tracked.

Shared anonymous memory may be written to through other page tables than those that were scanned: by a child that has
ended since, or through a second mapping. What was sent of it is read again and compared with digests. If such memory
was mapped at one place and is now mapped at several, or the other way round, the husk makes it anew.

## Tracking
| how | where | what it costs |
|---|---|---|
| `userfaultfd` | UFFD_FEATURE_WP_ASYNC, PAGEMAP_SCAN (Linux 6.7) | a minor fault for a page's first write in a round |
| `soft-dirty` | /proc/PID/clear_refs and bit 55 of pagemap | the same, and a short stop at the start of each round |
| `none` | other kernels; a file open with O_DIRECT, whose reads are not tracked | see below |

Without tracking, pre-copy is one plain round, and in the freeze all memory is compared with digests of what was sent.
Hybrid and auto become post-copy. lm-serve says so.

lm-serve finds out by trying which one works. The process itself makes the userfaultfd, in a program that closes its
descriptor by itself even if lm-serve dies in the middle. The tracking ends with lm-serve's own descriptor, on every
way out. While it lasts, the process cannot register the same memory with a userfaultfd of its own (EBUSY). Soft-dirty
bits of shared memory are not reliable: on such a kernel it is not copied in rounds.

`--strategy auto` sends for a quarter of a second, measures for a third how much of that is written to, and chooses:
stop-and-copy when the rest fits into `--max-downtime`; pre-copy when the process writes at most half as fast as the
link sends; post-copy when it writes faster than the link sends; hybrid in between. It prints figures and choice.
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
                "There is one engine with two numbers: how many rounds are copied before the freeze, and whether the",
                "process resumes before or after the last page has arrived.",
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
