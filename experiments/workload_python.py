"""The workload python: numeric_job.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.machines import Command, start, wait_for
from live_migration.experiments.recorder import read_record
from live_migration.experiments.results import Cell
from live_migration.experiments.workloads import Observed, Place, observe

READY_SECONDS = 120.0
CHECK_SECONDS = 300.0
LONG_SECONDS = 0.0002
"""Operations that are kept one by one: a block takes some 50 us."""


class RunningJob:
    """The job at work."""

    def __init__(self, job: Command, record: Path, command: Path) -> None:
        self.job, self.record, self.command = job, record, command
        self.pid = job.process.pid

    def resumed(self, pid: int) -> None:
        """The job does not need to know."""

    def finish(self, resumed: float) -> Observed:
        """See workloads.Running."""
        operations = read_record(self.record) if self.record.exists() else []
        self.command.touch()
        done = Path(f"{self.command}.done")
        try:
            wait_for("its check", lambda: done.exists() or None, CHECK_SECONDS, 0.02)
        except TimeoutError as error:
            raise ExperimentError(f"python: {error}; it is gone or waits for pages that do not come") from None
        told = json.loads(done.read_text())
        wrong = f"python: {told['wrong']} blocks are not what they must be" if told["wrong"] else None
        return observe(operations, resumed, LONG_SECONDS, error=wrong, done=told["operations"])


def start_python(cell: Cell, place: Place) -> RunningJob:
    """See workloads.Starter."""
    record, command = place.folder / "record", place.folder / "command"
    rate = -1 if cell.dirty_rate is None else cell.dirty_rate
    words = [sys.executable, "-m", "live_migration.experiments.numeric_job", str(record), str(cell.memory), str(rate)]
    words += [str(int(place.measured)), str(command)]
    job = start(place.network.source, words, place.folder, "python", start_new_session=True)

    def poll() -> bool | None:
        if job.process.poll() is not None:
            raise ExperimentError(f"python: it ended with {job.process.returncode}; {job.said()}")
        return Path(f"{command}.ready").exists() or None

    wait_for("the job's numbers", poll, READY_SECONDS, 0.02)
    return RunningJob(job, record, command)
