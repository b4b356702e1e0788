"""Connections over loopback: all roles, both directions, strangers, wrong tickets."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.wire.connection import Caller, Listener, Roles, _call, connect_roles
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import NO_SESSION, Done, Form, Hello, Role, Side, Verdict, encode_knock, refused
from live_migration.wire.keys import derive_keys
from live_migration.wire.reception import MOST_STRANGERS, NO_ROOM_SECONDS, NOTES_AT_ONCE, _Notes, accept_roles, share_of
from live_migration.wire.stream import Stream, TlsContext
from live_migration.wire.ticket import Ticket, make_ticket
from tests.support.authority import Authority


class Waiting:
    """A side that listens in a thread of its own."""

    def __init__(self, host: str, secret: bool, context: TlsContext | None = None) -> None:
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
            context=context,
            on_refused=self.refused.append,
        )

    def stranger(self) -> socket.socket:
        return socket.create_connection((self.ticket.host, self.ticket.port), timeout=60)

    def close(self) -> None:
        os.write(self.waker, b"x")
        roles = self.result.result(60)
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


def wait_readable(stream: Stream) -> None:
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    assert poll.poll(10_000)


def check_pairs(here: Roles, there: Roles, *, encrypted: bool = True) -> None:
    assert here.session == there.session != NO_SESSION
    assert here.secret == there.secret != bytes(32)
    pairs = [(here.control, there.control), (here.fault, there.fault), (here.bulk, there.bulk)]
    exported = {mine.exported() for mine, _ in pairs}
    assert len(exported) == (3 if encrypted else 1)
    for mine, theirs in pairs:
        assert mine.exported() == theirs.exported()
        assert mine.socket.getpeername() == theirs.socket.getsockname()
        mine.send(b"first bytes after the handshake")
        wait_readable(theirs)
        assert theirs.receive(100) == b"first bytes after the handshake"
        assert theirs.socket.gettimeout() is None
        assert theirs.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert theirs.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(("host", "secret"), [("127.0.0.1", True), ("::1", True), ("localhost", False)])
def test_three_connections(host: str, secret: bool) -> None:
    side = Waiting(host, secret)
    here = connect_roles(side.ticket, Side.DESTINATION)
    there = side.result.result(60)
    assert there
    check_pairs(here, there, encrypted=secret)
    assert here.listener is None
    assert there.listener is not None
    there.listener.close()
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
    partial.sendall(encode_knock(Form.TICKET, derive_keys(b"", Side.DESTINATION, Role.CONTROL))[:20])
    here = connect_roles(waiting.ticket, Side.DESTINATION)
    there = waiting.result.result(60)
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
    assert waiting.result.result(60)
    assert ["has another ticket" in str(error) for error in waiting.refused] == [True]


def first_contact(waiting: Waiting) -> tuple[Stream, Done]:
    """The control connection alone."""
    keys = derive_keys(waiting.ticket.secret, Side.DESTINATION, Role.CONTROL)
    hello = Hello(Side.DESTINATION, Role.CONTROL, 1, NO_SESSION)
    return _call(waiting.ticket, Caller(TlsContext(), Form.TICKET, keys, hello), time.monotonic() + 10)


def connect_in_the_end(waiting: Waiting) -> None:
    """Connect as soon as the listener has seen the end of who was there before."""
    deadline = time.monotonic() + 10
    while True:
        try:
            connect_roles(waiting.ticket, Side.DESTINATION).close()
            break
        except ProtocolError:
            assert time.monotonic() < deadline
    assert waiting.result.result(60)


def test_a_peer_that_dies_half_way_leaves_its_place(waiting: Waiting) -> None:
    first, _ = first_contact(waiting)
    with pytest.raises(ProtocolError, match="is already busy with another peer"):
        connect_roles(waiting.ticket, Side.DESTINATION)
    first.close()
    connect_in_the_end(waiting)


@pytest.mark.parametrize("secret", ["the ticket's", "another session's"])
def test_the_ticket_opens_the_control_connection_alone(waiting: Waiting, secret: str) -> None:
    control, done = first_contact(waiting)
    keys = derive_keys(waiting.ticket.secret if secret == "the ticket's" else bytes(32), Side.DESTINATION, Role.FAULT)
    hello = Hello(Side.DESTINATION, Role.FAULT, 1, done.hello.session)
    with pytest.raises(ProtocolError, match="has another ticket"):
        _call(waiting.ticket, Caller(TlsContext(), Form.TICKET, keys, hello), time.monotonic() + 10)
    control.close()


def test_a_session_that_is_over_opens_nothing(waiting: Waiting) -> None:
    """What one peer was told is of no use when it has gone and another one comes."""
    control, done = first_contact(waiting)
    control.close()
    keys = derive_keys(done.secret, Side.DESTINATION, Role.FAULT)
    hello = Hello(Side.DESTINATION, Role.FAULT, 1, done.hello.session)
    caller = Caller(TlsContext(), Form.TICKET, keys, hello)
    deadline = time.monotonic() + 10
    with pytest.raises(ProtocolError, match=r"knows another session|has another ticket"):
        _call(waiting.ticket, caller, deadline)


def test_a_side_without_tls_and_one_with_it_tell_each_other(waiting: Waiting) -> None:
    plain = Ticket(waiting.ticket.host, waiting.ticket.port, b"")
    with pytest.raises(ProtocolError, match="protects the connection in another way"):
        connect_roles(plain, Side.DESTINATION)
    other = Waiting("127.0.0.1", False)
    with pytest.raises(ProtocolError, match="protects the connection in another way"):
        connect_roles(Ticket("127.0.0.1", other.ticket.port, bytes(32)), Side.DESTINATION)
    other.close()


def test_two_sources_are_told_apart(waiting: Waiting) -> None:
    with pytest.raises(ProtocolError, match="is the same side; run lm-serve on the source"):
        connect_roles(waiting.ticket, Side.SOURCE)
    # The one who calls may hear of it before the one who listens has put it down.
    first = wait_for("the refusal", lambda: waiting.refused[:1] or None, 60)
    assert "it is a source too; run lm-serve on the source" in str(first[0])


def relay_once(ticket: Ticket, change: Callable[[bytes, bool], bytes]) -> tuple[Ticket, threading.Thread]:
    """Somebody on the way of one connection: `change` gets what travels, and whether it comes from who connected."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with (
            server,
            server.accept()[0] as near,
            socket.create_connection((ticket.host, ticket.port)) as far,
            contextlib.suppress(OSError),
        ):
            while True:
                for end in select.select([near, far], [], [], 60)[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    (far if end is near else near).sendall(change(data, end is near))

    thread = threading.Thread(target=run)
    thread.start()
    return Ticket("127.0.0.1", server.getsockname()[1], ticket.secret), thread


@pytest.mark.parametrize("place", [40, 150, -1])
@pytest.mark.parametrize("near", [True, False])
def test_no_byte_of_the_handshake_can_be_changed(waiting: Waiting, near: bool, place: int) -> None:
    def change(data: bytes, from_near: bool) -> bytes:
        changed = bytearray(data)
        if from_near is near and len(data) > 150:
            changed[place] ^= 1
        return bytes(changed)

    ticket, thread = relay_once(waiting.ticket, change)
    with pytest.raises(MigrationError):
        connect_roles(ticket, Side.DESTINATION)
    thread.join()
    connect_roles(waiting.ticket, Side.DESTINATION).close()
    assert waiting.result.result(60)


def test_a_recorded_connection_cannot_be_replayed(waiting: Waiting) -> None:
    said: list[bytes] = []

    def record(data: bytes, from_near: bool) -> bytes:
        if from_near:
            said.append(data)
        return data

    ticket, thread = relay_once(waiting.ticket, record)
    keys = derive_keys(ticket.secret, Side.DESTINATION, Role.CONTROL)
    caller = Caller(TlsContext(), Form.TICKET, keys, Hello(Side.DESTINATION, Role.CONTROL, 1, NO_SESSION))
    _call(ticket, caller, time.monotonic() + 10)[0].close()
    thread.join()
    assert refused_again(waiting, b"".join(said))
    connect_in_the_end(waiting)


def say(waiting: Waiting, words: bytes) -> bytes:
    """What the listener answers a stranger's words before it closes."""
    answer = b""
    with waiting.stranger() as stranger, contextlib.suppress(OSError):
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        while data := stranger.recv(1 << 16):
            answer += data
    return answer


def refused_again(waiting: Waiting, recorded: bytes) -> bool:
    """Whether the same bytes end in a refusal: TLS begins, and takes nothing of it."""
    return say(waiting, recorded)[:1] in (b"\x16", b"")


def test_a_handshake_is_of_no_use_sent_back(waiting: Waiting) -> None:
    """What the listener says is said to it, as if it was the one to connect; as the other side, and as its own."""
    keys = derive_keys(waiting.ticket.secret, Side.DESTINATION, Role.CONTROL)
    knock = encode_knock(Form.TICKET, keys)
    mine, theirs = socket.socketpair()
    with mine, theirs:
        stream = Stream(mine)
        stream.secure(TlsContext(), listening=False, identity=keys.tag, key=keys.key)
        with pytest.raises(BlockingIOError):
            stream.handshake()
        answer = say(waiting, knock + theirs.recv(1 << 16))
        stream.close()
    assert answer[0] == 0x16
    assert say(waiting, knock + answer)[:1] in (b"\x15", b"")
    own = derive_keys(waiting.ticket.secret, Side.SOURCE, Role.CONTROL)
    assert say(waiting, encode_knock(Form.TICKET, own) + answer)[:1] in (bytes([Verdict.SAME_SIDE]), b"")
    connect_roles(waiting.ticket, Side.DESTINATION).close()
    assert waiting.result.result(60)


def test_who_has_come_is_not_dropped_for_who_comes(waiting: Waiting) -> None:
    """The holder of the ticket has knocked before a flood of others, and goes on after it."""
    keys = derive_keys(waiting.ticket.secret, Side.DESTINATION, Role.CONTROL)
    stream = Stream(waiting.stranger())
    stream.socket.sendall(encode_knock(Form.TICKET, keys))
    many = [waiting.stranger() for _ in range(MOST_STRANGERS + 10)]
    stream.secure(TlsContext(), listening=False, identity=keys.tag, key=keys.key)
    while True:
        try:
            stream.handshake()
            break
        except BlockingIOError:
            wait_readable(stream)
    stream.close()
    for connection in many:
        connection.close()


def test_without_descriptors_who_comes_waits(waiting: Waiting) -> None:
    """Out of descriptors, the listener drops strangers, and waits where there are none; then all goes on."""
    assert say(waiting, b"x") == b""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    late = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    try:
        late.connect((waiting.ticket.host, waiting.ticket.port))
        time.sleep(3 * NO_ROOM_SECONDS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)
    connect_roles(waiting.ticket, Side.DESTINATION).close()
    assert waiting.result.result(60)
    late.close()


def test_notes_of_many_are_few() -> None:
    told: list[MigrationError] = []
    notes = _Notes(told.append)
    for _ in range(10_000):
        notes.tell(refused(Verdict.WRONG_TICKET))
    assert len(told) in range(NOTES_AT_ONCE, NOTES_AT_ONCE + 3)


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::/64"),
        ("fe80::1%lo", "fe80::/64"),
    ],
)
def test_whose_share_an_address_has(address: str, share: str) -> None:
    assert share_of(address) == share


@pytest.mark.parametrize("counts", [True, False])
def test_certificates(tmp_path: Path, counts: bool) -> None:
    """Both sides have a certificate of one authority, and the ticket; or the other's is of another one."""
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    theirs = authority if counts else Authority(tmp_path / "other")
    side = Waiting("127.0.0.1", True, TlsContext(authority.certify("source")))
    context = TlsContext(theirs.certify("destination"))
    if counts:
        with pytest.raises(ProtocolError, match="has another ticket"):
            connect_roles(Ticket("127.0.0.1", side.ticket.port, bytes(32)), Side.DESTINATION, context=context)
        here = connect_roles(side.ticket, Side.DESTINATION, context=context)
        there = side.result.result(60)
        assert there
        check_pairs(here, there)
        here.close()
    else:
        with pytest.raises(ProtocolError, match="it has no certificate that counts here, or does not take ours"):
            connect_roles(side.ticket, Side.DESTINATION, context=context)
    side.close()


def test_watching_a_descriptor_ends_the_wait(waiting: Waiting) -> None:
    os.write(waiting.waker, b"x")
    assert waiting.result.result(60) is None


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
            connection.recv(96, socket.MSG_WAITALL)
            connection.sendall(text)

    thread = threading.Thread(target=run)
    thread.start()
    return Ticket("127.0.0.1", server.getsockname()[1], b""), thread


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "it does not speak this protocol"),
        (b"", "it closed the connection with 8 bytes of the handshake missing"),
        (b"\1\0\3\0\0\0\0\0LMIG", "it closed the connection with 92 bytes of the handshake missing"),
    ],
)
def test_another_server_is_named(text: bytes, cause: str) -> None:
    ticket, thread = answer_once(text)
    with pytest.raises(ProtocolError, match=cause):
        connect_roles(ticket, Side.DESTINATION)
    thread.join()
