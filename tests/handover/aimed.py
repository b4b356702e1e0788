"""lm-restore whose worker is ended by a timer that it sets at a failpoint of the handover."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import live_migration.cli.restore
import live_migration.restorer.migrate
import live_migration.restorer.phases


@dataclass
class Aim:
    """Where a timer is set, for how long, and the file that says that it was."""

    failpoint: str
    seconds: float
    reached: Path

    def at(self, name: str) -> None:
        """The failpoint `name` is reached: what stands in the place of wire.failpoints.failpoint."""
        if name == self.failpoint:
            self.reached.touch()
            signal.setitimer(signal.ITIMER_REAL, self.seconds)


def main() -> int:
    """The failpoint, the seconds and the file come before the arguments of lm-restore."""
    failpoint, seconds, reached, *arguments = sys.argv[1:]
    aim = Aim(failpoint, float(seconds), Path(reached))
    live_migration.restorer.migrate.failpoint = aim.at  # type: ignore[attr-defined]
    live_migration.restorer.phases.failpoint = aim.at  # type: ignore[attr-defined]
    return live_migration.cli.restore.main(arguments)
