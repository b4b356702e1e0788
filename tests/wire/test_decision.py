"""The words of the DECISION connection: who can say them, what is stale, and how it is made anew."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from live_migration._lm import ffi, lib
from live_migration.wire import decision
from live_migration.wire.errors import LocalError
from live_migration.wire.handshake import Side
from tests.support.decided import SESSION, TOKENS, Ends, accept, ends, hear, hear_first, shared, word

COMMIT, NO, UNDECIDED = lib.LM_DECISION_COMMIT, lib.LM_DECISION_NO, lib.LM_DECISION_UNDECIDED
FOREVER = (1 << 63) - 1


@pytest.fixture(params=Side, ids=lambda side: f"{side.name.lower()}-listens")
def both(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with ends(request.param) as found:
        yield found


class Asking:
    """The destination's line, which asks in a thread of its own."""

    def __init__(self, found: Ends, stale_ns: int = FOREVER, seconds: float = 60) -> None:
        self.known = shared(found.destination.roles, Side.DESTINATION)
        self.line = decision.open_line(
            self.known, found.destination.decision, decision.listener_of(found.destination.roles)
        )
        self.frozen_ns = ffi.new("uint64_t *")
        self.found = -1
        self.pidfd = os.pidfd_open(os.getpid())
        self.thread = threading.Thread(target=self.run, args=(stale_ns, int(seconds * 1000)))
        self.thread.start()

    def run(self, stale_ns: int, milliseconds: int) -> None:
        self.found = lib.lm_decision_ask(self.line, self.pidfd, milliseconds, stale_ns, self.frozen_ns)

    def decided(self) -> int:
        """What has come of it."""
        self.thread.join(60)
        assert not self.thread.is_alive()
        lib.lm_decision_close(self.line)
        os.close(self.pidfd)
        return self.found


@pytest.mark.parametrize("size", [0, 1, 32, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_sha256(size: int) -> None:
    data = bytes(range(256))[:size] * (1 if size < 256 else 4)
    digest = ffi.new("unsigned char[32]")
    lib.lm_sha256(data, len(data), digest)
    assert bytes(digest) == hashlib.sha256(data).digest()


def test_it_is_decided_once() -> None:
    one = ffi.new("struct lm_decision *")
    assert lib.lm_decision_decide(one, NO)
    assert not lib.lm_decision_decide(one, COMMIT)
    assert lib.lm_decision_decide(one, NO)
    assert one.decided == NO


@pytest.mark.parametrize(("said", "decided"), [("COMMIT", COMMIT), ("NO", NO)])
def test_it_is_told(said: str, decided: int, both: Ends) -> None:
    asking = Asking(both)
    for byte in word(said, frozen_ns=1 << 40):
        both.source.decision.send(bytes([byte]))
    assert asking.decided() == decided
    assert asking.frozen_ns[0] == 1 << 40


@pytest.mark.parametrize("said", ["COMMIT", "NO"])
@pytest.mark.parametrize("token", [TOKENS.hashes().commit, TOKENS.hashes().no, bytes(32), b"x" * 32])
def test_nobody_else_can_tell_it(said: str, token: bytes) -> None:
    """Not even who knows the hashes, which have travelled. The connection is given up, and the peer is asked anew."""
    with ends() as found:
        asking = Asking(found)
        assert found.source.roles.listener
        found.source.decision.sendall(word(said, token=token))
        with accept(found.source.roles.listener) as anew:
            kind, number, _ = hear_first(anew)
            assert kind == "ASK"
            anew.sendall(word("NO", number))
            assert asking.decided() == NO


def test_commit_is_not_no() -> None:
    with ends() as found:
        asking = Asking(found, seconds=0.2)
        found.source.decision.sendall(word("COMMIT", token=TOKENS.no))
        assert asking.decided() == UNDECIDED


def end_in_order(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def end_in_a_word(connection: socket.socket) -> None:
    connection.sendall(word("COMMIT")[:-1])
    connection.shutdown(socket.SHUT_WR)


def say_garbage(connection: socket.socket) -> None:
    connection.sendall(b"\0" * 48)


def say_the_other_side_s(connection: socket.socket) -> None:
    connection.sendall(word("RESUMED"))


@pytest.mark.parametrize("end", [end_in_order, end_in_a_word, say_garbage, say_the_other_side_s])
def test_no_end_of_a_connection_decides(end: object) -> None:
    """The side that had connected connects again, and asks until it is answered."""
    with ends() as found:
        asking = Asking(found)
        assert callable(end)
        end(found.source.decision)
        assert found.source.roles.listener
        for answer in ("", "UNDECIDED", "COMMIT"):
            with accept(found.source.roles.listener) as anew:
                kind, number, _ = hear_first(anew)
                assert kind == "ASK"
                if answer:
                    anew.sendall(word(answer, number))
        assert asking.decided() == COMMIT


def test_who_listens_lets_the_other_one_in() -> None:
    with ends(Side.DESTINATION) as found:
        asking = Asking(found)
        found.source.decision.shutdown(socket.SHUT_RDWR)
        assert found.destination.roles.listener
        address = found.destination.roles.listener.getsockname()
        hello = decision.encode_hello(Side.SOURCE, SESSION)
        strangers = [socket.create_connection(address) for _ in range(80)]
        for wrong in (
            decision.encode_hello(Side.DESTINATION, SESSION) + word("NO"),
            hello[:11] + b"\1" + hello[12:] + word("NO"),
            decision.encode_hello(Side.SOURCE, b"x" * 16) + word("NO"),
            hello + word("NO", token=b"x" * 32),
            hello + word("RESUMED"),
        ):
            strangers.append(socket.create_connection(address))
            strangers[-1].sendall(wrong)
        for stranger in strangers[-5:]:
            stranger.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        with socket.create_connection(address) as anew:
            anew.sendall(hello + word("COMMIT"))
            assert asking.decided() == COMMIT
        for stranger in strangers:
            stranger.close()


def test_a_word_that_has_waited_for_long_is_stale(both: Ends) -> None:
    """A host that slept with COMMIT in the socket asks first: by now somebody may have decided otherwise."""
    both.source.decision.sendall(word("COMMIT") + word("COMMIT", number=1 << 20))
    asking = Asking(both, stale_ns=0)
    both.source.decision.settimeout(30)
    kind, number, _ = hear(both.source.decision)
    assert kind == "ASK"
    both.source.decision.sendall(word("NO", number))
    assert asking.decided() == NO


def test_a_silent_source_is_asked() -> None:
    with ends() as found:
        begun = time.monotonic()
        asking = Asking(found)
        found.source.decision.settimeout(20)
        assert hear(found.source.decision)[0] == "ASK"
        assert time.monotonic() - begun > 0.5, "it has not waited for a word that comes by itself"
        found.source.decision.sendall(word("COMMIT"))
        assert asking.decided() == COMMIT


@pytest.mark.parametrize("kind", ["RESUMED", "DROPPED"])
def test_what_became_of_it_is_reported_until_it_is_acknowledged(kind: str) -> None:
    with ends() as found:
        known = shared(found.destination.roles, Side.DESTINATION)
        line = decision.open_line(known, found.destination.decision, -1)
        number = getattr(lib, f"LM_WORD_{kind}")
        outcome: list[int] = []
        report = threading.Thread(target=lambda: outcome.append(lib.lm_decision_report(line, number, -1, 20000, 3)))
        report.start()
        assert hear(found.source.decision)[0] == kind
        found.source.decision.close()
        found.destination.decision.close()
        assert found.source.roles.listener
        with accept(found.source.roles.listener) as anew:
            assert hear_first(anew)[0] == kind
        with accept(found.source.roles.listener) as anew:
            assert hear_first(anew)[0] == kind
            anew.sendall(word("ACKNOWLEDGED"))
            report.join(60)
        assert outcome == [1]
        assert known.heard == lib.LM_WORD_ACKNOWLEDGED


def test_nobody_is_told_where_nobody_listens() -> None:
    with ends() as found:
        known = shared(found.destination.roles, Side.DESTINATION)
        line = decision.open_line(known, found.destination.decision, -1)
        found.source.close()
        assert lib.lm_decision_report(line, lib.LM_WORD_DROPPED, -1, 20000, 2) == 0
        assert line.refused == 3


def test_the_first_one_is_made_too() -> None:
    with ends() as found:
        made: list[socket.socket] = []
        listening = threading.Thread(target=lambda: made.append(decision.connect(found.source.roles, Side.SOURCE)))
        listening.start()
        with decision.connect(found.destination.roles, Side.DESTINATION) as connection:
            listening.join(60)
            with made[0] as there:
                assert there.getpeername() == connection.getsockname()
                there.settimeout(30)
                assert hear(there)[0] == "ASK"


def test_nobody_makes_the_first_one() -> None:
    with ends() as found, pytest.raises(LocalError, match=r"it was not made within 0\.1 s"):
        decision.connect(found.source.roles, Side.SOURCE, 0.1)
