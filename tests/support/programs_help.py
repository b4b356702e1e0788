"""Building and starting the programs of tests/programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from live_migration.experiments.machines import Machine, Process, start, wait_for, wait_for_change
from live_migration.kernel.proc import stat_fields
from tests.support.programs_list import FOLDER, Program


def build() -> None:
    """Build the programs that are older than their source (make programs), one test run after the other."""
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", str(FOLDER.parents[1]), "programs"], check=True, stdout=subprocess.DEVNULL)
    finally:
        os.close(folder)


@dataclass
class Running:
    """A program that was started in a folder."""

    program: Program
    process: Process
    folder: Path

    def wait_ready(self) -> None:
        """Wait until it may be moved; in its group-stop, if it has one."""

        def ready() -> bool | None:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.program.name} ended early: {self.verdict(0.1)}")
            return (self.folder / "ready").exists() or None

        wait_for_change(f"{self.program.name} being ready", ready, self.folder, seconds=60)
        if self.program.stopped:
            wait_for("the group-stop", lambda: self.state(self.process.pid) == "T" or None, 60)

    def state(self, pid: int) -> str:
        """A process's state, as /proc/PID/stat has it."""
        return stat_fields(pid)[0]

    def say_moved(self) -> None:
        """Tell it to check."""
        (self.folder / "moved").touch()

    def verdict(self, seconds: float = 60) -> str:
        """What it found; with its own output if it said nothing."""

        def poll() -> str | None:
            with contextlib.suppress(FileNotFoundError):
                return (self.folder / "result").read_text().strip()
            return None

        try:
            return wait_for_change("the verdict", poll, self.folder, seconds=seconds)
        except TimeoutError:
            printed = [(self.folder / f"program.{kind}").read_text() for kind in ("out", "err")]
            return "no verdict; it printed: " + "".join(printed)


def run(program: Program, folder: Path, machine: Machine | None = None) -> Running:
    """Start a program in a session of its own; its files are in the folder."""
    folder.chmod(0o777)
    words = [str(FOLDER / "bin" / program.name), str(folder)]
    command = start(machine, words, folder, "program", start_new_session=True)
    return Running(program, command.process, folder)
