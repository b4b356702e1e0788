"""Connections over loopback: all roles, both directions, strangers, wrong tickets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from live_migration.wire.connection import MOST_STRANGERS, Listener, Roles, accept_roles, connect_roles
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import NO_SESSION, Connecting, Role, Side
from live_migration.wire.ticket import Ticket, make_ticket


class Waiting:
    """A side that listens in a thread of its own."""

    def __init__(self, host: str, secret: bool) -> None:
        self.listener = Listener(host, 0)
        self.ticket = make_ticket(host, self.listener.port, with_secret=secret)
        self.refused: list[MigrationError] = []
        self.pool = ThreadPoolExecutor(1)
        self.wake, self.waker = os.pipe()
        self.result: Future[Roles | None] = self.pool.submit(
            accept_roles,
            self.listener,
            self.ticket.secret,
            Side.SOURCE,
            watch=[self.wake],
            on_refused=self.refused.append,
        )

    def stranger(self) -> socket.socket:
        return socket.create_connection((self.ticket.host, self.ticket.port), timeout=10)

    def close(self) -> None:
        os.write(self.waker, b"x")
        roles = self.result.result(10)
        if roles:
            roles.close()
        self.pool.shutdown()
        self.listener.close()
        os.close(self.wake)
        os.close(self.waker)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    side = Waiting("127.0.0.1", True)
    yield side
    side.close()


def check_pairs(here: Roles, there: Roles) -> None:
    assert here.session == there.session != NO_SESSION
    pairs = [(here.control, there.control), (here.fault, there.fault), (here.bulk, there.bulk)]
    for mine, theirs in pairs:
        assert mine.getpeername() == theirs.getsockname()
        mine.sendall(b"first bytes after the handshake")
        assert theirs.recv(100) == b"first bytes after the handshake"
        assert theirs.gettimeout() is None
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(("host", "secret"), [("127.0.0.1", True), ("::1", True), ("localhost", False)])
def test_three_connections(host: str, secret: bool) -> None:
    side = Waiting(host, secret)
    here = connect_roles(side.ticket, Side.DESTINATION)
    there = side.result.result(10)
    assert there
    check_pairs(here, there)
    with pytest.raises(ConnectionRefusedError):
        side.stranger()
    here.close()
    side.close()
    assert side.refused == []


def test_strangers_do_not_disturb(waiting: Waiting) -> None:
    silent = [waiting.stranger() for _ in range(MOST_STRANGERS + 10)]
    loud = waiting.stranger()
    loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert loud.recv(100) == b""
    partial = waiting.stranger()
    partial.sendall(Connecting(b"", Side.DESTINATION, Role.CONTROL, NO_SESSION, 1).to_send()[:20])
    here = connect_roles(waiting.ticket, Side.DESTINATION)
    there = waiting.result.result(10)
    assert there
    check_pairs(here, there)
    for connection in [*silent, loud, partial]:
        connection.close()
    here.close()
    assert any("does not speak this protocol" in str(error) for error in waiting.refused)


def test_a_wrong_ticket_is_turned_away_and_the_right_one_still_works(waiting: Waiting) -> None:
    wrong = Ticket(waiting.ticket.host, waiting.ticket.port, bytes(32))
    with pytest.raises(ProtocolError, match="has another ticket") as caught:
        connect_roles(wrong, Side.DESTINATION)
    assert caught.value.code == ExitCode.BAD_TICKET
    connect_roles(waiting.ticket, Side.DESTINATION).close()
    assert waiting.result.result(10)
    assert ["has another ticket" in str(error) for error in waiting.refused] == [True]


def test_a_peer_that_dies_half_way_leaves_its_place(waiting: Waiting) -> None:
    first = waiting.stranger()
    handshake = Connecting(waiting.ticket.secret, Side.DESTINATION, Role.CONTROL, NO_SESSION, 1)
    done = None
    while not done:
        first.sendall(handshake.to_send())
        done = handshake.receive(first.recv(handshake.wanted()))
    with pytest.raises(ProtocolError, match="is already busy with another peer"):
        connect_roles(waiting.ticket, Side.DESTINATION)
    first.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            connect_roles(waiting.ticket, Side.DESTINATION).close()
            break
        except ProtocolError:
            assert time.monotonic() < deadline
    assert waiting.result.result(10)


def test_without_the_control_connection_no_other_is_let_in(waiting: Waiting) -> None:
    for session in (NO_SESSION, b"x" * 16):
        connection = waiting.stranger()
        handshake = Connecting(waiting.ticket.secret, Side.DESTINATION, Role.FAULT, session, 1)
        connection.sendall(handshake.to_send())
        with pytest.raises(ProtocolError, match="knows another session"):
            handshake.receive(connection.recv(handshake.wanted()))
        connection.close()


def test_watching_a_descriptor_ends_the_wait(waiting: Waiting) -> None:
    os.write(waiting.waker, b"x")
    assert waiting.result.result(10) is None


def test_nobody_comes() -> None:
    listener = Listener("127.0.0.1", 0)
    with pytest.raises(LocalError, match=r"nobody with the ticket came within 0\.1 s"):
        accept_roles(listener, b"", Side.SOURCE, timeout=0.1)
    listener.close()


def test_a_taken_port_and_a_foreign_address() -> None:
    listener = Listener("127.0.0.1", 0)
    with pytest.raises(LocalError) as caught:
        Listener("127.0.0.1", listener.port)
    assert str(caught.value) == (
        f"listening: 127.0.0.1:{listener.port}: address already in use; "
        "give another port with --listen, or 0 for a free one"
    )
    assert caught.value.code == ExitCode.CANNOT_LISTEN
    listener.close()
    with pytest.raises(LocalError, match="give an address of this host"):
        Listener("192.0.2.77", 0)


def test_nobody_listens() -> None:
    listener = Listener("127.0.0.1", 0)
    listener.close()
    with pytest.raises(LocalError) as caught:
        connect_roles(Ticket("127.0.0.1", listener.port, b""), Side.SOURCE)
    assert str(caught.value) == (
        f"connecting: 127.0.0.1:{listener.port}: connection refused; "
        "check that the other side is waiting there and that no firewall is between"
    )
    assert caught.value.code == ExitCode.NO_PEER


def answer_once(text: bytes) -> tuple[Ticket, threading.Thread]:
    """Somebody else's server, which says `text` and closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(64)
            connection.sendall(text)

    thread = threading.Thread(target=run)
    thread.start()
    return Ticket("127.0.0.1", server.getsockname()[1], b""), thread


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "it does not speak this protocol"),
        (b"", "it closed the connection with 8 bytes of the handshake missing"),
        (b"\1\0\1\0\0\0\0\0LMIG", "it closed the connection with 60 bytes of the handshake missing"),
    ],
)
def test_another_server_is_named(text: bytes, cause: str) -> None:
    ticket, thread = answer_once(text)
    with pytest.raises(ProtocolError, match=cause):
        connect_roles(ticket, Side.DESTINATION)
    thread.join()
