"""What a refusal says helps."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from live_migration.experiments.machines import descendants
from live_migration.kernel.process_snapshot import ProcessSnapshot

NAMED = "run lm-serve inside it: "


def check(words: list[str]) -> list[str]:
    """The remedies that lm-serve --check tells."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*words, "--check", "--json"], capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["event"] == "checked", done.stdout + done.stderr
    return [blocker["remedy"] for blocker in told["blockers"]]


def wait_for(parent: int, name: str) -> int:
    """The id of a descendant that executes the program of that name. Raises AssertionError after 10 s."""
    for _ in range(1000):
        for pid in descendants(parent):
            if ProcessSnapshot(pid).name == name:
                return pid
        time.sleep(0.01)
    raise AssertionError(f"no {name}")


def test_the_command_for_a_process_in_other_namespaces_finds_it_there() -> None:
    """As a process that was moved into a PID namespace, and is to be moved again, is named by the host's id."""
    options = ["--pid", "--fork", "--mount-proc", "--uts", "--kill-child"]
    with subprocess.Popen(["unshare", *options, "sleep", "1000"], stdin=subprocess.DEVNULL) as outer:
        try:
            sleeper = wait_for(outer.pid, "sleep")
            remedies = [each for each in check(["lm-serve", str(sleeper)]) if each.startswith(NAMED)]
            command = remedies[0].removeprefix(NAMED)
            assert command == f"nsenter --target {sleeper} --mount --uts --pid -- lm-serve 1"
            assert remedies == [remedies[0]] * 2
            assert not [each for each in check(shlex.split(command)) if each.startswith(NAMED)]
            assert ProcessSnapshot(sleeper).name == "sleep"
        finally:
            outer.kill()
