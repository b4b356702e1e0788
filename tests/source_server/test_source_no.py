"""The source's no between READY and COMMIT: recorded before anything is thawed, said in words, and by the custodian
where lm-serve dies before it has."""

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
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import injected
from live_migration.wire.messages import Abort, Commit, Final, FrameReader, Message, encode, pack
from tests.support import laws

FINAL = encode(Final(payload=pack("the frozen process")))
COMMIT = encode(Commit(frozen_ns=1, round_trip_ns=1))
WORDS = encode(Abort(step="a", object="b", cause="c" * 900, remedy="d"))
NOTHING_WRITTEN = lib.LM_PARK_UNDECIDED


@pytest.fixture
def connection(orphans: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a TCP connection: the source's and the destination's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = socket.create_connection(server.getsockname())
        destination, _ = server.accept()
    with source, destination:
        yield source, destination


@pytest.fixture
def word(orphans: None) -> tuple[int, mmap.mmap, int]:
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


def everything(destination: socket.socket) -> bytes:
    """All that the source says until it hangs up."""
    destination.settimeout(10)
    data = b""
    while part := destination.recv(1 << 16):
        data += part
    return data


def decoded(data: bytes) -> list[Message]:
    """The messages in it, which has no other bytes."""
    reader, found = FrameReader(), []
    while data:
        part, data = data[: reader.wanted()], data[reader.wanted() :]
        message = reader.receive(part)
        found += [message] if message is not None else []
    assert reader.is_empty()
    return found


Deed = Callable[[Custody, socket.socket, tuple[int, int]], None]


def before_it_is_described(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    """Nothing but messages that the destination cannot get ready by."""
    source.sendall(FINAL)


def in_the_middle_of_describing(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    custody.describing(len(FINAL))
    source.sendall(FINAL[:20])


def described(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    custody.describing(len(FINAL))
    source.sendall(FINAL)


def parked(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    described(custody, source, word)
    custody.parked(*word)


def committed(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    parked(custody, source, word)
    source.sendall(COMMIT)


def decided(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    committed(custody, source, word)
    custody.decided()


def refused(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    parked(custody, source, word)
    custody.refuse(WORDS)


def refused_without_words(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    parked(custody, source, word)
    custody.refuse()


def refused_in_words_without_end(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    parked(custody, source, word)
    custody.refuse(bytes(1 << 20))


def refused_in_the_middle_of_describing(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    in_the_middle_of_describing(custody, source, word)
    custody.refuse(WORDS)


def thawed(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    refused(custody, source, word)
    custody.unparked()


def half_said(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    thawed(custody, source, word)
    source.sendall(WORDS[: len(WORDS) // 2])


def said(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    thawed(custody, source, word)
    assert custody.say_no()


@pytest.mark.parametrize(
    ("deed", "said_in_the_end", "written"),
    [
        (before_it_is_described, FINAL, NOTHING_WRITTEN),
        (in_the_middle_of_describing, FINAL[:20], NOTHING_WRITTEN),
        (refused_in_the_middle_of_describing, FINAL[:20], NOTHING_WRITTEN),
        (described, FINAL + custodies.NO, NOTHING_WRITTEN),
        (parked, FINAL + custodies.NO, lib.LM_PARK_GO_HOME),
        (committed, FINAL + COMMIT, lib.LM_PARK_STAY),
        (decided, FINAL + COMMIT, NOTHING_WRITTEN),
        (refused, FINAL + WORDS, lib.LM_PARK_GO_HOME),
        (refused_without_words, FINAL + custodies.NO, lib.LM_PARK_GO_HOME),
        (refused_in_words_without_end, FINAL + custodies.NO, lib.LM_PARK_GO_HOME),
        (thawed, FINAL + WORDS, NOTHING_WRITTEN),
        (half_said, FINAL + WORDS, NOTHING_WRITTEN),
        (said, FINAL + WORDS, NOTHING_WRITTEN),
    ],
)
def test_what_the_custodian_says_and_writes(
    deed: Deed,
    said_in_the_end: bytes,
    written: int,
    connection: tuple[socket.socket, socket.socket],
    word: tuple[int, mmap.mmap, int],
) -> None:
    """lm-serve dies after a deed."""
    source, destination = connection
    pid, memory, address = word
    serve = os.fork()
    if serve == 0:
        try:
            destination.close()
            custody = custodies.start_custody(source.fileno())
            deed(custody, source, (pid, address))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    source.close()
    os.waitpid(serve, 0)
    assert everything(destination) == said_in_the_end
    destination.close()
    assert struct.unpack_from("I", memory)[0] == written


def carried_out(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    decided(custody, source, word)
    custody.carry_out()


def undone(custody: Custody, source: socket.socket, word: tuple[int, int]) -> None:
    refused(custody, source, word)
    custody.undo()


@pytest.mark.parametrize(
    ("deed", "done"),
    [
        (before_it_is_described, b"undo"),
        (in_the_middle_of_describing, b"undo"),
        (described, b"undo"),
        (parked, b"undo"),
        (refused, b"undo"),
        (undone, b"undo"),
        (committed, b"commit"),
        (decided, b"commit"),
        (carried_out, b"commit"),
    ],
)
def test_what_is_done_to_descriptors(
    deed: Deed, done: bytes, connection: tuple[socket.socket, socket.socket], word: tuple[int, mmap.mmap, int]
) -> None:
    """lm-serve dies after a deed, and has done what is held or not; it is done once, and it is the right one."""
    source, destination = connection
    pid, _, address = word
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    rows = [
        (Row(SYS_sendto, (DESCRIPTOR, words, len(words), socket.MSG_DONTWAIT, 0, 0)),) for words in (b"commit", b"undo")
    ]
    held = Held(one.fileno(), os.fstat(one.fileno()).st_ino, *rows)
    owner = os.getpid()
    serve = os.fork()
    if serve == 0:
        try:
            destination.close()
            custody = custodies.start_custody(source.fileno())
            custody.prepare(owner, [held])
            custody.hold([])
            deed(custody, source, (pid, address))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    source.close()
    os.waitpid(serve, 0)
    everything(destination)
    destination.close()
    with one, other:
        other.settimeout(10)
        assert other.recv(100) == done
        other.setblocking(False)
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            other.recv(100)


def test_a_no_that_cannot_be_said_is_left(connection: tuple[socket.socket, socket.socket]) -> None:
    source, destination = connection
    custody = custodies.start_custody(source.fileno())
    described(custody, source, (0, 0))
    assert not custody.say_no(), "nothing is recorded"
    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    destination.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    destination.close()
    custody.refuse(WORDS)
    assert custody.say_no()
    custody.end()


def test_the_custodian_s_own_words() -> None:
    (message,) = decoded(custodies.NO)
    assert isinstance(message, Abort)
    assert message.code == ExitCode.LOST_BEFORE


def die() -> None:
    """As lm-serve dies by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_thawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "thaw", lambda state: die())


def die_before_saying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Custody, "say_no", lambda custody: die())


def die_while_saying(monkeypatch: pytest.MonkeyPatch) -> None:
    def say_half(custody: Custody) -> bool:
        half = bytes(ffi.buffer(custody.state.no, custody.state.no_length // 2))
        os.write(custody.control_socket, half)
        die()
        return True

    monkeypatch.setattr(Custody, "say_no", say_half)


def die_when_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    say_no = Custody.say_no

    def say(custody: Custody) -> bool:
        say_no(custody)
        die()
        return True

    monkeypatch.setattr(Custody, "say_no", say)


def live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: lm-serve says it itself."""


@pytest.mark.parametrize("end", [die_before_thawing, die_before_saying, die_while_saying, die_when_all_is_said, live])
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
    wait_for("the ticket", lambda: ticket.exists() or None, 20)
    arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null"]
    restore = laws.fork_command(live_migration.cli.restore.main, arguments, subject.folder / "restore.txt")
    subject.children |= {serve, restore}
    killed = end is not live
    assert os.waitstatus_to_exitcode(os.waitpid(serve, 0)[1]) == (-signal.SIGKILL if killed else ExitCode.SYSTEM)
    assert os.waitstatus_to_exitcode(os.waitpid(restore, 0)[1]) == ExitCode.SYSTEM
    assert "an injected fault: source-parked" in (subject.folder / "restore.txt").read_text()
    laws.assert_untouched(subject)
    subject.rows()
