"""Commands forked from the warm process (tests/support/warm.py) are like started ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from live_migration.experiments import machines
from live_migration.experiments.machines import Machine, wait_for
from tests.support import started

PROBE = "tests.support.surroundings"


def found(words: list[str], starting: Any, machine: Machine | None, folder: Path, **more: Any) -> dict[str, Any]:
    """What a command finds around it, with the paths of its output made the same for all."""
    folder.mkdir()
    command = starting(machine, words, folder, "probe", **more)
    assert command.process.wait(60) == int(words[3]), command.said()
    said: dict[str, Any] = json.loads((folder / "probe.out").read_text())
    said["descriptors"] = {name: path.replace(str(folder), "") for name, path in said["descriptors"].items()}
    if said["leads"]:
        del said["group"], said["session"]
    return said


@pytest.mark.parametrize("new_session", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_forked_command_finds_what_a_started_one_does(
    there: bool, new_session: bool, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = request.getfixturevalue("machines")[0] if there else None
    monkeypatch.setattr(started, "COMMANDS", (PROBE,))
    words = [sys.executable, "-m", PROBE, "3", "a b", ""]
    more = {"env": {**os.environ, "LM_X": "1"}, "cwd": started.ROOT, "start_new_session": new_session}
    real, forked = (
        found(words, starting, machine, tmp_path / name, **more)
        for name, starting in (("real", machines.start), ("forked", started.start))
    )
    assert forked == real
    assert real["parent"] == os.getpid()


def test_what_ends_it_is_told(tmp_path: Path) -> None:
    with open(os.devnull, "r+b") as null:
        forked = started.fork(["", "-m", PROBE], [null.fileno()] * 3, cwd=started.ROOT)
    assert forked.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0.01)
    forked.send_signal(signal.SIGTERM)
    assert forked.wait(60) == forked.returncode == -signal.SIGTERM
    forked.kill()


def test_a_command_that_cannot_begin_says_why(tmp_path: Path) -> None:
    done = started.run(["", "-m", "tests.support.nowhere"], env={}, cwd=started.ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (70, "")
    assert "No module named 'tests.support.nowhere'" in done.stderr


def test_a_warm_process_that_was_killed_is_replaced(orphans: None) -> None:
    first = started.warm().process
    first.kill()
    first.wait(60)
    done = started.run(["", "-m", PROBE, "0"], env={}, cwd=started.ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [started.warm().process.pid] == started.spared() != [first.pid]


def test_it_outlives_a_test(orphans: None) -> None:
    warm = started.warm().process
    child = subprocess.Popen(["sleep", "1000"])
    started.end_everything()
    assert warm.poll() is None
    wait_for("the child's end", lambda: None if Path(f"/proc/{child.pid}").exists() else True, 60)
