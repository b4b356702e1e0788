"""Records: what travels on FAULT and BULK is what was sent, in its order, and anything else ends it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from live_migration._lm import ffi, lib
from live_migration.wire.stream import Stream
from tests.wire.test_stream import Ends, receive_all, send_all, waiting

EXTRA: int = lib.LM_RECORD_EXTRA
LONGEST: int = lib.LM_RECORD_BYTES


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    with made.closing:
        yield made


class Records:
    """One end's records, without a socket."""

    def __init__(self, stream: Stream) -> None:
        made = ffi.new("struct lm_records **")
        error = lib.lm_records_create(stream.link().tls, made)
        if error:
            raise OSError(-error, "no records")
        self.handle = ffi.gc(made[0], lib.lm_records_destroy)
        self.buffer = ffi.new("char[]", 4 * LONGEST)

    def seal(self, *parts: bytes) -> bytes:
        """What is to be sent for these bytes."""
        kept = [ffi.from_buffer(part) for part in parts]
        # struct iovec: an address and a length.
        words = [word for part in kept for word in (int(ffi.cast("uintptr_t", part)), len(part))]
        vector = ffi.new("uintptr_t[]", words)
        at = ffi.new("struct iovec **", ffi.cast("struct iovec *", vector))
        count = ffi.new("int *", len(parts))
        made, size = bytearray(), ffi.new("size_t *")
        while True:
            assert lib.lm_records_seal(self.handle, at, count) == 0
            sealed = lib.lm_records_sealed(self.handle, size)
            if not size[0]:
                return bytes(made)
            # In two steps, as a socket may take it.
            step = (size[0] + 1) // 2
            made += ffi.buffer(sealed, step)
            lib.lm_records_sent(self.handle, step)

    def open(self, sent: bytes, wanted: int = 4 * LONGEST) -> bytes:
        """The text of what has come, read in pieces of `wanted`."""
        got, view, room = bytearray(), memoryview(sent), ffi.new("size_t *")
        while True:
            count = lib.lm_records_open(self.handle, self.buffer, wanted)
            if count > 0:
                got += ffi.buffer(self.buffer, count)
            elif count != -errno.EAGAIN:
                raise OSError(-count, "opening")
            elif not view:
                assert not lib.lm_records_ready(self.handle)
                return bytes(got)
            else:
                place = lib.lm_records_room(self.handle, wanted, room)
                step = min(room[0], len(view))
                ffi.memmove(place, view[:step], step)
                lib.lm_records_filled(self.handle, step)
                view = view[step:]


def pair(ends: Ends) -> tuple[Records, Records]:
    one, other = ends.pair()
    return Records(one), Records(other)


@pytest.mark.parametrize("wanted", [1, 4096, 4 * LONGEST])
def test_what_is_opened_is_what_was_sealed_whatever_its_pieces(ends: Ends, wanted: int) -> None:
    here, there = pair(ends)
    text = bytes(range(256)) * 3
    for parts in ([b"x"], [b"", text, b"", b"end"], [text] * 40, [text * 400, b"y" * (5 * LONGEST)]):
        whole = b"".join(parts) if wanted > 1 else b"".join(parts)[:2000]
        parts = parts if wanted > 1 else [whole]
        for sender, receiver in ((here, there), (there, here)):
            sent = sender.seal(*parts)
            assert len(sent) - len(whole) == EXTRA * -(-len(whole) // LONGEST)
            assert receiver.open(sent, wanted) == whole
    assert here.seal() == here.seal(b"", b"") == b""


def test_the_same_text_never_looks_the_same(ends: Ends) -> None:
    here, there = pair(ends)
    seen = [here.seal(bytes(64)) for _ in range(3)] + [there.seal(bytes(64)) for _ in range(3)]
    for _ in range(lib.LM_RECORDS_OF_A_KEY - 3):
        here.seal(b"0")
    seen += [here.seal(bytes(64)) for _ in range(3)]
    texts = [sent[4:] for sent in seen]
    assert len({text[at : at + 16] for text in texts for at in range(0, 64, 16)}) == 4 * len(texts)


def changed(sent: bytes, place: int) -> bytes:
    return sent[:place] + bytes([sent[place] ^ 1]) + sent[place + 1 :]


def delivered(here: Records, there: Records) -> dict[str, Sequence[bytes]]:
    """What somebody on the way could make of three records."""
    first, second, third = (here.seal(bytes([number]) * 100) for number in range(3))
    back = there.seal(bytes(100))
    return {
        "left out": (second, third),
        "left out later": (first, third),
        "repeated": (first, first),
        "another order": (second, first),
        "turned back": (back,),
        "longer than any": (b"\xff\xff\x01\x00" + first[4:],),
        "none": (bytes(4) + first[4:],),
        "cut": (first[:-1], second),
        "shorter": (changed(first, 0), second),
        **{f"byte {place}": (changed(first, place), second) for place in (1, 4, 50, 103, 104, 119)},
    }


def test_anything_but_what_was_sealed_ends_it(ends: Ends) -> None:
    for case in delivered(*pair(ends)):
        here, there = pair(ends)
        sent = delivered(here, there)[case]
        with pytest.raises(OSError, match="opening") as refused:
            there.open(b"".join(sent) + bytes(1000))
        assert refused.value.errno == errno.EBADMSG, case
        # And it stays so, also for what would have been right.
        with pytest.raises(OSError, match="opening"):
            there.open(here.seal(b"more"))


def test_keys_change_on_both_sides_after_the_same_record(ends: Ends) -> None:
    here, there = pair(ends)
    for number in range(2 * lib.LM_RECORDS_OF_A_KEY // 256 + 2):
        sent = b"".join(here.seal(bytes([at])) for at in range(256))
        assert there.open(sent) == bytes(range(256)), number
    assert here.open(there.seal(b"back")) == b"back"


def test_a_session_becomes_records_once_right_behind_its_last_own(ends: Ends) -> None:
    one, other = ends.pair()
    send_all(one, b"last of TLS")
    sealed = Records(one).seal(b"first record")
    one.socket.send(sealed)
    assert receive_all(other, 11) == b"last of TLS"
    assert Records(other).open(other.socket.recv(1000)) == b"first record"
    for stream in (one, other):
        calls: list[Any] = [lambda s=stream: Records(s), lambda s=stream: s.send(b"x"), lambda s=stream: s.receive(1)]
        for call in calls:
            with pytest.raises(OSError, check=lambda error: error.errno == errno.EALREADY):
                call()


def test_a_session_with_something_unread_does_not_become_records(ends: Ends) -> None:
    one, other = ends.pair()
    send_all(one, bytes(100))
    waiting(other, lambda: other.receive(10))
    with pytest.raises(OSError, match="no records") as refused:
        Records(other)
    assert refused.value.errno == errno.EPROTO
