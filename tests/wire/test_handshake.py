"""The handshake without sockets: cut at every byte, with wrong secrets, replayed, with other versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_migration.wire.errors import ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import (
    NO_SESSION,
    VERSION,
    Claimed,
    Connecting,
    Done,
    Listening,
    Proven,
    Role,
    Side,
    Verdict,
)

SECRET = bytes(range(32))
SESSION = b"S" * 16


def pump(
    connecting: Connecting, listening: Listening, cuts: list[int], session: bytes = SESSION
) -> tuple[Done | None, Done | None]:
    """Let both talk until nothing moves, each piece cut as `cuts` says; what each side ended with."""
    ends: list[Done | None] = [None, None]
    to_listening, to_connecting = bytearray(), bytearray()
    pieces = iter(cuts)
    while True:
        to_listening += connecting.to_send()
        to_connecting += listening.to_send()
        moved = False
        limit = min(next(pieces, 1 << 20), listening.wanted())
        if to_listening and limit > 0:
            data = bytes(to_listening[:limit])
            del to_listening[:limit]
            moved = True
            match listening.receive(data):
                case Claimed():
                    listening.welcome(session)
                case Proven():
                    ends[1] = listening.accept()
        limit = min(next(pieces, 1 << 20), connecting.wanted())
        if to_connecting and limit > 0:
            data = bytes(to_connecting[:limit])
            del to_connecting[:limit]
            moved = True
            ends[0] = connecting.receive(data) or ends[0]
        if not moved and not to_listening and not to_connecting:
            return ends[0], ends[1]


def pair(connecting_secret: bytes = SECRET, listening_secret: bytes = SECRET) -> tuple[Connecting, Listening]:
    return (
        Connecting(connecting_secret, Side.DESTINATION, Role.CONTROL, NO_SESSION, 1),
        Listening(listening_secret, Side.SOURCE),
    )


@given(st.lists(st.integers(1, 200), max_size=60))
def test_both_end_authenticated_however_the_stream_is_cut(cuts: list[int]) -> None:
    connecting, listening = pair()
    mine, theirs = pump(connecting, listening, cuts)
    assert mine is not None
    assert theirs is not None
    assert mine.hello.session == SESSION
    assert theirs.hello.role == mine.hello.role == Role.CONTROL
    assert connecting.wanted() == listening.wanted() == 0


@pytest.mark.parametrize("secrets", [(SECRET, bytes(32)), (b"", SECRET), (SECRET, b"")])
def test_another_secret_is_another_ticket_for_both(secrets: tuple[bytes, bytes]) -> None:
    connecting, listening = pair(*secrets)
    with pytest.raises(ProtocolError) as here:
        pump(connecting, listening, [])
    assert str(here.value) == (
        "the peer is at fault, the handshake: the peer: has another ticket; "
        "use the ticket that the listening side printed this time"
    )
    assert here.value.code == ExitCode.BAD_TICKET
    with pytest.raises(ProtocolError, match="has another ticket"):
        listening.receive(connecting.to_send())


def test_no_secret_on_both_sides_works() -> None:
    assert None not in pump(*pair(b"", b""), [])


def to_reply() -> tuple[Connecting, Listening, bytes]:
    """Up to the listening side's answer."""
    connecting, listening = pair()
    assert isinstance(listening.receive(connecting.to_send()), Claimed)
    listening.welcome(SESSION)
    return connecting, listening, listening.to_send()


def feed(side: Connecting | Listening, data: bytes) -> None:
    while data and (wanted := side.wanted()):
        side.receive(data[:wanted])
        data = data[wanted:]


def test_a_recorded_connection_cannot_be_replayed() -> None:
    connecting, listening = pair()
    hello = connecting.to_send()
    listening.receive(hello)
    listening.welcome(SESSION)
    feed(connecting, listening.to_send())
    proof = connecting.to_send()
    later = Listening(SECRET, Side.SOURCE)
    later.receive(hello)
    later.welcome(SESSION)
    with pytest.raises(ProtocolError, match="has another ticket"):
        feed(later, proof)


def test_a_recorded_answer_cannot_be_replayed() -> None:
    _, _, answer = to_reply()
    connecting, _ = pair()
    connecting.to_send()
    with pytest.raises(ProtocolError, match="has another ticket"):
        feed(connecting, answer)


def test_a_proof_is_not_worth_anything_sent_back() -> None:
    _, listening, answer = to_reply()
    with pytest.raises(ProtocolError, match="has another ticket"):
        feed(listening, answer[:8] + answer[-32:])


def answer_hello(connecting: Connecting, listening: Listening, hello: bytes) -> None:
    if isinstance(listening.receive(hello), Claimed):
        listening.welcome(SESSION)
        feed(connecting, listening.to_send())


@pytest.mark.parametrize("position", range(64))
def test_no_byte_of_the_hello_can_be_changed(position: int) -> None:
    connecting, listening = pair()
    hello = bytearray(connecting.to_send())
    hello[position] ^= 0x80
    with pytest.raises(ProtocolError):
        answer_hello(connecting, listening, bytes(hello))


@given(st.integers(0, 103), st.integers(1, 255))
def test_no_byte_of_the_answer_can_be_changed(position: int, change: int) -> None:
    connecting, _, answer = to_reply()
    if position in range(1, 8):
        return  # of a welcome only the verdict itself has a meaning
    changed = bytearray(answer)
    changed[position] ^= change
    with pytest.raises(ProtocolError):
        feed(connecting, bytes(changed))


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_one_error(garbage: bytes) -> None:
    listening = Listening(SECRET, Side.SOURCE)
    if garbage[:1] != b"L":
        with pytest.raises(ProtocolError, match="does not speak this protocol"):
            listening.receive(garbage[: listening.wanted()])
        assert listening.to_send() == b""
    connecting, _ = pair()
    if garbage[0] not in list(Verdict) and len(garbage) >= 8:
        with pytest.raises(ProtocolError, match="does not speak this protocol"):
            connecting.receive(garbage[:8])


def test_the_other_version_is_named_on_both_sides() -> None:
    connecting, listening = pair()
    hello = bytearray(connecting.to_send())
    hello[8:10] = (7).to_bytes(2, "little")
    with pytest.raises(ProtocolError, match=f"it speaks version 7 of the protocol, this side version {VERSION}"):
        listening.receive(bytes(hello[:10]))
    answer = bytearray(listening.to_send())
    answer[2:4] = (7).to_bytes(2, "little")
    with pytest.raises(ProtocolError, match=f"it speaks version 7 of the protocol, this side version {VERSION}"):
        connecting.receive(bytes(answer))


def test_two_sources_are_told_apart() -> None:
    connecting = Connecting(SECRET, Side.SOURCE, Role.CONTROL, NO_SESSION, 1)
    listening = Listening(SECRET, Side.SOURCE)
    with pytest.raises(ProtocolError, match="it is a source too; run lm-serve on the source"):
        listening.receive(connecting.to_send())
    with pytest.raises(ProtocolError, match="is the same side; run lm-serve on the source"):
        connecting.receive(listening.to_send())


@pytest.mark.parametrize("verdict", [Verdict.OTHER_SESSION, Verdict.TAKEN])
def test_a_refusal_reaches_the_peer(verdict: Verdict) -> None:
    connecting, listening = pair()
    listening.receive(connecting.to_send())
    assert "start both commands again" in str(listening.refuse(verdict))
    with pytest.raises(ProtocolError):
        connecting.receive(listening.to_send())


def test_another_session_in_the_answer_is_refused() -> None:
    connecting = Connecting(SECRET, Side.DESTINATION, Role.BULK, b"T" * 16, 1)
    listening = Listening(SECRET, Side.SOURCE)
    listening.receive(connecting.to_send())
    listening.welcome(SESSION)
    with pytest.raises(ProtocolError, match="does not answer ours"):
        feed(connecting, listening.to_send())


@pytest.mark.parametrize("length", range(64))
def test_a_hello_cut_short_is_one_error(length: int) -> None:
    connecting, listening = pair()
    hello = connecting.to_send()
    if length:
        listening.receive(hello[:length])
    with pytest.raises(ProtocolError, match=f"with {64 - length} bytes of the handshake missing"):
        listening.receive(b"")
