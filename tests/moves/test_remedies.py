"""Processes in namespaces of their own: what a refusal says helps, and where there is none."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from live_migration.experiments.machines import begin_move, descendants
from live_migration.kernel.process_snapshot import ProcessSnapshot
from tests.support import programs_help, started
from tests.support.programs_list import all_programs

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
    """There it has another id."""
    options = ["--pid", "--fork", "--mount", "--uts", "--kill-child"]
    within = "mount -t proc proc /proc; mount -t tmpfs none /mnt; cd /mnt; exec sleep 1000"
    with subprocess.Popen(["unshare", *options, "sh", "-c", within], stdin=subprocess.DEVNULL) as outer:
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


def test_what_landed_in_a_pid_namespace_is_moved_on_by_the_id_of_the_host(tmp_path: Path, orphans: None) -> None:
    """Its mount namespace is for its /proc alone."""
    programs_help.build()
    program = next(program for program in all_programs() if program.name == "files")
    running = programs_help.run(program, tmp_path)
    running.wait_ready()
    pid = running.process.pid
    for number in range(3):
        restore = ["--pid", "namespace"]
        move = begin_move(pid, (None, None), tmp_path, number=number, restore=restore, starting=started.start)
        try:
            pid = move.resumed()
            move.restore.event("complete")
            assert move.serve.process.wait(60) == 0, "lm-serve's exit status"
        except BaseException:
            print(move.said())
            raise
    running.say_moved()
    assert running.verdict() == "passed"
