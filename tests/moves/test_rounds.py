"""Rounds of whole commands: what they leave in the process, what ends them, and what they save."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_migration.experiments.machines import Move, two_machines, wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws
from tests.support.started import begin_move

# 24 MiB that rest, a counter that runs; SIGUSR1 forks, SIGUSR2 executes another program, SIGHUP writes without a pause,
# SIGIO maps a file that is deleted then, SIGALRM opens one.
PROGRAM = """
import mmap, os, signal, sys, time
memory = bytearray(os.urandom(1 << 20) * 24)
wild = False
def fork(*_):
    if not os.fork():
        time.sleep(60)
def write(*_):
    global wild
    wild = True
def open_late(*_):
    global late
    late = open(sys.argv[1] + ".late")
def map_deleted(*_):
    global deleted
    path = sys.argv[1] + ".deleted"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(file, 8192)
    deleted = mmap.mmap(file, 8192)
    os.unlink(path)
    os.close(file)
signal.signal(signal.SIGUSR1, fork)
signal.signal(signal.SIGUSR2, lambda *_: os.execv("/bin/sleep", ["sleep", "60"]))
signal.signal(signal.SIGHUP, write)
signal.signal(signal.SIGIO, map_deleted)
signal.signal(signal.SIGALRM, open_late)
open(sys.argv[1], "w").close()
for turn in range(1 << 60):
    if wild:
        for place in range(turn % 7, len(memory), 4096):
            memory[place] = turn & 255
    else:
        memory[turn % 4096] = turn & 255
        time.sleep(0.001)
"""
STRATEGIES = ("hybrid", "pre-copy")


@pytest.fixture
def process(tmp_path: Path, orphans: None) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "ready")]
    child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null, start_new_session=True)
    wait_for("the program", lambda: (tmp_path / "ready").exists() or None, 60)
    wait_for("its file closed", lambda: len(os.listdir(f"/proc/{child.pid}/fd")) == 3 or None, 60)
    return child


def begin(process: subprocess.Popen[bytes], tmp_path: Path, *restore: str, rate: str = "4M") -> Move:
    """Start a move whose first round takes some seconds, and wait until it is under way."""
    subject = laws.Subject(process, tmp_path, laws.picture(process.pid))
    report = ["--report", str(tmp_path / "restore.json")]
    move = laws.begin(subject, serve=["--bandwidth-limit", rate, "-v"], restore=[*restore, *report])
    move.serve.event("staged")
    wait_for("tracking", lambda: is_tracked(process.pid) or None, 60)
    return move


def is_tracked(pid: int) -> bool:
    """Whether a userfaultfd tells of the writes of any mapping."""
    with open(f"/proc/{pid}/smaps") as smaps:
        return any(" uw" in line for line in smaps if line.startswith("VmFlags"))


def assert_untracked(process: subprocess.Popen[bytes], before: laws.Picture) -> None:
    """The process runs on, and nothing of the tracking is left."""
    wait_for("the end of the tracking", lambda: not is_tracked(process.pid) or None, 60)
    assert process.poll() is None
    now = laws.picture(process.pid)
    assert now.descriptors == before.descriptors
    assert now.threads == before.threads


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("side", ["serve", "restore"])
def test_a_death_in_a_round(strategy: str, side: str, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = laws.picture(process.pid)
    move = begin(process, tmp_path, f"--{strategy}")
    victim = move.serve if side == "serve" else move.restore
    os.kill(victim.process.pid, signal.SIGKILL)
    other = move.restore if side == "serve" else move.serve
    # A worker whose frontend has died lives long enough to say so.
    assert other.process.wait(60) in (ExitCode.LOST_BEFORE, ExitCode.PEER_FAILED), move.said()
    assert_untracked(process, before)


def test_a_link_cut_in_a_round(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = laws.picture(process.pid)
    with two_machines() as machines:
        move = begin_move(process.pid, machines, tmp_path, strategy="pre-copy", serve=["--bandwidth-limit", "4M"])
        wait_for("tracking", lambda: is_tracked(process.pid) or None, 60)
        machines[0].ip("link", "set", machines[0].link, "down")
        assert move.serve.process.wait(90) == ExitCode.LOST_BEFORE, move.said()
        assert move.restore.process.wait(90) == ExitCode.LOST_BEFORE, move.said()
    assert re.search(r"^lm-serve: .*runs on here", move.serve.said(), re.MULTILINE), move.said()
    assert re.search(r"^lm-restore: .*the process runs on at the source", move.restore.said(), re.MULTILINE)
    assert_untracked(process, before)


def test_sigterm_in_a_round(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    before = laws.picture(process.pid)
    move = begin(process, tmp_path, "--pre-copy")
    move.serve.process.send_signal(signal.SIGTERM)
    assert move.serve.process.wait(60) == ExitCode.TERMINATED, move.said()
    assert_untracked(process, before)


def test_a_fork_in_a_round_is_refused_by_name(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--hybrid", rate="16M")
    os.kill(process.pid, signal.SIGUSR1)
    assert move.serve.process.wait(60) == ExitCode.REFUSED, move.said()
    assert "child" in move.said()
    wait_for("the end of the tracking", lambda: not is_tracked(process.pid) or None, 60)
    assert process.poll() is None


def test_a_mapping_in_a_round_that_cannot_be_moved_is_refused_by_name(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    move = begin(process, tmp_path, "--pre-copy", rate="16M")
    os.kill(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGIO)
    assert move.serve.process.wait(60) == ExitCode.REFUSED, move.said()
    assert "maps a file that has been deleted" in move.serve.said()
    assert "frozen" not in [event["event"] for event in move.serve.events()], "refused before the freeze"
    wait_for("the end of the tracking", lambda: not is_tracked(process.pid) or None, 60)
    assert process.poll() is None


@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_is_opened_in_a_round_is_compared(
    same: bool, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    there, here = tmp_path / "ready.late", tmp_path / "late_here"
    there.write_text("late")
    shutil.copy2(there, here)
    if not same:
        os.utime(here, (1, 1))
    move = begin(process, tmp_path, "--pre-copy", "--map-path", f"{there}={here}", rate="16M")
    os.kill(process.pid, signal.SIGALRM)
    if same:
        move.complete(60)
        return
    assert move.restore.process.wait(60) == ExitCode.REFUSED, move.said()
    assert "it was modified at another time than the source's" in move.restore.said()
    assert process.poll() is None


def test_what_is_written_to_its_files_of_proc_in_a_round_counts(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    wanted = {"oom_score_adj": "123", "coredump_filter": "00000017"}
    move = begin(process, tmp_path, "--pre-copy", rate="16M")
    for name, text in wanted.items():
        Path(f"/proc/{process.pid}/{name}").write_text(f"0x{text}" if name == "coredump_filter" else text)
    pid = move.resumed(60)
    assert {name: Path(f"/proc/{pid}/{name}").read_text().strip() for name in wanted} == wanted


def test_an_exec_in_a_round(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--hybrid")
    os.kill(process.pid, signal.SIGUSR2)
    assert move.serve.process.wait(60) == ExitCode.SYSTEM, move.said()
    assert "it has executed another program; it runs on here; start again" in move.said()
    assert process.poll() is None


def test_an_end_in_a_round(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--pre-copy")
    process.kill()
    process.wait()
    assert move.serve.process.wait(60) == ExitCode.NO_PROCESS, move.said()
    assert "it has ended; nothing is left to move" in move.said()


def test_writes_that_do_not_converge(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """The rule ends the rounds, and the process resumes before its memory is complete."""
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(0.2)
    move = begin(process, tmp_path, "--pre-copy", rate="16M")
    move.complete(120)
    report = move.restore.report()
    assert report["strategy"] == "hybrid", move.said()
    assert "the process writes as fast as the link sends" in move.said()
    assert "the process resumes at once" in move.said()
    assert 3 <= len(report["rounds"]) <= 10


def test_writes_that_do_not_converge_end_it_where_that_is_asked_for(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    before = laws.picture(process.pid)
    os.kill(process.pid, signal.SIGHUP)
    move = begin(process, tmp_path, "--pre-copy", "--on-no-convergence", "abort", rate="16M")
    assert move.serve.process.wait(90) == ExitCode.TIMEOUT, move.said()
    assert move.restore.process.wait(60) == ExitCode.TIMEOUT, move.said()
    assert_untracked(process, before)


def test_writes_that_do_not_converge_are_frozen_where_that_is_asked_for(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.kill(process.pid, signal.SIGHUP)
    move = begin(process, tmp_path, "--pre-copy", "--on-no-convergence", "freeze", rate="16M")
    move.complete(120)
    report = move.restore.report()
    assert (report["strategy"], report["faults"]["count"]) == ("pre-copy", 0), move.said()
    assert "the process is frozen all the same" in move.said()


def test_the_destination_may_limit_the_rounds_too(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--pre-copy", "--bandwidth-limit", "8M", rate="1G")
    move.complete(60)
    first = move.restore.report()["rounds"][0]
    assert first["bytes"] > 16 << 20
    assert first["rate"] < 12 << 20


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_stays_clean_travels_once(strategy: str, process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, f"--{strategy}", rate="32M")
    move.complete(60)
    report = move.restore.report()
    pages = report["pages"]
    assert (report["strategy"], report["tracking"]) == (strategy, "userfaultfd")
    assert pages["total"] > 6000
    assert pages["pushed"] > 6000
    # The counter's page, its thread's stack, the interpreter's own.
    assert pages["resent"] < 300, report
    assert report["rounds"][0]["pages"] > 6000


def test_a_strategy_chosen_by_measuring(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--strategy", "auto", rate="16M")
    move.complete(60)
    assert move.restore.report()["strategy"] == "pre-copy", move.said()
    assert "lm-serve: pre-copy: " in move.said()
    assert "rounds converge, and nothing is missing afterwards" in move.said()


def test_a_round_has_an_end(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    move = begin(process, tmp_path, "--hybrid", "--round-timeout", "500ms", "--max-rounds", "2", rate="8M")
    move.complete(60)
    rounds = move.restore.report()["rounds"]
    assert len(rounds) == 2
    assert rounds[0]["pages"] < 4000, rounds
