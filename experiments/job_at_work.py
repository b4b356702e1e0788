"""A job that works without a pause until it is told to check its data: what the workloads python and sqlite share."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Protocol

from live_migration.experiments.recorder import Recorder

LOOK_EVERY = 64
"""Operations between two looks for the command: a look costs as much as a small part of one."""


class Job(Protocol):
    """What works."""

    def operate(self, now: int) -> None:
        """Do one operation; `now`: nanoseconds since 1970."""

    def wrong(self) -> int:
        """How many parts of its data are not what they must be."""


def work(job: Job, record: str, command: str, *, measured: bool) -> None:
    """Let it work, with the time of every operation in the file `record` if it is `measured`. When the file `command`
    appears, the job ends, checks, and writes {"wrong": ..., "operations": ...} to COMMAND.done."""
    recorder = Recorder(Path(record)) if measured else None
    Path(f"{command}.ready").touch()
    operations, last = 0, time.time_ns()
    while operations % LOOK_EVERY or not os.path.exists(command):
        job.operate(last)
        operations += 1
        now = time.time_ns()
        if recorder:
            recorder.add(now, now - last)
        last = now
    partial = Path(f"{command}.partial")
    partial.write_text(json.dumps({"wrong": job.wrong(), "operations": operations}))
    partial.rename(f"{command}.done")
