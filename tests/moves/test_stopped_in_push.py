"""SIGTERM to lm-restore while what cannot be paged is being pushed: both commands end in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import live_migration.cli.restore
import live_migration.cli.serve
from live_migration.experiments.machines import wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws

PROGRAM = """
import os, time
memory = os.memfd_create("large")
os.ftruncate(memory, 64 << 20)
for place in range(0, 64 << 20, 4096):
    os.pwrite(memory, os.urandom(64), place)
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


@pytest.fixture
def large(tmp_path: Path, orphans: None) -> Iterator[subprocess.Popen[str]]:
    """A process with a large memfd, which travels before the freeze."""
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True,
        )
    wait_for("the program", lambda: (tmp_path / "said").read_text() or None, 60)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_end_in_order(large: subprocess.Popen[str], tmp_path: Path, number: signal.Signals) -> None:
    ticket, said = tmp_path / "ticket", [tmp_path / "serve.txt", tmp_path / "restore.txt"]
    serve = laws.fork_command(
        live_migration.cli.serve.main, [str(large.pid), "--ticket-file", str(ticket)], said[0]
    )
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    words = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null", "--bandwidth-limit", "2M"]
    restore = laws.fork_command(live_migration.cli.restore.main, words, said[1])
    wait_for("the push", lambda: "prepared at the destination" in said[0].read_text() or None, 60)
    os.kill(restore, number)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (serve, restore)]
    texts = [path.read_text() for path in said]
    print(*texts)
    assert codes == [ExitCode.PEER_FAILED, ExitCode.TERMINATED if number == signal.SIGTERM else ExitCode.INTERRUPTED]
    assert f"lm-serve: the other side failed, waiting: lm-restore: {number.name} came" in texts[0]
    assert "Traceback" not in "".join(texts)
    assert large.poll() is None
