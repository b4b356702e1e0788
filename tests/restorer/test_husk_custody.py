"""The husk's custodian: threads of every kind let go by it, the word of the source that it reads, and its own death."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.experiments.machines import Machine, descendants, start, wait_for
from live_migration.restorer import custody as custodies
from live_migration.restorer.custody import Fate
from live_migration.wire import messages
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.session import HuskRecord
from tests.kernel.husks import without_preload
from tests.support import programs_help
from tests.support.programs_list import Program, all_programs
from tests.support.started import begin_move

COMMIT, NO, DOUBT = 0, 1, 2
# Programs of one thread that need no page which was never touched, for which nobody answers after the worker's death.
NAMES = ("eventfd", "signal_in_handler", "signal_stop")
PROGRAMS = [program for program in all_programs() if program.name in NAMES]
ASLEEP = Path(__file__).resolve().parent / "asleep_program.c"
SLEEP_MS = 8000


@pytest.fixture(scope="module")
def built() -> None:
    programs_help.build()


@pytest.mark.program
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_let_go_by_the_custodian(
    program: Program,
    built: None,
    tmp_path: Path,
    machines: tuple[Machine, Machine],
    orphans: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker dies when COMMIT is there, and the custodian lets every thread go as the worker would have."""
    running = programs_help.run(program, tmp_path, machines[0])
    running.wait_ready()
    monkeypatch.setenv("LM_FAULT", "destination-committed:kill")
    more = ["--pid", "namespace", *program.restore]
    move = begin_move(running.process.pid, machines, tmp_path, strategy="stop-and-copy", restore=more)
    try:
        pid = int(move.restore.event("staged")["pid"])
        assert move.restore.process.wait(30) == ExitCode.LOST_AFTER
        if program.stopped:
            # Its second thread has only been born when it is stopped: it needs a page of its stack.
            assert running.state(pid) == "T", "it is no longer stopped"
            os.kill(pid, signal.SIGCONT)
            wait_for("its going on", lambda: running.state(pid) != "T" or None)
            return
        running.say_moved()
        assert running.verdict() == "passed"
    except BaseException:
        print(move.said())
        raise


def test_calls_that_take_a_time_end_when_they_should(
    tmp_path: Path, machines: tuple[Machine, Machine], orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State in the kernel, from which an interrupted call goes on, survives the pause in which a thread was parked."""
    program = tmp_path / "asleep"
    words = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", str(ASLEEP), "-o", str(program)]
    subprocess.run(words, check=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    words, more = [str(program), str(folder)], {"start_new_session": True, "env": without_preload()}
    running = start(machines[0], words, tmp_path, "program", **more)
    wait_for("the sleep", lambda: (folder / "asleep").exists() or None)
    monkeypatch.setenv("LM_FAULT", "destination-committed:kill")
    options = ["--pid", "namespace"]
    move = begin_move(running.process.pid, machines, tmp_path, strategy="stop-and-copy", restore=options)
    assert move.restore.process.wait(30) == ExitCode.LOST_AFTER, move.said()
    assert (folder / "awake").read_text() == "", "they were moved too late"
    wait_for("the end of the sleep", lambda: (folder / "awake").read_text().count("\n") == 6 or None, 20)
    lines = [line.split() for line in (folder / "awake").read_text().splitlines()]
    timeout = f"-1 {errno.ETIMEDOUT}"
    assert {line[0]: " ".join(line[1:3]) for line in lines} == {
        "n": "0 0",
        "c": "0 0",
        "p": "0 0",
        "f": timeout,
        "e": "0 0",
        "r": "1 0",
    }
    assert all(SLEEP_MS - 50 < int(line[3]) < SLEEP_MS + 2000 for line in lines), lines


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection: the source's and the destination's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = socket.create_connection(server.getsockname())
        destination, _ = server.accept()
    with source, destination:
        yield source, destination


@pytest.fixture
def bystander(orphans: None) -> int:
    """A process that only waits."""
    pid = os.fork()
    if pid == 0:
        # It must not hold the connections that the tests break.
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            signal.pause()
        finally:
            os._exit(0)
    return pid


def reset(source: socket.socket) -> None:
    """Break the connection without a FIN (socket(7), SO_LINGER)."""
    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    source.close()


def finish(source: socket.socket) -> None:
    """The orderly end."""
    source.shutdown(socket.SHUT_WR)


ABORT = messages.encode(messages.Abort(step="a", object="b", cause="c" * 5000, remedy="d"))
REFUSAL = messages.encode(messages.Blockers(found=[Blocker("a", "b", "c")]))
GO = messages.encode(messages.Commit(frozen_ns=1 << 40, round_trip_ns=1 << 20))
PING = messages.encode(messages.Ping(number=1 << 40))
PACKED = messages.encode(messages.Commit(frozen_ns=0, round_trip_ns=0), compress=True)
RESUMED = messages.encode(messages.Resumed(pid=1, resume_ns=1))


@pytest.mark.parametrize(
    ("sent", "then", "verdict"),
    [
        (GO, None, COMMIT),
        (PING + PING + GO, None, COMMIT),
        (GO + ABORT, finish, COMMIT),
        (ABORT, None, NO),
        (REFUSAL, None, NO),
        (ABORT, finish, NO),
        (b"", finish, DOUBT),
        (PING, finish, DOUBT),
        (b"", reset, DOUBT),
        (GO[:7], finish, DOUBT),
        (GO[:20], finish, DOUBT),
        (GO[:20], reset, DOUBT),
        (RESUMED, None, DOUBT),
        (GO[:8] + b"\2" + GO[9:], None, DOUBT),
    ],
)
def test_the_source_s_word(
    sent: bytes,
    then: Callable[[socket.socket], None] | None,
    verdict: int,
    connection: tuple[socket.socket, socket.socket],
    bystander: int,
) -> None:
    source, destination = connection
    for place in range(len(sent)):
        source.send(sent[place : place + 1])
    if then:
        then(source)
    assert lib.lm_verdict_number(destination.fileno(), os.pidfd_open(bystander)) == verdict


def test_a_reset_that_the_worker_has_heard_of_leaves_it_in_doubt(
    connection: tuple[socket.socket, socket.socket], bystander: int
) -> None:
    source, destination = connection
    reset(source)
    with pytest.raises(ConnectionLost, match="connection reset by peer"):
        ControlChannel(destination).look_ahead()
    assert destination.recv(1) == b"", "the error is told once"
    assert lib.lm_verdict_number(destination.fileno(), os.pidfd_open(bystander)) == DOUBT


def test_the_end_of_the_husk_ends_the_waiting(connection: tuple[socket.socket, socket.socket], bystander: int) -> None:
    os.kill(bystander, signal.SIGKILL)
    assert lib.lm_verdict_number(connection[1].fileno(), os.pidfd_open(bystander)) == NO


def test_looking_ahead_takes_nothing(connection: tuple[socket.socket, socket.socket]) -> None:
    source, destination = connection
    channel = ControlChannel(destination)
    source.sendall(GO + REFUSAL + ABORT)
    for _ in range(2):
        assert isinstance(channel.look_ahead(), messages.Commit)
    channel.skip()
    assert isinstance(channel.look_ahead(), messages.Blockers)
    assert isinstance(channel.receive(1), messages.Blockers)
    assert channel.look_ahead() is None, "it is too long"
    assert isinstance(channel.receive(1), messages.Abort)
    source.sendall(GO[:20])
    finish(source)
    assert channel.look_ahead() is None
    with pytest.raises(ConnectionLost, match="it was closed in the middle of a message"):
        channel.receive(1)


def test_looking_ahead_at_an_orderly_end(connection: tuple[socket.socket, socket.socket]) -> None:
    source, destination = connection
    finish(source)
    with pytest.raises(ConnectionLost, match="it was closed;"):
        ControlChannel(destination).look_ahead()


READY = messages.encode(messages.Ready())


def die_in(
    state: HuskRecord,
    connection: tuple[socket.socket, socket.socket],
    husk: int,
    ready: bytes,
    then: Callable[[socket.socket], None] = lambda source: None,
) -> custodies.Outcome:
    """What becomes of a husk whose worker has sent so much of READY and dies in a state; the source does `then`."""
    source, destination = connection
    page = custodies.shared_page()
    pidfd = os.pidfd_open(husk)
    worker = os.fork()
    if worker == 0:
        try:
            source.close()
            custody = custodies.start_custody(page, destination.fileno(), husk, pidfd, 1)
            while custody.custody.custodian == 0:
                time.sleep(0.001)
            custody.custody.pause_address = 1
            if state is not HuskRecord.UNARMED:
                custody.arm(READY)
            destination.sendall(ready)
            custody.tell(state)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    destination.close()
    os.waitpid(worker, 0)
    os.close(pidfd)
    then(source)
    return custodies.await_outcome(page, 1.0)


@pytest.mark.parametrize(
    ("state", "ready", "fate"),
    [
        (HuskRecord.UNARMED, b"", Fate.OPEN),
        (HuskRecord.ARMED, b"", Fate.KILLED),
        (HuskRecord.ARMED, READY[:-1], Fate.KILLED),
        (HuskRecord.ARMED, READY, Fate.OPEN),
        (HuskRecord.COMMITTED, READY, Fate.LET_GO),
        (HuskRecord.LET_GO, READY, Fate.OPEN),
        (HuskRecord.DOOMED, READY, Fate.KILLED),
        (HuskRecord.IN_DOUBT, READY, Fate.KEPT),
    ],
)
def test_the_worker_s_death(
    state: HuskRecord, ready: bytes, fate: Fate, connection: tuple[socket.socket, socket.socket], bystander: int
) -> None:
    assert die_in(state, connection, bystander, ready).fate is fate
    ended = os.waitpid(bystander, os.WNOHANG)[0]
    assert bool(ended) is (fate is Fate.KILLED)


def refuse(source: socket.socket) -> None:
    """Say no, and hang up."""
    source.sendall(ABORT)
    # Whoever has heard it may have closed the connection by now.
    with contextlib.suppress(OSError):
        finish(source)


@pytest.mark.parametrize(("act", "fate"), [(refuse, Fate.KILLED), (finish, Fate.KEPT), (reset, Fate.KEPT)])
def test_the_source_s_word_after_the_worker_s_death(
    act: Callable[[socket.socket], None],
    fate: Fate,
    connection: tuple[socket.socket, socket.socket],
    bystander: int,
) -> None:
    assert die_in(HuskRecord.ARMED, connection, bystander, READY, act).fate is fate


def test_a_dead_custodian_is_noticed_before_ready(
    connection: tuple[socket.socket, socket.socket], bystander: int
) -> None:
    page = custodies.shared_page()
    custody = custodies.start_custody(page, connection[1].fileno(), bystander, os.pidfd_open(bystander), 1)
    custody.custody.pause_address = 1
    while custodies.outcome(page).custodian == 0:
        time.sleep(0.001)
    os.kill(custody.custodian, signal.SIGKILL)
    os.waitid(os.P_PID, custody.custodian, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError, match="the custodian has ended"):
        custody.arm(READY)
    assert custodies.outcome(page).record is HuskRecord.UNARMED
    custody.end()


def test_the_custodian_ends_when_it_is_let_go(connection: tuple[socket.socket, socket.socket], bystander: int) -> None:
    page = custodies.shared_page()
    custody = custodies.start_custody(page, connection[1].fileno(), bystander, os.pidfd_open(bystander), 1)
    custody.end()
    assert custody.custodian not in descendants(os.getpid())
