"""Control messages: framing cut at every byte, limits, and the channel over a real socket."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from live_migration._lm import lib
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import MOST_ODD, ControlChannel, Odd
from live_migration.wire.decision import Hashes
from live_migration.wire.errors import ConnectionLost, LocalError, ProtocolError, Refused, RemoteError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.host import snapshot_host
from live_migration.wire.messages import (
    HEADER,
    LONGEST,
    MOST_VALUES,
    PLAIN,
    ZSTD,
    Abort,
    Blockers,
    Description,
    Final,
    Finished,
    FrameReader,
    Freezing,
    Goodbye,
    Greeting,
    Message,
    Ping,
    Pong,
    Prepared,
    Progress,
    Pushed,
    Ready,
    Resumed,
    Signal,
    Staged,
    abort_of,
    encode,
    error_of,
    pack,
    unpack,
)
from live_migration.wire.strategy import Parameters
from live_migration.wire.stream import Stream

EVERY: list[Message] = [
    Greeting(host=snapshot_host({"xcr0": 7}, ""), parameters=Parameters(strategy="hybrid")),
    Description(payload=pack({"a": [1, 2]}), decision=Hashes(commit=bytes(32), no=b"n" * 32)),
    Blockers(found=[Blocker("descriptor 3", "a terminal", "redirect it")]),
    Staged(pid=7),
    Pushed(push=1),
    Freezing(),
    Prepared(),
    Final(payload=pack([1, b"\0" * 100_000])),
    Ready(),
    Resumed(pid=7, resume_ns=3),
    Signal(thread=0, number=15),
    Progress(pages=1, pages_total=2, faults=3),
    Finished(),
    Goodbye(),
    Abort(step="staging", object="port 80", cause="it is taken", remedy="free it"),
    Ping(number=1),
    Pong(number=1),
]


def read_all(stream: bytes, cuts: list[int]) -> list[Message]:
    reader, found, pieces = FrameReader(), [], iter(cuts)
    while stream:
        size = min(next(pieces, 1 << 20), reader.wanted())
        message = reader.receive(stream[:size])
        if message is not None:
            found.append(message)
        stream = stream[size:]
    assert reader.is_empty()
    return found


@pytest.mark.parametrize("compress", [None, True, False])
@given(cuts=st.lists(st.integers(1, 300), max_size=80))
def test_every_message_survives_any_cut(compress: bool | None, cuts: list[int]) -> None:
    stream = b"".join(encode(message, compress=compress) for message in EVERY)
    assert read_all(stream, cuts) == EVERY


def test_large_ones_are_compressed_and_small_ones_not() -> None:
    numbers = [number * 4096 for number in range(100_000)]
    assert encode(Final(payload=pack(numbers)))[8] == ZSTD
    assert encode(Freezing())[8] == PLAIN


def test_more_than_a_message_can_be_is_not_sent() -> None:
    too_long, too_many = Final(payload=pack(bytes(LONGEST))), Final(payload=pack([0] * MOST_VALUES))
    for message, cause in ((too_long, f"at most {LONGEST} are possible"), (too_many, f"more than {MOST_VALUES}")):
        with pytest.raises(LocalError, match=f"what the other side is to be told .Final.: it has .*{cause}") as caught:
            encode(message)
        assert caught.value.code == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (bytes(12), "its form 0 does not exist"),
        (HEADER.pack(1, 1, 3, bytes(3)), "its form 3 does not exist"),
        (HEADER.pack(LONGEST + 1, LONGEST + 1, 1, bytes(3)), f"at most {LONGEST} are possible"),
        (HEADER.pack(10, LONGEST + 1, 2, bytes(3)), f"at most {LONGEST} are possible"),
        (HEADER.pack(2300, 2300 * 64 + 1, 2, bytes(3)), "its 2300 bytes claim to become 147201, 147200 are possible"),
        (HEADER.pack(10, 11, 1, bytes(3)), "its two lengths differ"),
        (HEADER.pack(0, 0, 1, bytes(3)), "bytes long"),
        (HEADER.pack(1, 1, 1, bytes(3)) + b"\xc1", "it cannot be read"),
        (HEADER.pack(4, 9, 2, bytes(3)) + b"abcd", "it cannot be decompressed"),
        (HEADER.pack(1, 1, 1, bytes(3)) + b"\x80", "it cannot be read: Object missing required field `kind`"),
    ],
)
def test_a_frame_that_cannot_be(frame: bytes, cause: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_all(frame, [])
    assert cause in str(caught.value)
    assert str(caught.value).startswith("the peer is at fault, the control connection: a message: ")


def test_a_decompression_bomb_stays_small() -> None:
    plain = msgspec.msgpack.encode(Final(payload=pack(bytes(32 << 20))))
    packed = zstandard.ZstdCompressor().compress(plain)
    for claimed, cause in ((1000, "not what its header says"), (len(plain), "bytes claim to become")):
        with pytest.raises(ProtocolError, match=cause):
            read_all(HEADER.pack(len(packed), claimed, ZSTD, bytes(3)) + packed, [])
    # What compresses better than a message may goes as it is.
    assert encode(Final(payload=pack(bytes(1 << 20))))[8] == PLAIN


def test_what_a_message_becomes_is_bounded() -> None:
    """Every value of it is an object here, of a hundred bytes or so."""
    hosts: list[dict[str, object]] = [{}, {"host": {"cpu": {"x": [{}] * 1000}}}]
    for host in hosts:
        body = msgspec.msgpack.encode({"kind": "greeting", **host, "more": [[]] * MOST_VALUES})
        with pytest.raises(ProtocolError, match=f"more than {MOST_VALUES} values"):
            read_all(HEADER.pack(len(body), len(body), PLAIN, bytes(3)) + body, [])
    greeting = msgspec.to_builtins(EVERY[0])
    greeting["host"]["cpu"] = {"x": [{}]}
    body = msgspec.msgpack.encode(greeting)
    with pytest.raises(ProtocolError, match=r"Expected `str | array`, got `object` - at `\$.host.cpu"):
        read_all(HEADER.pack(len(body), len(body), PLAIN, bytes(3)) + body, [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def values_of(value: object) -> int:
    """How many values a value consists of."""
    if isinstance(value, dict):
        return 1 + sum(1 + values_of(one) for one in value.values())
    return 1 + sum(map(values_of, value)) if isinstance(value, list) else 1


@given(VALUES, st.integers(0, 70_000))
def test_values_are_counted(value: object, length: int) -> None:
    for one in (value, [value] * 20, "x" * length, bytes(length), [None] * length):
        body = msgspec.msgpack.encode(one)
        assert lib.lm_count_values(body, len(body), MOST_VALUES) == values_of(one)
        assert lib.lm_count_values(body, len(body) - 1, MOST_VALUES) == -errno.EPROTO
        assert lib.lm_count_values(body + b"\0", len(body) + 1, MOST_VALUES) == -errno.EPROTO


def test_counting_ends_early() -> None:
    body = msgspec.msgpack.encode([[0, 1]] * 1000)
    assert lib.lm_count_values(body, len(body), 10) == 11
    for bad in (b"", b"\xc1", b"\xc7\x00\x01", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdc\0"):
        assert lib.lm_count_values(bad, len(bad), 10) == -errno.EPROTO


@given(st.sampled_from(EVERY), st.data())
def test_a_changed_byte_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    reader, stream = FrameReader(), bytes(frame)
    try:
        while stream and (size := min(reader.wanted(), len(stream))):
            reader.receive(stream[:size])
            stream = stream[size:]
    except ProtocolError as error:
        assert error.code == ExitCode.PROTOCOL  # noqa: PT017


def test_unknown_fields_are_skipped_and_unknown_kinds_are_not() -> None:
    body = msgspec.msgpack.encode({"kind": "freezing", "later": 1})
    assert read_all(HEADER.pack(len(body), len(body), 1, bytes(3)) + body, []) == [Freezing()]
    body = msgspec.msgpack.encode({"kind": "teleport"})
    with pytest.raises(ProtocolError, match="Invalid value 'teleport'"):
        read_all(HEADER.pack(len(body), len(body), 1, bytes(3)) + body, [])


def test_payloads() -> None:
    blocker = Blocker("a", "b", "c")
    assert unpack(pack(blocker), Blocker) == blocker
    with pytest.raises(ProtocolError, match="its payload is no Blocker"):
        unpack(pack(5), Blocker)


def test_an_abort_carries_the_error_to_the_other_side() -> None:
    error = LocalError(step="freezing", object="process 12", cause="5 s passed", remedy="wait", code=ExitCode.TIMEOUT)
    there = error_of(abort_of(error))
    assert str(there) == "the other side failed, freezing: process 12: 5 s passed; wait"
    assert there.code == ExitCode.TIMEOUT
    nasty = Abort(step="a\n\x1b[2J", object="b", cause="c" * 10_000, remedy="d", code=0)
    assert "\x1b" not in str(error_of(nasty))
    assert len(str(error_of(nasty))) < 1000
    assert error_of(nasty).code == ExitCode.PEER_FAILED


@pytest.fixture
def pair() -> Iterator[tuple[ControlChannel, ControlChannel, socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    yield ControlChannel(Stream(first)), ControlChannel(Stream(second)), first, second
    first.close()
    second.close()


Pair = tuple[ControlChannel, ControlChannel, socket.socket, socket.socket]


def test_messages_over_a_socket(pair: Pair) -> None:
    here, there, *_ = pair
    sender = threading.Thread(target=here.send_bytes, args=[b"".join(map(encode, EVERY))])
    sender.start()
    expected = [message for message in EVERY if not isinstance(message, Ping | Pong)]
    assert [there.receive(10) for _ in expected] == expected
    sender.join()
    with pytest.raises(LocalError, match=r"nothing came for 0\.05 s") as caught:
        there.receive(0.05)
    assert caught.value.code == ExitCode.TIMEOUT


def test_a_wait_that_ran_out_loses_nothing(pair: Pair) -> None:
    here, there, first, _ = pair
    frame = encode(Staged(pid=7))
    first.sendall(frame[:15])
    with pytest.raises(LocalError):
        there.receive(0.05)
    first.sendall(frame[15:])
    here.send(Ready())
    assert there.expect(Staged, 10) == Staged(pid=7)
    assert there.expect(Ready, 10) == Ready()


def test_what_was_not_expected(pair: Pair) -> None:
    here, there, first, second = pair
    here.send(Abort(step="staging", object="port 80", cause="it is taken", remedy="free it"))
    with pytest.raises(RemoteError, match="the other side failed, staging: port 80: it is taken; free it"):
        there.expect(Ready, 10)
    here.send(Blockers(found=[Blocker("a", "b", "c")]))
    with pytest.raises(Refused, match="a: b; c"):
        there.expect(Ready, 10)
    here.send(Freezing())
    with pytest.raises(ProtocolError, match="it is a Freezing where a Ready is due"):
        there.expect(Ready, 10)
    first.sendall(b"\1")
    first.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="it was closed in the middle of a message"):
        there.expect(Ready, 10)
    second.close()
    with pytest.raises(ConnectionLost, match="broken pipe"):
        here.send(Freezing())


def test_an_orderly_end_is_told_from_a_broken_one(pair: Pair) -> None:
    _, there, first, _ = pair
    first.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionLost, match="it was closed;"):
        there.receive(10)


ODD = [
    (encode(Signal(thread=0, number=1 << 40)), "Expected `int` <= 64"),
    (encode(Signal(thread=-1, number=15)), "Expected `int` >= 0"),
    (encode(Resumed(pid=0, resume_ns=1)), "Expected `int` >= 1"),
    (encode(Progress(pages=-1, pages_total=1, faults=1)), "Expected `int` >= 0"),
    (encode(Ready()), "a Ready is not due any more"),
    (encode(Abort(step="a", object="b", cause="c", remedy="d")), "an Abort is not due any more"),
    (HEADER.pack(1, 1, PLAIN, bytes(3)) + b"\xc1", "it cannot be read"),
    (HEADER.pack(4, 9, ZSTD, bytes(3)) + b"abcd", "it cannot be decompressed"),
]


@pytest.mark.parametrize(("frame", "cause"), ODD)
def test_after_commit_an_odd_message_is_passed_over(pair: Pair, frame: bytes, cause: str) -> None:
    here, there, first, _ = pair
    first.sendall(frame)
    here.send(Goodbye())
    odd = there.hear(Goodbye, Signal, Resumed, Progress)
    assert isinstance(odd, Odd)
    assert cause in odd.cause
    assert there.hear(Goodbye) == Goodbye()
    assert there.hear(Goodbye) is None, "nothing is there"
    first.sendall(frame[:5])
    assert there.hear(Goodbye) is None, "it is not whole yet"
    first.sendall(frame[5:])
    assert isinstance(there.hear(Goodbye), Odd)


def test_after_commit_not_everything_odd_is_told(pair: Pair) -> None:
    here, there, *_ = pair
    for _ in range(MOST_ODD + 5):
        here.send(Ready())
    here.send(Goodbye())
    told = [there.hear(Goodbye) for _ in range(MOST_ODD + 6)]
    assert sum(isinstance(one, Odd) for one in told) == MOST_ODD
    assert told[-1] == Goodbye()


def test_after_commit_the_end_is_told(pair: Pair) -> None:
    here, there, first, _ = pair
    here.send(Ping(number=1))
    assert there.hear(Goodbye) is None
    assert here.hear(Goodbye) is None, "the Pong"
    first.sendall(bytes(HEADER.size))
    with pytest.raises(ProtocolError, match="its form 0 does not exist"):
        there.hear(Goodbye)
    first.close()


def test_after_commit_a_lost_connection_is_told(pair: Pair) -> None:
    _, there, first, _ = pair
    first.close()
    with pytest.raises(ConnectionLost):
        there.hear(Goodbye)


def test_a_peer_that_does_not_read(pair: Pair) -> None:
    with pytest.raises(LocalError, match=r"it took no bytes for 0\.1 s"):
        pair[0].send_bytes(bytes(8 << 20), timeout=0.1)


def test_the_round_trip_is_measured_while_the_other_side_receives(pair: Pair) -> None:
    here, there, *_ = pair
    answers: list[Message] = []
    receiver = threading.Thread(target=lambda: answers.append(there.receive(10)))
    receiver.start()
    assert 0 < here.measure_round_trip() == here.round_trip_ns < 10**9
    here.send(Freezing())
    receiver.join()
    assert answers == [Freezing()]
