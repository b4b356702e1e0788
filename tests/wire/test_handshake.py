"""The handshake without sockets: cut at every byte, with wrong secrets, sent back, with other versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_migration.wire.errors import ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import (
    KNOCK_BYTES,
    NO_SESSION,
    VERSION,
    Connecting,
    Done,
    Form,
    Hello,
    Listening,
    Role,
    Side,
    Verdict,
    check_beginning,
    encode_knock,
    encode_verdict,
    parse_knock,
    read_refusal,
)
from live_migration.wire.keys import derive_keys, hkdf

SECRET = bytes(range(32))
KEYS = derive_keys(SECRET, Side.DESTINATION, Role.CONTROL)
SESSION = b"S" * 16
SESSION_SECRET = b"s" * 32
EXPORTED = b"E" * 32
HELLO = Hello(Side.DESTINATION, Role.CONTROL, 1, NO_SESSION)


def feed(side: Connecting | Listening, data: bytes, cuts: list[int] | None = None) -> Done | None:
    """Give it these bytes, each piece cut as `cuts` says; the last event."""
    event, pieces = None, iter(cuts or [])
    while data and (wanted := side.wanted()):
        piece = data[: min(wanted, next(pieces, wanted))]
        event = side.receive(piece)
        data = data[len(piece) :]
    return event


def listening(secret: bytes = SECRET, exported: bytes = EXPORTED) -> Listening:
    return Listening(derive_keys(secret, Side.DESTINATION, Role.CONTROL), exported, Side.SOURCE, Role.CONTROL)


def answer(exported: bytes = EXPORTED) -> bytes:
    """What the listening side says to HELLO."""
    side = listening(exported=exported)
    done = feed(side, Connecting(KEYS, exported, HELLO).hello)
    assert done
    return side.welcome(done.hello, SESSION, SESSION_SECRET)


def test_hkdf_is_that_of_the_rfc() -> None:
    """RFC 5869, appendix A.1."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    made = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf(b"\x0b" * 22, salt, info, 42).hex() == made


def test_every_side_role_and_secret_has_keys_of_its_own() -> None:
    made = [derive_keys(secret, side, role) for secret in (SECRET, b"") for side in Side for role in Role]
    assert len({keys.tag for keys in made}) == len({keys.key for keys in made}) == len(made)
    assert not any(keys.key in SECRET + keys.tag or keys.tag in SECRET for keys in made)


@given(st.lists(st.integers(1, 200), max_size=60))
def test_both_end_authenticated_however_the_stream_is_cut(cuts: list[int]) -> None:
    connecting, other = Connecting(KEYS, EXPORTED, HELLO), listening()
    theirs = feed(other, connecting.hello, cuts)
    assert theirs is not None
    mine = feed(connecting, other.welcome(theirs.hello, SESSION, SESSION_SECRET), cuts)
    assert mine == Done(Hello(Side.SOURCE, Role.CONTROL, 1, SESSION), SESSION_SECRET)
    assert theirs.hello == HELLO
    assert connecting.wanted() == other.wanted() == 0


@pytest.mark.parametrize("other", [listening(bytes(32)), listening(exported=b"F" * 32)])
def test_a_hello_under_another_secret_or_in_another_tls_session_proves_nothing(other: Listening) -> None:
    with pytest.raises(ProtocolError) as caught:
        feed(other, Connecting(KEYS, EXPORTED, HELLO).hello)
    assert str(caught.value) == (
        "the peer is at fault, the handshake: the peer: has another ticket; "
        "use the ticket that the listening side printed this time"
    )
    assert caught.value.code == ExitCode.BAD_TICKET


def test_an_answer_of_another_tls_session_proves_nothing() -> None:
    with pytest.raises(ProtocolError, match="has another ticket"):
        feed(Connecting(KEYS, b"F" * 32, HELLO), answer())


def test_a_hello_is_not_worth_anything_sent_back() -> None:
    connecting = Connecting(KEYS, EXPORTED, HELLO)
    with pytest.raises(ProtocolError, match="has another ticket"):
        feed(connecting, encode_verdict(Verdict.WELCOME) + connecting.hello + bytes(32))


@pytest.mark.parametrize("position", range(64))
def test_no_byte_of_the_hello_can_be_changed(position: int) -> None:
    hello = bytearray(Connecting(KEYS, EXPORTED, HELLO).hello)
    hello[position] ^= 0x80
    with pytest.raises(ProtocolError):
        feed(listening(), bytes(hello))


@given(st.integers(0, 71), st.integers(1, 255))
def test_no_byte_of_the_answer_can_be_changed(position: int, change: int) -> None:
    if position in range(1, 8):
        return  # of a welcome only the verdict itself has a meaning
    changed = bytearray(answer())
    changed[position] ^= change
    with pytest.raises(ProtocolError):
        feed(Connecting(KEYS, EXPORTED, HELLO), bytes(changed))


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_one_error(garbage: bytes) -> None:
    if garbage[:1] != b"L":
        with pytest.raises(ProtocolError, match="does not speak this protocol"):
            check_beginning(garbage)
    if garbage[0] not in list(Verdict) or garbage[0] == Verdict.WELCOME:
        assert "does not speak this protocol" in str(read_refusal(garbage))


def test_the_other_version_is_named_on_both_sides() -> None:
    knock = bytearray(encode_knock(Form.TICKET, KEYS))
    assert len(knock) == KNOCK_BYTES
    knock[8:10] = (7).to_bytes(2, "little")
    said = f"it speaks version 7 of the protocol, this side version {VERSION}"
    with pytest.raises(ProtocolError, match=said):
        check_beginning(bytes(knock[:10]))
    refusal = bytearray(encode_verdict(Verdict.OTHER_VERSION))
    refusal[2:4] = (7).to_bytes(2, "little")
    assert said in str(read_refusal(bytes(refusal)))


def test_a_knock_names_its_form() -> None:
    assert parse_knock(encode_knock(Form.TICKET, KEYS), Form.TICKET) == KEYS.tag
    assert parse_knock(encode_knock(Form.NONE, KEYS), Form.TICKET) is Verdict.OTHER_FORM


@pytest.mark.parametrize("verdict", [Verdict.OTHER_SESSION, Verdict.TAKEN, Verdict.SAME_SIDE])
def test_a_refusal_reaches_the_peer(verdict: Verdict) -> None:
    with pytest.raises(ProtocolError) as caught:
        feed(Connecting(KEYS, EXPORTED, HELLO), encode_verdict(verdict))
    assert str(caught.value) == str(read_refusal(encode_verdict(verdict)))


def test_another_session_in_the_answer_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not answer ours"):
        feed(Connecting(KEYS, EXPORTED, Hello(Side.DESTINATION, Role.CONTROL, 1, b"T" * 16)), answer())


def test_a_hello_for_another_role_than_its_key_is_refused() -> None:
    hello = Hello(Side.DESTINATION, Role.BULK, 1, SESSION)
    with pytest.raises(ProtocolError, match="for another role than its key"):
        feed(listening(), Connecting(KEYS, EXPORTED, hello).hello)


@pytest.mark.parametrize("length", range(64))
def test_a_hello_cut_short_is_one_error(length: int) -> None:
    other = listening()
    feed(other, Connecting(KEYS, EXPORTED, HELLO).hello[:length])
    with pytest.raises(ProtocolError, match=f"with {64 - length} bytes of the handshake missing"):
        other.receive(b"")
