"""Not a test of its own: what test_cleaning_up.py ends by a signal in the middle."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from live_migration.experiments.machines import Machine


def test_that_never_ends(machines: tuple[Machine, Machine], orphans: None) -> None:
    sleeper = subprocess.Popen(machines[0].command("sleep", "300"), start_new_session=True)
    Path(os.environ["LM_LEFT_RUNNING"]).write_text(str(sleeper.pid))
    time.sleep(300)
