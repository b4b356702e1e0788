"""Whoever makes namespaces and processes takes them away on every way out, also one that is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from live_migration.experiments.machines import remove_forsaken, two_machines, wait_for
from tests.conftest import skip
from tests.support import laws

NAMESPACES = Path("/run/netns")


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in NAMESPACES.glob("lm-*") if f"-{pid}-" in f"{path.name}-"]


def run_pytest(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A test run in the middle of a test that never ends, and a process that the test has started."""
    told = tmp_path / "pid"
    # A shell's background job has SIGINT ignored, and hands that on.
    line = ["env", "--default-signal=INT", sys.executable]
    line += ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/house/left_running.py"]
    run = subprocess.Popen(
        [*line, f"--basetemp={tmp_path}/base"],
        cwd=laws.ROOT,
        env=laws.environment() | {"LM_LEFT_RUNNING": str(told)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return run, int(wait_for("the test", lambda: (told.exists() and told.read_text()) or None, 60))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_test_run_that_is_ended(number: signal.Signals, tmp_path: Path, orphans: None) -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    run, sleeper = run_pytest(tmp_path)
    assert len(namespaces_of(run.pid)) == 2
    run.send_signal(number)
    assert run.wait(60) != 0
    assert namespaces_of(run.pid) == []
    assert not Path(f"/proc/{sleeper}").exists()


def test_what_a_killed_run_has_left_goes_with_the_next(tmp_path: Path, orphans: None) -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    run, _ = run_pytest(tmp_path)
    assert len(namespaces_of(run.pid)) == 2
    run.kill()
    run.wait()
    # Any other test beside this one that makes machines may be the next.
    with two_machines():
        assert namespaces_of(run.pid) == []
        assert len(namespaces_of(os.getpid())) >= 2


def test_the_demo_that_is_ended(orphans: None) -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    demo = subprocess.Popen(
        [sys.executable, "-m", "demo.demo", "--entries", "1000"],
        cwd=laws.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for("its network", lambda: len(namespaces_of(demo.pid)) == 3 or None, 60)
    demo.terminate()
    assert demo.wait(60) == 128 + signal.SIGTERM
    assert namespaces_of(demo.pid) == []


def test_only_our_own_names_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"lm-source-{os.getpid()}-00ff", f"other-{gone.pid}-00ff", "lm-notes"):
        (tmp_path / name).touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    remove_forsaken(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
