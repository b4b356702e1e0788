"""The husk's custodian: threads of every kind let go by it, what it asks, does and reports, and its own death."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine, wait_for
from live_migration.experiments.machines import start as begin
from live_migration.restorer import custody as custodies
from live_migration.restorer import network
from live_migration.restorer.custody import Decided, Fate
from live_migration.wire import decision
from live_migration.wire.handshake import Side
from live_migration.wire.session import HuskRecord
from tests.kernel.husks import without_preload
from tests.support import laws, programs_help
from tests.support.decided import SESSION, TOKENS, Ends, accept, ends, hear, hear_first, word
from tests.support.programs_list import Program, all_programs
from tests.support.started import begin_move

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
    """The worker dies when COMMIT is there, and the custodian lets every thread go as the worker would have. Another
    worker ends the move."""
    running = programs_help.run(program, tmp_path, machines[0])
    running.wait_ready()
    monkeypatch.setenv("LM_FAULT", "destination-committed:kill")
    more = ["--pid", "namespace", *program.restore]
    move = begin_move(running.process.pid, machines, tmp_path, strategy="stop-and-copy", restore=more)
    try:
        pid = int(move.restore.event("staged")["pid"])
        move.restore.event("complete")
        if program.stopped:
            # Its second thread has only been born when it is stopped: it needs a page of its stack. A thread that a
            # tracer has let go runs in the kernel until it stands in the group-stop again.
            wait_for("the group-stop", lambda: running.state(pid) == "T" or None)
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
    running = begin(machines[0], words, tmp_path, "program", **more)
    wait_for("the sleep", lambda: (folder / "asleep").exists() or None)
    monkeypatch.setenv("LM_FAULT", "destination-committed:kill")
    options = ["--pid", "namespace"]
    move = begin_move(running.process.pid, machines, tmp_path, strategy="stop-and-copy", restore=options)
    move.restore.event("complete")
    assert (folder / "awake").read_text() == "", "they were moved too late"
    wait_for("the end of the sleep", lambda: (folder / "awake").read_text().count("\n") == 6 or None, 60)
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


@pytest.fixture(params=Side, ids=lambda side: f"{side.name.lower()}-listens")
def both(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with ends(request.param) as found:
        yield found


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


def start(page: mmap.mmap, both: Ends, husk: int) -> custodies.Custody:
    """A custodian that watches, for a husk of one thread that is taken for parked."""
    ends_of = custodies.HuskEnds(husk, os.pidfd_open(husk), 1)
    end, changed = both.destination, network.open_network((), -1)
    custody = custodies.start_custody(page, end.roles, end.decision, TOKENS.hashes(), ends_of, changed)
    wait_for("the custodian", lambda: custody.custody.custodian or None)
    custody.custody.pause_address = 1
    return custody


def die_in(state: HuskRecord, both: Ends, husk: int, *, final: bool = True) -> mmap.mmap:
    """The worker of a husk dies in a state."""
    page = custodies.shared_page()
    worker = os.fork()
    if worker == 0:
        try:
            both.source.close()
            custody = start(page, both, husk)
            if final:
                custody.final_came()
            if state is not HuskRecord.UNARMED:
                custody.arm()
            custody.tell(state)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    both.destination.close()
    os.waitpid(worker, 0)
    both.source.decision.settimeout(30)
    return page


@pytest.mark.parametrize(
    ("state", "answer", "report", "fate"),
    [
        (HuskRecord.ARMED, "COMMIT", "RESUMED", Fate.LET_GO),
        (HuskRecord.ARMED, "NO", "DROPPED", Fate.KILLED),
        (HuskRecord.IN_DOUBT, "COMMIT", "RESUMED", Fate.LET_GO),
        (HuskRecord.IN_DOUBT, "NO", "DROPPED", Fate.KILLED),
        (HuskRecord.COMMITTED, "", "RESUMED", Fate.LET_GO),
        (HuskRecord.LET_GO, "", "RESUMED", Fate.OPEN),
        (HuskRecord.DOOMED, "", "DROPPED", Fate.KILLED),
    ],
)
def test_the_worker_s_death(
    state: HuskRecord, answer: str, report: str, fate: Fate, both: Ends, bystander: int
) -> None:
    """The custodian asks if it has to, does what was decided, and reports that until it is acknowledged."""
    page = die_in(state, both, bystander)
    connection = both.source.decision
    if answer:
        # What was said before is not what counts now: the source may have been told otherwise meanwhile.
        connection.sendall(word("NO" if answer == "COMMIT" else "COMMIT"))
        for said in ("UNDECIDED", answer):
            kind, number, _ = hear(connection)
            assert kind == "ASK"
            assert not os.waitpid(bystander, os.WNOHANG)[0]
            connection.sendall(word(said, number))
    assert hear(connection)[0] == report
    assert custodies.outcome(page).fate is fate
    assert bool(os.waitpid(bystander, os.WNOHANG)[0]) is (fate is Fate.KILLED)
    connection.sendall(word("ACKNOWLEDGED"))
    custodian = custodies.outcome(page).custodian
    wait_for("its end", lambda: not laws.process_name(custodian) or None, 60)


def test_the_source_is_asked_on_a_connection_made_anew(both: Ends, bystander: int) -> None:
    """Until then the husk is kept, and the frontend can say so."""
    listens = both.source.roles.listener is not None
    there = both.source.decision.getpeername()
    both.source.decision.shutdown(socket.SHUT_RDWR)
    page = die_in(HuskRecord.ARMED, both, bystander)
    assert custodies.await_outcome(page, 20).fate is Fate.KEPT
    assert not os.waitpid(bystander, os.WNOHANG)[0]
    if listens:
        assert both.source.roles.listener
        while True:
            # Those that were made before this one are given up.
            anew = accept(both.source.roles.listener)
            with contextlib.suppress(OSError):
                kind, number, _ = hear_first(anew)
                anew.sendall(word("NO", number))
                if hear(anew)[0] == "DROPPED":
                    break
            anew.close()
    else:
        anew = socket.create_connection(there, 10)
        anew.sendall(decision.encode_hello(Side.SOURCE, SESSION) + word("UNDECIDED"))
        kind, number, _ = hear(anew)
        assert kind == "ASK"
        anew.sendall(word("NO", number))
        assert hear(anew)[0] == "DROPPED"
    with anew:
        anew.sendall(word("ACKNOWLEDGED"))
        assert custodies.outcome(page).fate is Fate.KILLED


def test_a_husk_that_is_gone_before_ready_is_reported(both: Ends, bystander: int) -> None:
    """It dies with the worker, as its tracer."""
    die_in(HuskRecord.UNARMED, both, bystander)
    os.kill(bystander, signal.SIGKILL)
    assert hear(both.source.decision)[0] == "DROPPED"
    both.source.decision.sendall(word("ACKNOWLEDGED"))


def test_a_source_that_has_left_early_is_not_waited_for(bystander: int) -> None:
    with ends() as both:
        page = die_in(HuskRecord.DOOMED, both, bystander, final=False)
        assert hear(both.source.decision)[0] == "DROPPED"
        both.source.close()
        custodian = custodies.outcome(page).custodian
        wait_for("its end", lambda: not laws.process_name(custodian) or None, 60)


def test_the_end_of_the_husk_ends_the_asking(both: Ends, bystander: int) -> None:
    die_in(HuskRecord.ARMED, both, bystander)
    assert hear(both.source.decision)[0] == "ASK"
    os.kill(bystander, signal.SIGKILL)
    while (kind := hear(both.source.decision)[0]) == "ASK":
        pass
    assert kind == "DROPPED"
    both.source.decision.sendall(word("ACKNOWLEDGED"))


def test_a_dead_custodian_is_noticed_before_ready(both: Ends, bystander: int) -> None:
    page = custodies.shared_page()
    custody = start(page, both, bystander)
    os.kill(custody.custodian, signal.SIGKILL)
    os.waitid(os.P_PID, custody.custodian, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError, match="the custodian has ended"):
        custody.arm()
    assert custodies.outcome(page).record is HuskRecord.UNARMED
    # Another one sees to it that the source hears what has become of the husk.
    os.kill(bystander, signal.SIGKILL)
    custody.end()
    assert hear(both.source.decision)[0] == "DROPPED"
    both.source.decision.sendall(word("ACKNOWLEDGED"))


def test_a_custodian_that_dies_while_the_source_is_waited_for_is_replaced(both: Ends, bystander: int) -> None:
    custody = start(custodies.shared_page(), both, bystander)
    custody.arm()
    first = custody.custodian
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert custody.ask(0.01, 1 << 62) == (Decided.UNDECIDED, 0)
    assert custody.custodian != first
    both.source.decision.sendall(word("NO"))
    assert custody.ask(10, 1 << 62)[0] is Decided.NO
    custody.tell(HuskRecord.DOOMED)
    custody.end()
    assert hear(both.source.decision)[0] == "DROPPED"
    both.source.decision.sendall(word("ACKNOWLEDGED"))
