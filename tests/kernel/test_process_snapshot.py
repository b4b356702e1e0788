"""One snapshot of a process: every file of it is read once, and stays what it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.proc import read_proc
from live_migration.kernel.process_snapshot import ProcessSnapshot, parse_stat


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    code = "import os; print(flush=True); input(); os.chdir('/usr'); print(flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_each_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def note(path: str) -> bytes:
        read.append(path)
        return read_proc(path)

    monkeypatch.setattr("live_migration.kernel.process_snapshot.read_proc", note)
    own = ProcessSnapshot(os.getpid())
    assert not read
    for _ in range(2):
        assert own.status["Tgid"] == str(os.getpid())
        # The leader's own status is the process's.
        assert own.thread_status(os.getpid()) is own.status
        assert own.status_text.startswith(b"Name:")
        assert int(own.stat[3]) == os.getppid()
        assert own.read("oom_score_adj")
    folder = f"/proc/{os.getpid()}"
    assert sorted(read) == [f"{folder}/oom_score_adj", f"{folder}/stat", f"{folder}/status"]


def test_a_snapshot_stays_what_it_was(child: subprocess.Popen[str]) -> None:
    before = ProcessSnapshot(child.pid)
    assert before.link("cwd") == b"/"
    assert before.executable == os.path.realpath(sys.executable)
    assert before.name == Path(f"/proc/{child.pid}/comm").read_text().strip()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    child.stdout.readline()
    assert before.link("cwd") == b"/"
    assert ProcessSnapshot(child.pid).link("cwd") == b"/usr"


def test_what_has_ended_is_gone(child: subprocess.Popen[str]) -> None:
    known = ProcessSnapshot(child.pid)
    assert known.status
    child.kill()
    child.communicate()
    assert known.status
    for ask in (lambda: known.stat, lambda: known.link("cwd"), lambda: known.thread_ids, lambda: known.read("limits")):
        with pytest.raises(ProcessGone):
            ask()
    assert ProcessSnapshot(child.pid).name == "gone"


def test_threads() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    own = ProcessSnapshot(os.getpid())
    assert thread.native_id in own.thread_ids
    assert own.thread_status(thread.native_id)["Pid"] == str(thread.native_id)
    over.set()
    thread.join()
    # Process 1 is no thread of this one.
    with pytest.raises(ProcessGone, match="process 1 "):
        own.thread_status(1)
    assert own.in_our_namespace("net")


def test_a_name_may_hold_anything() -> None:
    assert parse_stat(b"7 (a) R (b\xff) S 1 2\n")[:4] == ["7", "a) R (b\udcff", "S", "1"]
