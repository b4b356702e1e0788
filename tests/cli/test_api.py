"""`import live_migration`: serve(), restore() and check(), with processes that really move."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import live_migration
from live_migration import Event, ExitCode, MigrationFailed, Report, check, restore, serve
from live_migration.cli import restore_options, serve_options
from live_migration.experiments.machines import wait_for
from tests.support import laws, started

ROOT = Path(__file__).resolve().parents[2]
WATCHING = {"help", "json", "json_fd", "report", "status_fd", "metrics"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> laws.Subject:
    if os.geteuid() != 0:
        pytest.skip("moving a process needs root")
    return laws.start_subject(program, tmp_path / "subject")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        try:
            yield pool
        finally:
            # A command that waits for another one, which a failed test has not started, would wait for ever.
            started.end_everything()


class Told:
    """The events of one call, and the ticket in them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def wait(self, name: str) -> Event:
        """The first event of that name."""
        with self.changed:
            assert self.changed.wait_for(lambda: {name, "failed"} & {*self.names()}, 60), self.events
            assert name in self.names(), self.events
            return self.events[self.names().index(name)]


def offer(pool: ThreadPoolExecutor, subject: laws.Subject) -> tuple[Future[Report], str]:
    """serve() in a thread, and its ticket."""
    told = Told()
    serving = pool.submit(serve, subject.pid, on_event=told)
    return serving, told.wait("listening").details["ticket"]


def test_importing_is_cheap() -> None:
    program = "import sys, live_migration\nprint([n for n in sys.modules if n.startswith('live_migration') or n in L])"
    program = "L = ('msgspec', 'subprocess', 'argparse', 'cffi')\n" + program
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "['live_migration']\n"


def test_what_there_is() -> None:
    assert all(getattr(live_migration, name) for name in live_migration.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        live_migration.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("function", "make_parser", "others"),
    [
        # --check is a function of its own; how things are told is what on_event is for. Where a command was killed,
        # somebody else goes on, by the command line.
        (serve, serve_options.make_parser, WATCHING | {"check", "reattach"}),
        (restore, restore_options.make_parser, WATCHING | {"reattach", "source"}),
    ],
)
def test_every_option_is_a_keyword(
    function: Callable[..., Report], make_parser: Callable[[], object], others: set[str]
) -> None:
    parser = make_parser()
    options = {action.dest: action.default for action in parser._actions}  # type: ignore[attr-defined]
    keywords = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert options.keys() - others == keywords.keys() - {"on_event"}
    # The same defaults, but for what only a terminal's user has, and those that are said in the help alone.
    differing = {name for name in keywords.keys() & options if keywords[name] != options[name]} - {"pid"}
    assert differing <= {"stdio", "strategy", "map_path", "allow_uid", "allow_path", "take_address"}


def test_a_process_is_moved(subject: laws.Subject, pool: ThreadPoolExecutor) -> None:
    assert check(subject.pid) == ()
    subject.await_progress()
    serving, ticket = offer(pool, subject)
    told = Told()
    there = restore(ticket, detach=True, strategy="hybrid", on_event=told)
    here = serving.result(60)
    assert (here.side, there.side) == ("source", "destination")
    assert here.outcome == there.outcome == "complete"
    assert there.strategy == "hybrid"
    assert there.downtime_ms is not None
    names = [name for name in told.names() if name not in ("note", "progress")]
    assert names == ["staged", "frozen", "resumed", "complete"]
    assert told.wait("resumed").pid == there.pid
    assert told.wait("note").details["text"].startswith("lm-restore: ")
    # It runs on, and nobody of ours is there any more.
    subject.await_progress()
    os.kill(there.pid, signal.SIGKILL)


def test_without_detach_its_status_is_waited_for(subject: laws.Subject, pool: ThreadPoolExecutor) -> None:
    serving, ticket = offer(pool, subject)
    told = Told()
    restoring = pool.submit(restore, ticket, on_event=told)
    pid = told.wait("complete").pid
    subject.await_progress()
    assert serving.result(60).outcome == "complete"
    assert not restoring.done()
    os.kill(pid, signal.SIGKILL)
    report = restoring.result(60)
    assert report.exit_status == 128 + signal.SIGKILL
    assert report.outcome == "complete"
    assert told.events[-1].name == "ended"
    assert told.events[-1].details["status"] == 128 + signal.SIGKILL


SPEAKER = """
import time
print("before", flush=True)
while True:
    time.sleep(0.05)
    print("after", flush=True)
"""


def test_its_output_is_no_event(tmp_path: Path, pool: ThreadPoolExecutor, orphans: None) -> None:
    """With stdio="attach" the process writes to where the caller does; what the command tells comes beside that."""
    speaker = subprocess.Popen(
        [sys.executable, "-c", SPEAKER],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert speaker.stdout
    assert speaker.stdout.readline() == b"before\n"
    told = Told()
    serving = pool.submit(serve, speaker.pid, on_event=told)
    ticket = told.wait("listening").details["ticket"]
    caller = (
        "import live_migration, os, sys\n"
        "def on_event(event):\n"
        "    if event.name == 'complete':\n"
        "        os.write(2, str(event.pid).encode() + b'\\n')\n"
        f"report = live_migration.restore({ticket!r}, stdio='attach', on_event=on_event)\n"
        "print(report.exit_status)"
    )
    output = tmp_path / "output"
    with output.open("wb") as file:
        calling = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT, stdout=file, stderr=subprocess.PIPE)
    assert calling.stderr
    with calling.stderr:
        pid = int(calling.stderr.readline())
    serving.result(60)
    speaker.stdout.close()
    before = output.stat().st_size
    wait_for("output", lambda: output.stat().st_size > before + 20 or None, 60)
    os.kill(pid, signal.SIGTERM)
    assert calling.wait(60) == 0
    lines = output.read_text().splitlines()
    assert set(lines[:-1]) == {"after"}
    assert lines[-1] == str(128 + signal.SIGTERM)


def test_errors_are_the_commands_own() -> None:
    with pytest.raises(MigrationFailed) as error:
        serve(4194304)
    assert error.value.code == ExitCode.NO_PROCESS
    assert str(error.value).startswith("reading the process: process 4194304: there is no such process; ")
    with pytest.raises(MigrationFailed, match="its secret has 3 characters") as error:
        restore("lm://127.0.0.1:5/abc")
    assert error.value.code == ExitCode.BAD_TICKET
    with pytest.raises(MigrationFailed, match="argument --compress: '20' is not auto, none or a level") as error:
        serve(1, compress=20)
    assert error.value.code == ExitCode.USAGE
    with pytest.raises(MigrationFailed, match="there is no such process"):
        check(4194304)
    unreached = "lm://127.0.0.1:9/" + "A" * 43
    with pytest.raises(MigrationFailed) as error:
        restore(unreached)
    assert error.value.code == ExitCode.NO_PEER
    assert error.value.report is None


def test_blockers_come_with_the_error(orphans: None) -> None:
    words = [sys.executable, "-c", "import os, time\nos.fork()\ntime.sleep(100)"]
    nothing = subprocess.DEVNULL
    parent = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)
    wait_for("its child", lambda: Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text() or None, 60)
    blockers = check(parent.pid)
    assert any("child" in blocker.cause or "child" in blocker.object for blocker in blockers)
    with pytest.raises(MigrationFailed) as error:
        serve(parent.pid)
    assert error.value.code == ExitCode.REFUSED
    assert error.value.blockers == blockers
    assert str(blockers[0]) in str(error.value)


class Enough(Exception):
    """What a caller's callback may raise."""


def raise_at(name: str) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.name == name:
            raise Enough

    return on_event


def test_an_exception_of_the_caller_ends_the_offer(subject: laws.Subject) -> None:
    with pytest.raises(Enough):
        serve(subject.pid, on_event=raise_at("listening"))
    laws.assert_untouched(subject)


def test_a_caller_that_has_enough_before_the_freeze(subject: laws.Subject, pool: ThreadPoolExecutor) -> None:
    told = Told()
    serving = pool.submit(serve, subject.pid, on_event=told)
    ticket = told.wait("listening").details["ticket"]
    # By itself the first round would take long at this rate.
    with pytest.raises(Enough):
        restore(ticket, strategy="pre-copy", bandwidth_limit=100_000, on_event=raise_at("staged"))
    with pytest.raises(MigrationFailed):
        serving.result(60)
    laws.assert_untouched(subject)


def test_a_caller_that_has_enough_after_the_resume(subject: laws.Subject, pool: ThreadPoolExecutor) -> None:
    """The process is moved, and hears nothing of it: no signal of ours reaches it."""
    serving, ticket = offer(pool, subject)
    with pytest.raises(Enough):
        restore(ticket, on_event=raise_at("resumed"))
    assert serving.result(60).outcome == "complete"
    subject.await_progress()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        subject.await_progress()
