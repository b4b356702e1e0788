"""What lm-bench ends with: one sentence that names the object, the cause and the remedy, and a status."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """Exit statuses of lm-bench, in docs/experiments.md too; from 64 on those of sysexits.h, as of the commands."""

    OK = 0
    RUNS_FAILED = 1
    USAGE = 2
    BAD_DATA = 65
    SYSTEM = 71
    NO_SPACE = 73
    NO_PERMISSION = 77
    INTERRUPTED = 130
    TERMINATED = 143


class ExperimentError(Exception):
    """Something that ends lm-bench, or one run: `str()` is the sentence, `status` the exit status."""

    def __init__(self, sentence: str, status: Status = Status.SYSTEM) -> None:
        super().__init__(sentence)
        self.status = status
