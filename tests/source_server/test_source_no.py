"""The source's decision: made once, carried out and told, by the custodian where lm-serve dies before it has."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.source_server.serve  # here, so that a fork has it
from live_migration._lm import ffi, lib
from live_migration.experiments.machines import wait_for
from live_migration.kernel.injection.syscall_numbers import SYS_sendto
from live_migration.process.descriptors.held import DESCRIPTOR, Held, Row
from live_migration.source_server import custody as custodies
from live_migration.source_server import handover
from live_migration.source_server.custody import Custody
from live_migration.wire import decision
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import injected
from live_migration.wire.handshake import Side
from live_migration.wire.session import SourceRecord
from tests.support import laws
from tests.support.decided import SESSION, Ends, accept, ends, hear, hear_first, word

NOTHING_WRITTEN = lib.LM_PARK_UNDECIDED


@pytest.fixture(params=Side, ids=lambda side: f"{side.name.lower()}-listens")
def both(request: pytest.FixtureRequest, orphans: None) -> Iterator[Ends]:
    with ends(request.param) as found:
        yield found


@pytest.fixture
def waiting(orphans: None) -> tuple[int, mmap.mmap, int]:
    """A process whose thread waits for the word: its id, the memory, and the address."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            signal.pause()
        finally:
            os._exit(0)
    return pid, memory, int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


Deed = Callable[[Custody, tuple[int, int]], None]


def before_a_freeze(custody: Custody, waiting: tuple[int, int]) -> None:
    """The destination cannot wait for anything."""


def freezing(custody: Custody, waiting: tuple[int, int]) -> None:
    custody.at_stake()


def parked(custody: Custody, waiting: tuple[int, int]) -> None:
    freezing(custody, waiting)
    custody.parked(waiting[1])


def decided(custody: Custody, waiting: tuple[int, int]) -> None:
    parked(custody, waiting)
    assert custody.decide(SourceRecord.COMMIT)


def said(custody: Custody, waiting: tuple[int, int]) -> None:
    decided(custody, waiting)
    custody.say()


def settled(custody: Custody, waiting: tuple[int, int]) -> None:
    said(custody, waiting)
    custody.settled()


def refused(custody: Custody, waiting: tuple[int, int]) -> None:
    parked(custody, waiting)
    assert custody.decide(SourceRecord.NO)


def thawed(custody: Custody, waiting: tuple[int, int]) -> None:
    refused(custody, waiting)
    custody.unparked()


def no_said(custody: Custody, waiting: tuple[int, int]) -> None:
    thawed(custody, waiting)
    custody.say()


def die_after(deed: Deed, both: Ends, waiting: tuple[int, int], held: Held | None = None) -> int:
    """lm-serve dies after a deed; the custodian's process id."""
    owner, (told, telling) = os.getpid(), os.pipe()
    serve = os.fork()
    if serve == 0:
        try:
            both.destination.close()
            custody = custodies.start_custody(both.source.roles, both.source.decision, waiting[0])
            os.write(telling, struct.pack("i", custody.custodian))
            if held is not None:
                custody.prepare(owner, [held])
                custody.hold([])
            deed(custody, waiting)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    both.source.close()
    os.waitpid(serve, 0)
    os.close(telling)
    (custodian,) = struct.unpack("i", os.read(told, 4))
    os.close(told)
    return int(custodian)


def await_end(custodian: int) -> None:
    """The custodian leaves."""
    wait_for("its end", lambda: laws.process_name(custodian) == "" or None, 60)


@pytest.mark.parametrize(
    ("deed", "told", "written"),
    [
        (before_a_freeze, "", NOTHING_WRITTEN),
        (freezing, "NO", NOTHING_WRITTEN),
        (parked, "NO", lib.LM_PARK_GO_HOME),
        (decided, "COMMIT", lib.LM_PARK_STAY),
        (said, "COMMIT", lib.LM_PARK_STAY),
        (settled, "COMMIT", NOTHING_WRITTEN),
        (refused, "NO", lib.LM_PARK_GO_HOME),
        (thawed, "NO", NOTHING_WRITTEN),
        (no_said, "NO", NOTHING_WRITTEN),
    ],
)
def test_what_the_custodian_says_and_writes(
    deed: Deed, told: str, written: int, both: Ends, waiting: tuple[int, mmap.mmap, int]
) -> None:
    """It says so until the destination has reported what became of its copy, and no longer."""
    pid, memory, address = waiting
    custodian = die_after(deed, both, (pid, address))
    connection = both.destination.decision
    connection.settimeout(60)
    assert hear(connection)[0] == told
    if told:
        connection.sendall(word("RESUMED" if told == "COMMIT" else "DROPPED"))
        while (heard := hear(connection)[0]) == told:
            pass
        assert heard == "ACKNOWLEDGED"
    await_end(custodian)
    assert struct.unpack_from("I", memory)[0] == written


@pytest.mark.parametrize(("deed", "told"), [(parked, "NO"), (decided, "COMMIT")])
def test_it_is_told_on_a_connection_made_anew(
    deed: Deed, told: str, both: Ends, waiting: tuple[int, mmap.mmap, int]
) -> None:
    """By whoever connected first."""
    pid, _, address = waiting
    source_listens = both.source.roles.listener is not None
    source = both.destination.decision.getpeername()
    both.destination.decision.shutdown(socket.SHUT_RDWR)
    custodian = die_after(deed, both, (pid, address))
    for answer in ("", "DROPPED"):
        if source_listens:
            anew = socket.create_connection(source, 10)
            hello = decision.encode_hello(Side.DESTINATION, SESSION)
            anew.sendall(hello + word("ASK", number=7))
            while (found := hear(anew))[1] != 7:
                assert found[0] == told
            assert found[0] == told
        else:
            assert both.destination.roles.listener
            anew = accept(both.destination.roles.listener)
            assert hear_first(anew)[0] == told
        with anew:
            if answer:
                anew.sendall(word(answer))
                while (heard := hear(anew)[0]) == told:
                    pass
                assert heard == "ACKNOWLEDGED"
    await_end(custodian)


def test_what_is_asked_before_it_is_decided(both: Ends) -> None:
    custody = custodies.start_custody(both.source.roles, both.source.decision, os.getpid())
    custody.at_stake()
    connection = both.destination.decision
    connection.settimeout(60)
    connection.sendall(word("ASK", number=1))
    assert hear(connection)[:2] == ("UNDECIDED", 1)
    assert custody.decide(SourceRecord.COMMIT)
    assert not custody.decide(SourceRecord.NO)
    connection.sendall(word("ASK", number=2))
    while (heard := hear(connection))[1] == 0:
        assert heard[0] == "COMMIT"
    assert heard[:2] == ("COMMIT", 2)
    connection.sendall(word("RESUMED"))
    custody.end()
    assert not custody.lives()


def test_a_freeze_beyond_its_deadline_is_decided_against(both: Ends) -> None:
    """And whoever was stopped for so long cannot decide otherwise any more."""
    ours, theirs = socket.socketpair()
    serve = os.fork()
    if serve == 0:
        try:
            custody = custodies.start_custody(both.source.roles, both.source.decision, os.getpid())
            custody.at_stake()
            custody.state.deadline_ns = time.monotonic_ns()
            ours.close()
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(serve, 0)[1]) == -signal.SIGKILL
    both.source.close()
    assert hear(both.destination.decision)[0] == "NO"
    both.destination.decision.sendall(word("DROPPED"))
    ours.close()


def test_a_custodian_that_is_gone_is_replaced(both: Ends, waiting: tuple[int, mmap.mmap, int]) -> None:
    custody = custodies.start_custody(both.source.roles, both.source.decision, waiting[0])
    first = custody.custodian
    custody.ensure()
    assert custody.custodian == first
    os.kill(first, signal.SIGKILL)
    wait_for("its end", lambda: not custody.lives() or None, 60)
    custody.ensure()
    assert custody.lives()
    custody.at_stake()
    assert custody.decide(SourceRecord.COMMIT)
    os.kill(custody.custodian, signal.SIGKILL)
    wait_for("its end", lambda: not custody.lives() or None, 60)
    custody.end()
    assert hear(both.destination.decision)[0] == "COMMIT"
    both.destination.decision.sendall(word("RESUMED"))
    await_end(custody.custodian)


def test_a_custodian_has_nothing_of_lm_serve_s_but_what_is_named(
    both: Ends, waiting: tuple[int, mmap.mmap, int]
) -> None:
    """Neither its memory nor its descriptors: what it holds open does not close when lm-serve ends."""
    leaking = os.dup(both.source.decision.fileno())
    os.set_inheritable(leaking, True)
    custody = custodies.start_custody(both.source.roles, both.source.decision, waiting[0])
    custodian = Path(f"/proc/{custody.custodian}")
    try:
        wait_for("its name", lambda: b": carries out" in (custodian / "cmdline").read_bytes() or None, 60)
        named = [custody.memory.descriptor, custody.line.connection, custody.listener, custody.command[1].fileno()]
        named += [custody.state.held_file, *custody.network.shared]
        # And its end of the lifeline, which is closed here.
        wait_for("few", lambda: len(os.listdir(custodian / "fd")) == len({*named} - {-1}) + 1 or None, 60)
        assert {*named} - {-1} < {int(number) for number in os.listdir(custodian / "fd")}
        status = (custodian / "status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 8 << 10, status
    finally:
        os.close(leaking)
        custody.end()


def carried_out(custody: Custody, waiting: tuple[int, int]) -> None:
    decided(custody, waiting)
    custody.carry_out()


def undone(custody: Custody, waiting: tuple[int, int]) -> None:
    refused(custody, waiting)
    custody.undo()


@pytest.mark.parametrize(
    ("deed", "done"),
    [
        (before_a_freeze, b"undo"),
        (freezing, b"undo"),
        (parked, b"undo"),
        (refused, b"undo"),
        (undone, b"undo"),
        (decided, b"commit"),
        (settled, b"commit"),
        (carried_out, b"commit"),
    ],
)
def test_what_is_done_to_descriptors(
    deed: Deed, done: bytes, waiting: tuple[int, mmap.mmap, int], orphans: None
) -> None:
    """lm-serve dies after a deed, and has done what is held or not; it is done once, and it is the right one."""
    pid, _, address = waiting
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    rows = [
        (Row(SYS_sendto, (DESCRIPTOR, words, len(words), socket.MSG_DONTWAIT, 0, 0)),) for words in (b"commit", b"undo")
    ]
    held = Held(one.fileno(), os.fstat(one.fileno()).st_ino, *rows)
    with one, other, ends() as both:
        die_after(deed, both, (pid, address), held)
        other.settimeout(60)
        assert other.recv(100) == done
        other.setblocking(False)
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            other.recv(100)
        both.destination.decision.sendall(word("DROPPED"))


def die() -> None:
    """As lm-serve dies by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_thawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "thaw", lambda state: die())


def die_before_saying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_migration.source_server.serve, "tell", lambda control, error: die())


def die_when_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    say = Custody.say

    def say_and_die(custody: Custody, frozen_ns: int = 0) -> None:
        say(custody, frozen_ns)
        die()

    monkeypatch.setattr(Custody, "say", say_and_die)


def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: lm-serve says it itself."""


@pytest.mark.parametrize("end", [die_before_thawing, die_before_saying, die_when_all_is_said, live])
def test_a_no_stands_wherever_lm_serve_dies(
    end: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the last moment, with READY there and the threads parked; and then lm-serve dies as well."""

    def fail(name: str) -> None:
        if name == "source-parked":
            raise injected(name)

    monkeypatch.setattr(handover, "failpoint", fail)
    end(monkeypatch)
    subject = laws.start_subject(laws.build(tmp_path), tmp_path / "subject")
    ticket = subject.folder / "ticket"
    arguments = [str(subject.pid), "--ticket-file", str(ticket)]
    serve = laws.fork_command(live_migration.cli.serve.main, arguments, subject.folder / "serve.txt")
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null"]
    restore = laws.fork_command(live_migration.cli.restore.main, arguments, subject.folder / "restore.txt")
    subject.children |= {serve, restore}
    killed = end is not live
    assert os.waitstatus_to_exitcode(os.waitpid(serve, 0)[1]) == (-signal.SIGKILL if killed else ExitCode.SYSTEM)
    why = end in (die_when_all_is_said, live)
    expected = ExitCode.SYSTEM if why else ExitCode.LOST_BEFORE
    assert os.waitstatus_to_exitcode(os.waitpid(restore, 0)[1]) == expected
    assert ("an injected fault: source-parked" in (subject.folder / "restore.txt").read_text()) is why
    laws.assert_untouched(subject)
    subject.rows()
