"""--decide of both commands: what waits for the other side, and a decision by hand where that is gone for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws, started
from tests.support.doubt import custodians, doubt


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


def decide(side: str, *words: object) -> tuple[int, str]:
    """Run a command with --decide; its status, and what it says."""
    line = [sys.executable, "-m", f"live_migration.cli.{side}", "--decide", *map(str, words)]
    done = started.run(line, env=laws.environment(), cwd=laws.ROOT, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("worker_lives", [True, False])
def test_a_husk_is_let_run_by_hand(worker_lives: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """The source does not come back, as far as anybody knows. It had handed over, and hears of it when it does."""
    with doubt(program, tmp_path, strategy="stop-and-copy") as found:
        found.await_doubt()
        if not worker_lives:
            os.kill(found.worker, signal.SIGKILL)
            assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
        husk = found.husk
        status, said = decide("restore", "list")
        assert status == 0
        assert f"process {husk} is kept, stopped" in said
        status, said = decide("restore", "run", husk)
        assert (status, f"process {husk} runs here from now on" in said) == (0, True)
        found.goes_on()
        status, said = decide("restore", "drop", husk)
        assert status == ExitCode.REFUSED
        assert "there is nothing to decide" in said or "no custodian waits for it here" in said
        found.tunnel.is_open.set()
        wait_for("the end of the custodian", lambda: not custodians(found) or None, 60)


@pytest.mark.parametrize("worker_lives", [True, False])
def test_a_husk_is_dropped_by_hand(worker_lives: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, fault="source-parked:fail") as found:
        found.await_doubt()
        if not worker_lives:
            os.kill(found.worker, signal.SIGKILL)
            assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
        husk = found.husk
        status, said = decide("restore", "drop", husk)
        assert (status, f"process {husk} is gone here" in said) == (0, True)
        assert found.move.restore.process.wait(60) == ExitCode.IN_DOUBT
        found.tunnel.is_open.set()
        laws.assert_untouched(found.subject)


def test_a_source_waits_no_more_by_hand(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, fault="source-parked:fail") as found:
        found.await_doubt()
        assert found.move.serve.process.wait(60) == ExitCode.SYSTEM
        source = found.subject.pid
        status, said = decide("serve", "list")
        assert (status, f"process {source} runs on here" in said) == (0, True)
        status, said = decide("serve", "source", source)
        assert (status, "nobody waits for the destination any more" in said) == (0, True)
        found.subject.await_progress()
        decide("restore", "drop", found.husk)

        def nobody_waits() -> bool | None:
            # The custodian that was told to leave may still be on its way.
            status, said = decide("serve", "source", source)
            return (status, "no custodian waits for its destination" in said) == (ExitCode.REFUSED, True) or None

        wait_for("the end of its custodian", nobody_waits, 60)


def test_what_was_handed_over_is_not_taken_back_by_hand(program: Path, tmp_path: Path, orphans: None) -> None:
    with doubt(program, tmp_path, strategy="stop-and-copy") as found:
        found.await_doubt()
        source = found.subject.pid
        status, said = decide("serve", "source", source)
        assert (status, "it was handed over" in said) == (ExitCode.REFUSED, True)
        assert "the destination has not said yet that it runs there" in decide("serve", "list")[1]
        found.tunnel.is_open.set()
        found.goes_on()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["source"], "--decide source takes a process id"),
        (["list", "1"], "--decide list takes no process id"),
        (["run", "1"], "invalid choice: 'run'"),
        (["source", str(1 << 22)], "no custodian waits for its destination"),
    ],
)
def test_decisions_that_cannot_be(words: list[str], sentence: str) -> None:
    status, said = decide("serve", *words)
    assert status in (ExitCode.USAGE, ExitCode.REFUSED)
    assert sentence in said


def test_others_may_have_any_name() -> None:
    """Some process of the host has a name that is no UTF-8: what is looked for is found all the same."""
    words = ["sh", "-c", "printf '\\377(\\205) ' > /proc/$$/comm; echo; read line"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        for side in ("serve", "restore"):
            assert decide(side, "list")[0] == 0
        done = started.run(
            [sys.executable, "-m", "live_migration.cli.restore", "--reattach", str(other.pid)],
            env=laws.environment(), cwd=laws.ROOT, timeout=60,
        )
        assert done.returncode == ExitCode.NO_PROCESS, done.stderr
        other.communicate(b"\n")
