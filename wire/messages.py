"""What travels on the CONTROL connection, and how it is framed.

Every message is one frame, all numbers little endian:

    0   u32 length      bytes that follow the header, at most LONGEST
    4   u32 unpacked    bytes after decompression, at most LONGEST; equal to `length` in a plain frame
    8   u8  form        1 plain, 2 zstd; 0 is invalid
    9   3   0
    12      the message: MessagePack, a map whose "kind" says which of the structs below it is

What a message may become is bounded before anything is made of it: a compressed one unpacks to at most UNPACKED_LEAST
bytes or MOST_UNPACKED times its own length, and it holds at most MOST_VALUES values (numbers, words, lists, maps), each
of which takes some hundred bytes of memory at most.

Unknown fields are skipped. An unknown kind, or a number out of its range, breaks the protocol. After COMMIT nothing
may fail any more, and such a message is passed over.

What must neither be lost nor come twice after COMMIT has a `serial`, counted from 1 by each side. It is kept until the
other side's Pulse says that it was taken in, and sent again on new connections (wire/again.py). Only the next one is
taken in: one that was taken in already is passed over. 0 is no serial.

docs/protocol.md tells who sends what, and when. The payloads (`msgspec.Raw`) are MessagePack too; their types belong to
the folders above, which decode them with `unpack`.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec
import zstandard

from live_migration._lm import ffi, lib
from live_migration.wire.blockers import Blocker
from live_migration.wire.decision import Hashes
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError, Refused, RemoteError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.host import HostFacts
from live_migration.wire.same_host import Challenge
from live_migration.wire.strategy import AUTO, MOST_ROUNDS, NO_CONVERGENCE, STRATEGIES, Parameters

LONGEST = 64 << 20
COMPRESS_FROM = 64 << 10
UNPACKED_LEAST, MOST_UNPACKED = 64 << 10, 64
MOST_VALUES = 1 << 22
PLAIN, ZSTD = 1, 2
HEADER = struct.Struct("<IIB3s")
NOTHING = msgspec.Raw(b"\xc0")

Payload = TypeVar("Payload")
# Process and thread ids, at most PID_MAX_LIMIT (include/linux/threads.h); 0 where there need not be one.
Pid = Annotated[int, msgspec.Meta(ge=1, le=1 << 22)]
PidOrNone = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
# 1 to _NSIG (signal(7)).
SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=64)]
PushNumber = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Greeting(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="greeting"):
    """Both sides' first message. `parameters` is what the other side needs to know of the options; `challenge`, the
    destination's, asks for a proof that the source is on its host, and `take_addresses` are the addresses that it gets
    with the process.
    """

    host: HostFacts
    parameters: Parameters = Parameters()
    challenge: Challenge | None = None
    take_addresses: tuple[str, ...] = ()


class Description(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="description"):
    """Source: the migration, with its members as they are while they run. `proof` answers the challenge, for the places
    of the members (wire/same_host.py). `decision`: by what the destination will know COMMIT and NO (wire/decision.h).
    """

    payload: msgspec.Raw
    decision: Hashes
    proof: bytes = b""


class Blockers(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="blockers"):
    """Either side: all the blockers. The migration ends here, with this exit code."""

    found: list[Blocker]
    code: int = int(ExitCode.REFUSED)
    step: str = "the preflight"


class Staged(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="staged"):
    """Destination: the husk stands, the source may freeze. `pid` as the destination host sees it. `repairs`:
    established TCP connections are to be described in the end, for the destination makes the same of its own sockets.
    """

    pid: Pid
    repairs: bool = False
    payload: msgspec.Raw = NOTHING


class Pushed(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pushed"):
    """Source: push number `push` went out on BULK; destination: it has arrived and lies in the husk."""

    push: PushNumber
    payload: msgspec.Raw = NOTHING


class Round(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="round"):
    """Source: a round of pages follows on BULK as push number `push`; `payload` has the layouts that have changed."""

    number: Count
    push: PushNumber
    payload: msgspec.Raw = NOTHING


class Freezing(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="freezing"):
    """Source: a freeze comes as soon as the destination is prepared. The message comes again when the freeze does.

    strategy        what it came to be; `resume_at_once`: before the last page has arrived
    correction      a push on BULK as soon as it is frozen, of the rounds' pages that have changed since; 0: none
    payload         the rounds, as the report has them
    """

    strategy: str = ""
    resume_at_once: bool = True
    tracking: str = "none"
    correction: PushNumber = 0
    payload: msgspec.Raw = NOTHING


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="prepared"):
    """Destination: it waits for nothing but the frozen process, and needs its processors for nothing else."""


class Final(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="final"):
    """Source: the migration again, with its members frozen."""

    payload: msgspec.Raw


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ready"):
    """Destination: only the resume is left, and it cannot fail."""

    payload: msgspec.Raw = NOTHING


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="resumed"):
    """Destination: the process runs. `resume_ns`: from receiving COMMIT until then."""

    pid: Pid
    resume_ns: Count
    serial: Count = 0


class Packets(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="packets"):
    """Source, after COMMIT: what came there for connections and listeners that have moved. It is a help: what is
    lost is sent again by its sender.
    """

    packets: Annotated[list[Annotated[bytes, msgspec.Meta(max_length=1 << 16)]], msgspec.Meta(max_length=1 << 10)]


class Hot(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="hot"):
    """Source, after COMMIT: by space, runs of pages that were touched last. They are fetched before all else."""

    payload: msgspec.Raw
    serial: Count = 0


class Signal(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="signal"):
    """Source: a signal that arrived after the freeze, by its number; `thread` 0: for the whole
    process.
    """

    thread: PidOrNone
    number: SignalNumber
    serial: Count = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="progress"):
    """Destination: how many pages have arrived."""

    pages: Count
    pages_total: Count
    faults: Count


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="finished"):
    """Destination: every page has arrived, and the source's copy is not needed any more."""

    payload: msgspec.Raw = NOTHING
    serial: Count = 0


class Goodbye(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="goodbye"):
    """Source: the copy has left. The last message."""

    payload: msgspec.Raw = NOTHING
    serial: Count = 0


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="abort"):
    """Either side, before COMMIT: it gives up, and why."""

    step: str
    object: str
    cause: str
    remedy: str
    code: int = ExitCode.PEER_FAILED


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="ping"):
    """Either side: answer with a Pong of the same number. Never between READY and COMMIT."""

    number: int


class Pong(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pong"):
    """The answer to a Ping."""

    number: int


class Pulse(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="pulse"):
    """Either side, twice a second: it lives, and has taken in the other side's numbered messages up to `heard`."""

    heard: Count = 0


Message = (
    Greeting
    | Description
    | Blockers
    | Staged
    | Pushed
    | Round
    | Freezing
    | Prepared
    | Final
    | Ready
    | Resumed
    | Packets
    | Hot
    | Signal
    | Progress
    | Finished
    | Goodbye
    | Abort
    | Ping
    | Pong
    | Pulse
)
Numbered = Resumed | Hot | Signal | Finished | Goodbye


def pack(value: object) -> msgspec.Raw:
    """A value of a folder above, as a payload. LocalError when it cannot be told, for a name in it is not UTF-8."""
    try:
        return msgspec.Raw(msgspec.msgpack.encode(value))
    except UnicodeEncodeError as error:
        raise LocalError(
            step="describing the process",
            object=error.object,
            cause="this name is not UTF-8",
            remedy="rename it, or let the process close it",
            code=ExitCode.REFUSED,
        ) from None


def unpack(payload: msgspec.Raw, kind: type[Payload]) -> Payload:
    """A payload as a value of type `kind`. ProtocolError if it is none."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise broken(f"its payload is no {kind.__name__}: {error}") from None


def parameters_of(greeting: Greeting) -> Parameters:
    """What the destination wants. ProtocolError for parameters that cannot be."""
    parameters = greeting.parameters
    known = parameters.strategy in (*STRATEGIES, AUTO) and parameters.no_convergence in NO_CONVERGENCE
    times = [limit for limit in (parameters.max_downtime_ms, parameters.round_timeout) if limit is not None]
    limits = 0 <= parameters.rounds <= MOST_ROUNDS and parameters.bandwidth_limit >= 0
    if not known or not limits or any(limit <= 0 for limit in times):
        raise broken("its parameters want what does not exist")
    return parameters


def broken(cause: str) -> ProtocolError:
    """The peer sent something that cannot be."""
    return ProtocolError(
        step="the control connection",
        object="a message",
        cause=cause,
        remedy="install the same version on both hosts",
    )


def encode(message: Message, *, compress: bool | None = None) -> bytes:
    """The frame of a message. By default it is compressed from COMPRESS_FROM bytes on.

    LocalError when it is more than a message can be.
    """
    plain = msgspec.msgpack.encode(message)
    if cause := _too_much(plain):
        raise LocalError(
            step="the control connection",
            object=f"what the other side is to be told ({type(message).__name__})",
            cause=cause,
            remedy="move a process with fewer mappings, threads and descriptors",
            code=ExitCode.REFUSED,
        )
    if compress or (compress is None and len(plain) >= COMPRESS_FROM):
        packed = zstandard.ZstdCompressor(level=1).compress(plain)
        if len(packed) < len(plain) <= _most_unpacked(len(packed)):
            return HEADER.pack(len(packed), len(plain), ZSTD, b"\0\0\0") + packed
    return HEADER.pack(len(plain), len(plain), PLAIN, b"\0\0\0") + plain


def _most_unpacked(length: int) -> int:
    """How many bytes a compressed message of this length may become."""
    return max(UNPACKED_LEAST, MOST_UNPACKED * length)


def _too_much(body: bytes) -> str | None:
    """Why these bytes are more than a message can be, or None."""
    if len(body) > LONGEST:
        return f"it has {len(body)} bytes, at most {LONGEST} are possible"
    # A value takes a byte at least.
    if len(body) > MOST_VALUES:
        count = int(lib.lm_count_values(ffi.from_buffer(body), len(body), MOST_VALUES))
        if count > MOST_VALUES:
            return f"it has more than {MOST_VALUES} values"
    return None


def _decode_body(body: bytes, unpacked: int, form: int) -> Message:
    if form == ZSTD:
        try:
            if zstandard.frame_content_size(body) != unpacked:
                raise broken("its compressed length is not what its header says")
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=unpacked)
        except zstandard.ZstdError as error:
            raise broken(f"it cannot be decompressed ({error})") from None
    if cause := _too_much(body):
        raise broken(cause)
    try:
        message: Message = msgspec.msgpack.decode(body, type=Message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise broken(f"it cannot be read: {error}") from None
    return message


class FrameReader:
    """Bytes in, messages out. It never wants more than the message at hand, so nothing is ever left over."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._length = self._unpacked = self._form = 0

    def wanted(self) -> int:
        """How many bytes are missing until the next message, as far as is known; never 0."""
        if len(self._held) < HEADER.size:
            return HEADER.size - len(self._held)
        return HEADER.size + self._length - len(self._held)

    def is_empty(self) -> bool:
        """Is the stream between two messages?"""
        return not self._held

    def receive(self, data: bytes) -> Message | None:
        """Take at most `wanted()` bytes; the message that they complete. ProtocolError for what is none."""
        self._held += data
        if len(self._held) < HEADER.size:
            return None
        if not self._form:
            self._take_header()
        if len(self._held) < HEADER.size + self._length:
            return None
        body, unpacked, form = bytes(self._held[HEADER.size :]), self._unpacked, self._form
        self._held.clear()
        self._form = 0
        return _decode_body(body, unpacked, form)

    def _take_header(self) -> None:
        length, unpacked, form, zeros = HEADER.unpack(bytes(self._held[: HEADER.size]))
        if form not in (PLAIN, ZSTD) or zeros != b"\0\0\0":
            raise broken(f"its form {form} does not exist")
        if not 0 < length <= LONGEST or not 0 < unpacked <= LONGEST:
            raise broken(f"it claims to be {max(length, unpacked)} bytes long, at most {LONGEST} are possible")
        if form == PLAIN and length != unpacked:
            raise broken("its two lengths differ")
        if form == ZSTD and unpacked > _most_unpacked(length):
            raise broken(f"its {length} bytes claim to become {unpacked}, {_most_unpacked(length)} are possible")
        self._length, self._unpacked, self._form = length, unpacked, form


def abort_of(error: MigrationError) -> Abort:
    """The Abort that tells the peer of an error on this side."""
    return Abort(step=error.step, object=error.object, cause=error.cause, remedy=error.remedy, code=int(error.code))


def error_of(abort: Abort) -> RemoteError:
    """The error that a peer's Abort means here. Its kind of failure is kept where the table has it."""
    own = (ExitCode.OK, ExitCode.USAGE, ExitCode.BUG, ExitCode.INTERRUPTED, ExitCode.TERMINATED)
    kept = [code for code in ExitCode if code not in own]
    code = next((code for code in kept if code == abort.code), ExitCode.PEER_FAILED)
    words = [_one_line(word) for word in (abort.step, abort.object, abort.cause, abort.remedy)]
    return RemoteError(step=words[0], object=words[1], cause=words[2], remedy=words[3], code=code)


def blockers_of(error: Refused) -> Blockers:
    """The message that tells the peer of blockers found on this side."""
    return Blockers(found=list(error.blockers), code=int(error.code), step=error.step)


def refusal_of(message: Blockers) -> Refused:
    """The error that a peer's Blockers mean here."""
    kept = (ExitCode.FILES, ExitCode.NO_PERMISSION)
    code = next((code for code in kept if code == message.code), ExitCode.REFUSED)
    found = [Blocker(*(_one_line(word) for word in (one.object, one.cause, one.remedy))) for one in message.found]
    return Refused(found, step=f"the other side, {_one_line(message.step)}", code=code, by_peer=True)


def _one_line(text: str) -> str:
    """A peer's words as they may be shown on a terminal: printable, and not endless."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])
