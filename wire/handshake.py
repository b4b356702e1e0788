"""The opening of every connection, without I/O: bytes in, events out.

    connecting side                              listening side
    HELLO                    --------------->
                             <---------------    VERDICT welcome, HELLO, PROOF
    VERDICT welcome, PROOF   --------------->
                             <---------------    VERDICT welcome
    (the connection now carries what its role says: control messages, or the page stream)

A VERDICT other than welcome is a refusal: the sender closes after it. All numbers are little endian.

    HELLO, 64 bytes                                 VERDICT, 8 bytes
    0   8   "LMIGRATE"                              0  u8   verdict (0 is invalid)
    8   u16 version of the protocol (0 is invalid)  1  u8   0
    10  u8  side: 1 source, 2 destination           2  u16  the sender's version of the protocol
    11  u8  role: 1 control, 2 fault, 3 bulk        4  u32  0
    12  u32 attempt, from 1                         PROOF, 32 bytes: HMAC-SHA256, see below
    16  16  session
    32  32  nonce, fresh for every connection

The first ten bytes of a HELLO and the whole VERDICT are the same in every version, so that two versions
can tell each other that they differ. There is no negotiation: both hosts run the same version.

Each side proves that it has the ticket's secret by HMAC-SHA256(secret, label + the connecting side's HELLO
+ the listening side's HELLO). Each direction has its own label. So a proof covers both nonces, the session,
the role, the attempt, the version and the sides: nobody can replay it on another connection, send it back to
its maker, or move it to another role. The secret itself never travels.

The listening side chooses the session's id, 16 random bytes. A CONTROL connection of the first attempt
sends 16 zero bytes instead, and learns the id from the answer; all others must name it. The listening side
lets in only connections of this one session, each role once in an attempt.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
from dataclasses import dataclass

from live_migration.wire.errors import ProtocolError
from live_migration.wire.exit_codes import ExitCode

MAGIC = b"LMIGRATE"
VERSION = 2
NONCE_BYTES = 32
SESSION_BYTES = 16
NO_SESSION = bytes(SESSION_BYTES)
_HELLO = struct.Struct("<8sHBBI16s32s")
_VERDICT = struct.Struct("<BBHI")
_FIXED_IN_ALL_VERSIONS = 10
_PROOF_BYTES = 32
_LABEL_OF_CONNECTING = b"lm-proof of the connecting side\0"
_LABEL_OF_LISTENING = b"lm-proof of the listening side\0"


class Role(enum.IntEnum):
    """What a connection is for."""

    CONTROL = 1
    FAULT = 2
    BULK = 3


class Side(enum.IntEnum):
    """Which end of the migration somebody is, whoever listens."""

    SOURCE = 1
    DESTINATION = 2


class Verdict(enum.IntEnum):
    """What one side says to the other's last words."""

    WELCOME = 1
    OTHER_VERSION = 2
    WRONG_TICKET = 3
    SAME_SIDE = 4
    OTHER_SESSION = 5
    TAKEN = 6
    MALFORMED = 7


_REFUSALS = {
    Verdict.OTHER_VERSION: ("speaks another version of the protocol", "install the same version on both"),
    Verdict.WRONG_TICKET: ("has another ticket", "use the ticket that the listening side printed this time"),
    Verdict.SAME_SIDE: ("is the same side", "run lm-serve on the source and lm-restore on the destination"),
    Verdict.OTHER_SESSION: ("knows another session", "start both commands again"),
    Verdict.TAKEN: ("is already busy with another peer", "wait for it to end, or start another one"),
    Verdict.MALFORMED: ("did not understand the handshake", "install the same version on both"),
}


@dataclass(frozen=True)
class Hello:
    """The first message of a side."""

    side: Side
    role: Role
    attempt: int
    session: bytes
    nonce: bytes

    def encode(self) -> bytes:
        return _HELLO.pack(MAGIC, VERSION, self.side, self.role, self.attempt, self.session, self.nonce)


@dataclass(frozen=True)
class Claimed:
    """Event of the listening side: a HELLO came, not yet proven. Answer with `welcome` or `refuse`."""

    hello: Hello


@dataclass(frozen=True)
class Proven:
    """Event of the listening side: the peer has the secret. Answer with `accept` or `refuse`."""

    hello: Hello


@dataclass(frozen=True)
class Done:
    """Event: the connection is authenticated, both ways. `hello` is the peer's."""

    hello: Hello


def wrong(cause: str, remedy: str, code: ExitCode = ExitCode.PROTOCOL) -> ProtocolError:
    """The error of a handshake."""
    return ProtocolError(step="the handshake", object="the peer", cause=cause, remedy=remedy, code=code)


def _refused(verdict: int, version: int) -> ProtocolError:
    """What the peer's refusal means here."""
    if verdict == Verdict.OTHER_VERSION:
        return _other_version(version)
    if verdict not in _REFUSALS:
        return wrong("it does not speak this protocol", "check that the port is the one of the ticket")
    cause, remedy = _REFUSALS[Verdict(verdict)]
    return wrong(cause, remedy, ExitCode.BAD_TICKET if verdict == Verdict.WRONG_TICKET else ExitCode.PROTOCOL)


def _other_version(version: int) -> ProtocolError:
    cause = f"it speaks version {version} of the protocol, this side version {VERSION}"
    return wrong(cause, "install the same version on both")


def _proof(secret: bytes, label: bytes, connecting: bytes, listening: bytes) -> bytes:
    return hmac.digest(secret, label + connecting + listening, "sha256")


class _Buffer:
    """Bytes received, handed out in pieces of a known length; never more is asked for than a piece
    lacks.
    """

    def __init__(self) -> None:
        self.held = bytearray()

    def take(self, length: int) -> bytes | None:
        if len(self.held) < length:
            return None
        piece = bytes(self.held[:length])
        del self.held[:length]
        return piece


def _check_beginning(held: bytes) -> None:
    """Refuse garbage and other versions as early as their bytes show it."""
    if not MAGIC.startswith(held[: len(MAGIC)]):
        raise wrong("it does not speak this protocol", "check that the port is the one of the ticket")
    if len(held) >= _FIXED_IN_ALL_VERSIONS:
        version = int.from_bytes(held[8:10], "little")
        if version != VERSION:
            raise _other_version(version)


def _parse_hello(data: bytes, own_side: Side) -> Hello:
    _, _, side, role, attempt, session, nonce = _HELLO.unpack(data)
    if side not in iter(Side) or role not in iter(Role) or attempt == 0:
        cause = f"its hello makes no sense (side {side}, role {role}, attempt {attempt})"
        raise wrong(cause, "install the same version on both")
    if side == own_side:
        cause, remedy = _REFUSALS[Verdict.SAME_SIDE]
        raise wrong(f"it is a {own_side.name.lower()} too", remedy)
    return Hello(Side(side), Role(role), attempt, session, nonce)


class Connecting:
    """The handshake of the side that connects.

    `outgoing` holds bytes to send (take them with `to_send`), `wanted` is how many bytes may be read
    at most, `receive` takes them. ProtocolError ends it; what is then in `outgoing` still tells the
    peer why.
    """

    def __init__(self, secret: bytes, side: Side, role: Role, session: bytes, attempt: int) -> None:
        self._secret = secret
        self._hello = Hello(side, role, attempt, session, secrets.token_bytes(NONCE_BYTES))
        self._buffer = _Buffer()
        self._steps = [_VERDICT.size, _HELLO.size, _PROOF_BYTES, _VERDICT.size]
        self._peer: Hello | None = None
        self._peer_bytes = b""
        self._outgoing = bytearray(self._hello.encode())

    def to_send(self) -> bytes:
        """The bytes to send now; they count as sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def wanted(self) -> int:
        """How many more bytes the peer's next words need; 0 when the handshake is over."""
        return self._steps[0] - len(self._buffer.held) if self._steps else 0

    def receive(self, data: bytes) -> Done | None:
        """Take bytes of the peer, at most `wanted()`; empty means that it closed."""
        if not data:
            raise _truncated(self.wanted())
        self._buffer.held += data
        while self._steps and (piece := self._buffer.take(self._steps[0])) is not None:
            self._steps.pop(0)
            event = self._take(piece)
            if event:
                return event
        if len(self._steps) == 3:
            self._watch(bytes(self._buffer.held))
        return None

    def _watch(self, held: bytes) -> None:
        try:
            _check_beginning(held)
        except ProtocolError:
            self._say(Verdict.MALFORMED)
            raise

    def _say(self, verdict: Verdict) -> None:
        self._outgoing += _VERDICT.pack(verdict, 0, VERSION, 0)

    def _take(self, piece: bytes) -> Done | None:
        step = 3 - len(self._steps)
        if step in (0, 3):
            verdict, _, version, _ = _VERDICT.unpack(piece)
            if verdict != Verdict.WELCOME:
                raise _refused(verdict, version)
            if step == 3:
                assert self._peer is not None
                return Done(self._peer)
        elif step == 1:
            self._watch(piece)
            self._take_hello(piece)
        else:
            self._take_proof(piece)
        return None

    def _take_hello(self, piece: bytes) -> None:
        own = self._hello
        try:
            self._peer = _parse_hello(piece, own.side)
            expected = (own.role, own.attempt, self._peer.session if own.session == NO_SESSION else own.session)
            if (self._peer.role, self._peer.attempt, self._peer.session) != expected:
                raise wrong("its hello does not answer ours", "start both commands again")
            if self._peer.session == NO_SESSION or self._peer.nonce == own.nonce:
                raise wrong("its hello is not fresh", "start both commands again")
        except ProtocolError:
            self._say(Verdict.MALFORMED)
            raise
        self._peer_bytes = piece

    def _take_proof(self, piece: bytes) -> None:
        mine = self._hello.encode()
        if not hmac.compare_digest(piece, _proof(self._secret, _LABEL_OF_LISTENING, mine, self._peer_bytes)):
            self._say(Verdict.WRONG_TICKET)
            raise _refused(Verdict.WRONG_TICKET, VERSION)
        self._say(Verdict.WELCOME)
        self._outgoing += _proof(self._secret, _LABEL_OF_CONNECTING, mine, self._peer_bytes)


class Listening:
    """The handshake of the side that listens: `receive` answers with Claimed, then Proven, then Done.

    After Claimed call `welcome` or `refuse`, after Proven `accept` or `refuse`. ProtocolError ends it;
    what is then in `to_send()` still tells the peer why.
    """

    def __init__(self, secret: bytes, side: Side) -> None:
        self._secret = secret
        self._side = side
        self._buffer = _Buffer()
        self._steps = [_HELLO.size, _VERDICT.size, _PROOF_BYTES]
        self._theirs = b""
        self._mine = b""
        self._peer: Hello | None = None
        self._outgoing = bytearray()

    def to_send(self) -> bytes:
        """The bytes to send now; they count as sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def wanted(self) -> int:
        """How many more bytes the peer's next words need; 0 when it is our turn or the handshake is
        over.
        """
        waiting_for_us = self._peer is not None and not self._mine
        return self._steps[0] - len(self._buffer.held) if self._steps and not waiting_for_us else 0

    def receive(self, data: bytes) -> Claimed | Proven | None:
        """Take bytes of the peer, at most `wanted()`; empty means that it closed."""
        if not data:
            raise _truncated(self.wanted())
        self._buffer.held += data
        if self._peer is None:
            self._watch(bytes(self._buffer.held))
        while self._steps and (piece := self._buffer.take(self._steps[0])) is not None:
            self._steps.pop(0)
            event = self._take(piece)
            if event:
                return event
        return None

    def _watch(self, held: bytes) -> None:
        try:
            _check_beginning(held)
        except ProtocolError:
            # Garbage gets no answer; another version of ourselves does.
            if held.startswith(MAGIC):
                self._say(Verdict.OTHER_VERSION)
            raise

    def _say(self, verdict: Verdict) -> None:
        self._outgoing += _VERDICT.pack(verdict, 0, VERSION, 0)

    def _take(self, piece: bytes) -> Claimed | Proven | None:
        if self._peer is None:
            try:
                self._peer = _parse_hello(piece, self._side)
            except ProtocolError:
                same = piece[10] == self._side
                self._say(Verdict.SAME_SIDE if same else Verdict.MALFORMED)
                raise
            self._theirs = piece
            return Claimed(self._peer)
        if len(piece) == _VERDICT.size:
            verdict, _, version, _ = _VERDICT.unpack(piece)
            if verdict != Verdict.WELCOME:
                raise _refused(verdict, version)
            return None
        if not hmac.compare_digest(piece, _proof(self._secret, _LABEL_OF_CONNECTING, self._theirs, self._mine)):
            self._say(Verdict.WRONG_TICKET)
            raise _refused(Verdict.WRONG_TICKET, VERSION)
        return Proven(self._peer)

    def welcome(self, session: bytes) -> None:
        """Answer a Claimed: our hello for this session, and our proof."""
        assert self._peer is not None
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._mine = Hello(self._side, self._peer.role, self._peer.attempt, session, nonce).encode()
        self._say(Verdict.WELCOME)
        self._outgoing += self._mine + _proof(self._secret, _LABEL_OF_LISTENING, self._theirs, self._mine)

    def accept(self) -> Done:
        """Answer a Proven: the connection is the session's."""
        assert self._peer is not None
        self._say(Verdict.WELCOME)
        return Done(self._peer)

    def refuse(self, verdict: Verdict) -> ProtocolError:
        """Answer a Claimed or Proven with a refusal; the error to report here."""
        self._say(verdict)
        reasons = {
            Verdict.OTHER_SESSION: "it names another session",
            Verdict.TAKEN: "this side is busy with another peer",
        }
        return wrong(reasons.get(verdict, f"it was refused ({verdict.name})"), "start both commands again")


def _truncated(missing: int) -> ProtocolError:
    cause = f"it closed the connection with {missing} bytes of the handshake missing"
    return wrong(cause, "look at what the other side says, and that nothing else uses its port")
