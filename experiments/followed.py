"""A command that prints events, one JSON object a line, followed without asking again and again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from live_migration.experiments.errors import ExperimentError
from live_migration.experiments.machines import Machine

SECONDS = 60.0


class Followed:
    """The command while it runs; a thread reads its standard output, standard error is in folder/NAME.err."""

    def __init__(self, machine: Machine, words: Sequence[str], folder: Path, name: str) -> None:
        self.name, self.folder = name, folder
        self.started = time.time()
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        with (folder / f"{name}.err").open("wb") as err:
            self.process = subprocess.Popen(
                machine.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                with self._changed, contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict) and "event" in found:
                        self.events.append(found)
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def event(self, name: str) -> dict[str, Any] | None:
        """An event if it has come."""
        return next((event for event in self.events if event["event"] == name), None)

    def wait(self, name: str, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for an event. ExperimentError when the command ends without it (with its own words), or in vain."""
        with self._changed:
            self._changed.wait_for(lambda: self.event(name) or self._ended, seconds)
            found = self.event(name)
        if found:
            return found
        if self._ended:
            raise ExperimentError(f"{self.name} ended before {name!r}: {self.said()}")
        raise ExperimentError(f"{self.name}: {name!r} did not come within {seconds:g} s; {self.said()}")

    def said(self) -> str:
        """The last thing that it said on standard error."""
        text = (self.folder / f"{self.name}.err").read_text(errors="replace").strip()
        return " ".join(text.splitlines()[-3:]) or "it said nothing"

    def report(self) -> dict[str, Any]:
        """What it has written with --report; {} where it has written nothing."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text())
            return found
        return {}
