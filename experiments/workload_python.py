"""The workloads python and sqlite: jobs that know what their data must be (numeric_job.py, sqlite_job.py)."""

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
"""Operations that are kept one by one: a block takes some 50 us, a row some 20."""


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
            raise ExperimentError(f"{self.job.name}: {error}; it is gone or waits for pages that do not come") from None
        told = json.loads(done.read_text())
        wrong = f"{self.job.name}: {told['wrong']} parts of its data are not right" if told["wrong"] else None
        return observe(operations, resumed, LONG_SECONDS, error=wrong, done=told["operations"])


def start_python(cell: Cell, place: Place) -> RunningJob:
    """See workloads.Starter."""
    return _start(cell, place, "numeric_job")


def start_sqlite(cell: Cell, place: Place) -> RunningJob:
    """See workloads.Starter."""
    return _start(cell, place, "sqlite_job", place.keys)


def _start(cell: Cell, place: Place, module: str, *more: str) -> RunningJob:
    name, record, command = cell.workload, place.folder / "record", place.folder / "command"
    rate = -1 if cell.dirty_rate is None else cell.dirty_rate
    words = [sys.executable, "-m", f"live_migration.experiments.{module}", str(record), str(cell.memory), str(rate)]
    words += [str(int(place.measured)), str(command), *more]
    job = start(place.network.source, words, place.folder, name, start_new_session=True)

    def poll() -> bool | None:
        if job.process.poll() is not None:
            raise ExperimentError(f"{name}: it ended with {job.process.returncode}; {job.said()}")
        return Path(f"{command}.ready").exists() or None

    wait_for("the job's data", poll, READY_SECONDS, 0.02)
    return RunningJob(job, record, command)
