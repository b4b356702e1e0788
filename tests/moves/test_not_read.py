"""Nobody reads what the commands say, or the frontend of lm-restore is stopped: the move goes on all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import live_migration.cli.restore
import live_migration.cli.serve
from live_migration.experiments import account
from live_migration.experiments.machines import descendants, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.report import Report
from tests.support import laws


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> Iterator[laws.Subject]:
    subject = laws.start_subject(program, tmp_path / "subject")
    yield subject
    subject.process.kill()
    subject.process.wait()


def full_pipe() -> tuple[int, Path]:
    """A pipe with no room, as a path that can be opened for writing, and its reading end."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    while True:
        try:
            os.write(write_end, b"." * 4096)
        except BlockingIOError:
            return read_end, Path(f"/proc/self/fd/{write_end}")


def begin(subject: laws.Subject, name: str, arguments: list[str], output: Path) -> int:
    main = {"serve": live_migration.cli.serve.main, "restore": live_migration.cli.restore.main}[name]
    pid = laws.fork_command(main, [*arguments, "--report", str(subject.folder / f"{name}.json")], output)
    subject.children.add(pid)
    return pid


def read_report(subject: laws.Subject, name: str) -> Report | None:
    """What a command has written, once the move is complete."""
    try:
        report = msgspec.json.decode((subject.folder / f"{name}.json").read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None
    return report if report.outcome == "complete" else None


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("how", [["--json", "-vv"], ["-vv"]])
def test_nobody_reads_what_is_said(subject: laws.Subject, how: list[str]) -> None:
    ticket = subject.folder / "ticket"
    pipes = [full_pipe(), full_pipe()]
    serve = begin(subject, "serve", [str(subject.pid), "--ticket-file", str(ticket), *how], pipes[0][1])
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    words = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null", *how]
    restore = begin(subject, "restore", words, pipes[1][1])
    report = wait_for("the end of the move", lambda: read_report(subject, "restore"), 60)
    assert report.downtime_ms is not None
    # Whoever waited for a reader waited for seconds; much less is the machine's, on which others run.
    assert report.downtime_ms < 5000
    for read_end, write_end in pipes:
        os.close(int(write_end.name))
        os.close(read_end)
    assert (end_of(serve), end_of(restore)) == (ExitCode.OK, ExitCode.OK)
    at_source = read_report(subject, "serve")
    assert at_source is not None
    steps = account.whole(at_source.downtime_us, report.downtime_us, report.downtime_ms * 1000)
    assert account.SOURCE_WAIT in at_source.downtime_us
    assert account.DESTINATION_WAIT in report.downtime_us
    # One side's sending and the other's reading overlap, on one machine above all.
    assert min(us for name, us in steps.items() if name != account.ON_THE_WAY) > 0
    assert abs(steps[account.ON_THE_WAY]) < report.downtime_ms * 1000
    assert sum(steps.values()) == pytest.approx(report.downtime_ms * 1000)


def test_the_frontend_is_stopped(subject: laws.Subject) -> None:
    """lm-restore's first process tells the user and does nothing else: the worker does not notice."""
    ticket = subject.folder / "ticket"
    said = subject.folder / "restore.txt"
    serve = begin(subject, "serve", [str(subject.pid), "--ticket-file", str(ticket)], subject.folder / "serve.txt")
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    words = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null"]
    restore = begin(subject, "restore", words, said)
    wait_for("the worker", lambda: descendants(restore) or None, 60)
    os.kill(restore, signal.SIGSTOP)
    assert end_of(serve) == ExitCode.OK
    assert wait_for("the end of the move", lambda: read_report(subject, "restore"), 60)
    assert "complete" not in said.read_text()
    os.kill(restore, signal.SIGCONT)
    assert end_of(restore) == ExitCode.OK
    assert "every page is at the destination" in said.read_text()
