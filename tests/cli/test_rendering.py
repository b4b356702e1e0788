"""What the commands say: JSON lines, plain lines, a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_migration.cli.rendering import make_events
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import Ticket
from tests.support.reports import report

ROOT = Path(__file__).resolve().parents[2]


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with make_events("lm-serve", json=True) as events:
        events.emit("staged", 12, destination="b.example")
        events.ticket(Ticket("h", 5, b""), "lm-restore x", 12)
        events.checked(12, [Blocker("a", "b", "c")])
        events.progress(1, 2, 3)
        events.result(report())
        events.failed(Refused([Blocker("a", "b", "c")]), 12)
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["event"] for line in lines] == ["staged", "listening", "checked", "failed"]
    assert all(line["pid"] == 12 and abs(line["time"] - time.time()) < 60 for line in lines)
    assert lines[0]["destination"] == "b.example"
    assert lines[1]["ticket"] == "lm://h:5/"
    assert lines[2]["blockers"] == lines[3]["blockers"] == [{"object": "a", "cause": "b", "remedy": "c"}]
    assert lines[3]["code"] == ExitCode.REFUSED
    assert captured.err.startswith("resumed in 4.1 ms; 412 faults")


def test_a_program_is_told_everything(capsys: pytest.CaptureFixture[str]) -> None:
    read_end, write_end = os.pipe()
    with make_events("lm-serve", json=False, json_fd=write_end) as events:
        events.emit("staged", 12)
        events.progress(1, 2, 3)
        events.note("seen with -v")
        events.result(report())
    os.close(write_end)
    with open(read_end, encoding="utf-8") as told:
        lines = [json.loads(line) for line in told]
    assert [line["event"] for line in lines] == ["staged", "progress", "note"]
    assert (lines[1]["pages"], lines[1]["total"], lines[1]["faults"]) == (1, 2, 3)
    assert lines[2]["text"].startswith("resumed in 4.1 ms; 412 faults")
    assert capsys.readouterr() == ("", "")


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with make_events("lm-serve", json=False, verbose=1) as events:
        events.ticket(Ticket("h", 5, b""), "lm-restore x", 12)
        events.emit("staged", 12)
        events.note("seen with -v")
        events.note("seen with -vv", 2)
        assert events.checked(12, []) == ExitCode.OK
        assert events.checked(12, [Blocker("a", "b", "c")]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert captured.out == "lm://h:5/\nrun on the other side: lm-restore x\n12 can be moved\na: b; c\n"
    assert captured.err == (
        "everything is prepared at the destination, process 12 still runs at the source\nlm-serve: seen with -v\n"
    )


def test_a_process_that_is_still_at_the_source_is_named_by_its_id_there(capsys: pytest.CaptureFixture[str]) -> None:
    with make_events("lm-restore", json=False) as events:
        events.emit("staged", 7055, source_pid=12)
        events.emit("frozen", 7055, source_pid=12)
        events.emit("resumed", 7055)
    assert capsys.readouterr().err == (
        "everything is prepared at the destination, process 12 still runs at the source\nprocess 12 is frozen\n"
        "process 7055 runs at the destination\n"
    )


def test_a_reader_that_has_gone_ends_nothing() -> None:
    program = (
        "from live_migration.cli.rendering import make_events\nevents = make_events('x', json=True)\n"
        "input()\nfor _ in range(9):\n    events.emit('staged', 1)\nimport os\nos._exit(7)"
    )
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin
    assert child.stdout
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    assert child.wait(60) == 7


def test_a_terminal_gets_a_bar() -> None:
    program = (
        "from live_migration.cli.rendering import make_events\n"
        "with make_events('x', json=False) as events:\n"
        "    events.emit('resumed', 12)\n"
        "    events.progress(256, 512, 3)\n"
        "    events.note('between', 0)\n"
        "    events.progress(512, 512, 4)\n"
        "print('result')"
    )
    parent, child_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=child_end, stdout=subprocess.PIPE, env=environment
    )
    os.close(child_end)
    output, _ = child.communicate(timeout=60)
    seen = b""
    try:
        while piece := os.read(parent, 65536):
            seen += piece
    except OSError:
        pass  # the other end of a pty that is closed is EIO
    os.close(parent)
    assert child.returncode == 0
    assert output == b"result\n"
    assert b"process 12 runs at the destination" in seen
    assert b"2.0 MiB of 2.0 MiB, 4 faults" in seen
    assert b"x: between" in seen
