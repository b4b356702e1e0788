"""What is held of descriptors: tables of system calls, run once, wherever whoever runs them has died."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.syscall_numbers import SYS_dup, SYS_sendto, SYS_setsockopt
from live_migration.process.descriptors.held import DESCRIPTOR, RESULT, Held, Row
from live_migration.process.descriptors.held_table import spare, write_held
from live_migration.process.descriptors.socket_ends import end_connection, stop_listening

DONE = int(ffi.offsetof("struct lm_held", "done"))


@pytest.fixture
def file() -> Iterator[int]:
    """The file that lm-serve and its custodian share."""
    number = os.memfd_create("held")
    yield number
    os.close(number)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets that keep the bounds of messages."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        other.setblocking(False)
        yield one, other


def held(one: socket.socket, *commit: Row, undo: tuple[Row, ...] = ()) -> Held:
    """Rows about a socket of this process."""
    return Held(one.fileno(), os.fstat(one.fileno()).st_ino, commit, undo)


def send(words: bytes) -> Row:
    """A row that sends a message."""
    return Row(SYS_sendto, (DESCRIPTOR, words, len(words), socket.MSG_DONTWAIT, 0, 0))


def run(file: int, table: int = lib.LM_HELD_COMMIT) -> None:
    assert lib.lm_held_run(file, table) == 0


def received(one: socket.socket) -> list[bytes]:
    """What waits in a socket."""
    found = []
    try:
        while True:
            found.append(one.recv(100))
    except BlockingIOError:
        return found


def test_each_table_is_run_once(file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    write_held(file, os.getpid(), [held(one, send(b"first"), send(b"second"), undo=(send(b"back"),))])
    for _ in range(2):
        run(file)
    assert received(other) == [b"first", b"second"]
    for _ in range(2):
        run(file, lib.LM_HELD_UNDO)
    assert received(other) == [b"back"]


def test_it_goes_on_where_it_was_left(file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    write_held(file, os.getpid(), [held(one, *(send(words) for words in (b"1", b"2", b"3")))])
    os.pwrite(file, struct.pack("=I", 2), DONE)
    run(file)
    assert received(other) == [b"3"]


def test_what_fails_stops_nothing(file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    nonsense = Row(SYS_setsockopt, (DESCRIPTOR, -1, -1, b"", 0, 0), most=3)
    write_held(file, os.getpid(), [held(one, nonsense, send(b"on"))])
    run(file)
    assert received(other) == [b"on"]


def test_data_is_handed_over_by_its_address(file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    option = Row(SYS_setsockopt, (DESCRIPTOR, socket.SOL_SOCKET, socket.SO_RCVLOWAT, struct.pack("=i", 77), 4, 0))
    write_held(file, os.getpid(), [held(one, send(b"odd"), option), held(other, option)])
    run(file)
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 77
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 77


def test_a_block_is_run_for_each_descriptor(file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    before = os.listdir("/proc/self/fd")
    words = Row(SYS_sendto, (RESULT, b"copy", 4, socket.MSG_DONTWAIT, 0, 0))
    write_held(file, os.getpid(), [held(one, Row(SYS_dup, (DESCRIPTOR,), most=3, each=(words,)), send(b"end"))])
    run(file)
    assert received(other) == [b"copy"] * 3 + [b"end"]
    assert os.listdir("/proc/self/fd") == before


def test_what_is_spared_or_another_one_is_left_alone(file: int) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    those = [held(one, *end_connection()) for one, _ in pairs]
    write_held(file, os.getpid(), those)
    spare(file, those, {those[0].inode})
    # Another file is at this number by now.
    os.dup2(pairs[2][1].fileno(), pairs[1][0].fileno())
    run(file)
    for one, other in (pairs[0], pairs[2]):
        other.setblocking(False)
        if one is pairs[2][0]:
            assert other.recv(1) == b""
        else:
            with pytest.raises(BlockingIOError):
                other.recv(1)
    pairs[2][1].send(b"x")
    for each in pairs:
        for one in each:
            one.close()


@pytest.mark.parametrize("own", [True, False])
def test_of_a_process_that_has_gone(own: bool, file: int, pair: tuple[socket.socket, socket.socket]) -> None:
    """Its descriptors are those of whoever has duplicates; the other rows are about nothing of it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    message = b"of ours"
    ours = Row(SYS_sendto, (pair[1].fileno(), message, len(message), socket.MSG_DONTWAIT, 0, 0))
    write_held(file, pid, [held(pair[0], send(b"of its own")), Held(-1, 0, (ours,))])
    numbers = ffi.new("int[]", [pair[0].fileno() if own else -1, -1])
    assert lib.lm_held_run_with(file, lib.LM_HELD_COMMIT, numbers) == 0
    assert received(pair[1]) == ([b"of its own"] if own else [])
    assert pair[0].recv(100) == message


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_peers_see_an_end_and_no_reset(file: int, family: int, tmp_path: object) -> None:
    listener = socket.socket(family)
    listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{tmp_path}/socket")
    listener.listen(5)
    clients = [socket.socket(family) for _ in range(3)]
    for client in clients:
        client.connect(listener.getsockname())
        client.sendall(b"unread" * 100000 if family == socket.AF_INET else b"unread")
        client.settimeout(60)
    accepted, _ = listener.accept()
    connection = [held(accepted, *end_connection())] if family == socket.AF_INET else []
    write_held(file, os.getpid(), [held(listener, *stop_listening(os.O_RDWR, 2)), *connection])
    run(file)
    if family == socket.AF_UNIX:
        accepted.recv(100)
        accepted.close()
    assert [client.recv(10) for client in clients] == [b""] * 3
    assert os.get_blocking(listener.fileno())
    with socket.socket(family) as late, pytest.raises(ConnectionRefusedError):
        late.connect(listener.getsockname())
    for one in (*clients, accepted, listener):
        one.close()


def test_rows_that_many_share_are_about_each_of_them(file: int) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    rows = (send(b"one"), send(b"two"))
    for _, other in pairs:
        other.setblocking(False)
    write_held(file, os.getpid(), [Held(one.fileno(), os.fstat(one.fileno()).st_ino, rows, rows) for one, _ in pairs])
    for table in (lib.LM_HELD_COMMIT, lib.LM_HELD_UNDO):
        run(file, table)
        assert [received(other) for _, other in pairs] == [[b"one", b"two"]] * 3
    for pair in pairs:
        for end in pair:
            end.close()
