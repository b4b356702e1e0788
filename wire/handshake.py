"""The opening of every connection, without I/O: bytes in, events out.

    connecting side                              listening side
    KNOCK                    --------------->
    TLS 1.3                  <-------------->    (with --insecure there is none)
    HELLO                    --------------->
                             <---------------    VERDICT welcome, HELLO, SECRET
    (the connection now carries what its role says: control messages, or the page stream)

A VERDICT other than welcome is a refusal: the sender closes after it. A knock is refused by a VERDICT in clear, before
TLS. All numbers are little endian.

    KNOCK, 32 bytes                                 VERDICT, 8 bytes
    0   8   "LMIGRATE"                              0  u8   verdict (0 is invalid)
    8   u16 version of the protocol (0 is invalid)  1  u8   0
    10  u8  form: 1 TLS by the ticket, 2 TLS by     2  u16  the sender's version of the protocol
            certificates, 3 none                    4  u32  0
    11  5   0
    16  16  tag                                     SECRET, 32 bytes: the session's

    HELLO, 64 bytes
    0   8   "LMIGRATE"
    8   u16 version of the protocol
    10  u8  side: 1 source, 2 destination
    11  u8  role: 1 control, 2 fault, 3 bulk
    12  u32 attempt, from 1
    16  16  session
    32  32  proof: HMAC-SHA256(key, label + exported + the 32 bytes before)

The first ten bytes of a KNOCK and the whole VERDICT are the same in every version, so that two versions
can tell each other that they differ. There is no negotiation: both hosts run the same version.

A secret that both sides share gives a tag and a key for each side that may connect and each role (HKDF with SHA-256,
salt "live-migration 3", info "SIDE connects as ROLE" in decimal numbers; the first 16 bytes are the tag, the next 32
the key). The secret of the first CONTROL connection is the ticket's. The listening side answers it with the session's
secret, 32 random bytes, from which the keys of all other connections come. So the ticket is worth nothing any more
once a session stands, and whoever learns it later learns nothing of what travelled. The secrets themselves never
travel in clear.

By the ticket (form 1), the key is TLS 1.3's external PSK (RFC 8446, psk_dhe_ke, with the tag as its identity). By
certificates (form 2), both sides have one that --tls-ca has signed. In both, the proof in each HELLO ties the key to
this one TLS session: `exported` is 32 bytes of its exporter (label "EXPORTER-live-migration", no context), and each
direction has a label of its own. So nobody can replay a handshake, send it back to its maker, or move it to another
role. Without TLS (form 3) `exported` is zero, and the secret, if there is none in the ticket, is empty: then everybody
is let in.

After the handshake CONTROL goes on under TLS, and FAULT and BULK go on with records whose keys are exported from it
(`wire/records.h`).

The tag is a word at the door: who does not know it is turned away before anything is computed. Anybody on the way can
repeat it, and the beginning of a TLS handshake too, so only a whole HELLO counts.

The listening side chooses the session's id, 16 random bytes. A CONTROL connection of the first attempt
sends 16 zero bytes instead, and learns the id from the answer; all others must name it. The listening side
lets in only connections of this one session, each role once in an attempt.

After COMMIT, when one of the three is lost, all are made again by whoever made them first, with the next attempt and
keys of the session's secret (wire/again.py). An attempt counts when its three connections stand; one that is not newer
is refused, so that no connection of the past takes the place of one that is used.
"""

from __future__ import annotations

import enum
import hmac
import struct
from dataclasses import dataclass, field

from live_migration.wire.errors import ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.keys import Keys

MAGIC = b"LMIGRATE"
VERSION = 3
SESSION_BYTES = 16
SECRET_BYTES = 32
NO_SESSION = bytes(SESSION_BYTES)
_KNOCK = struct.Struct("<8sHB5x16s")
_HELLO = struct.Struct("<8sHBBI16s32s")
_VERDICT = struct.Struct("<BBHI")
_FIXED_IN_ALL_VERSIONS = 10
_PROOF_BYTES = 32
_LABEL_OF_CONNECTING = b"lm-proof of the connecting side\0"
_LABEL_OF_LISTENING = b"lm-proof of the listening side\0"
KNOCK_BYTES = _KNOCK.size
VERDICT_BYTES = _VERDICT.size


class Role(enum.IntEnum):
    """What a connection is for."""

    CONTROL = 1
    FAULT = 2
    BULK = 3


class Side(enum.IntEnum):
    """Which end of the migration somebody is, whoever listens."""

    SOURCE = 1
    DESTINATION = 2

    @property
    def other(self) -> Side:
        """The other end."""
        return Side(3 - self)


class Form(enum.IntEnum):
    """How a connection is protected."""

    TICKET = 1
    CERTIFICATES = 2
    NONE = 3


class Verdict(enum.IntEnum):
    """What one side says to the other's last words."""

    WELCOME = 1
    OTHER_VERSION = 2
    WRONG_TICKET = 3
    SAME_SIDE = 4
    OTHER_SESSION = 5
    TAKEN = 6
    MALFORMED = 7
    OTHER_FORM = 8
    OLDER = 9


_REFUSALS = {
    Verdict.OTHER_VERSION: ("speaks another version of the protocol", "install the same version on both"),
    Verdict.WRONG_TICKET: ("has another ticket", "use the ticket that the listening side printed this time"),
    Verdict.SAME_SIDE: ("is the same side", "run lm-serve on the source and lm-restore on the destination"),
    Verdict.OTHER_SESSION: ("knows another session", "start both commands again"),
    Verdict.TAKEN: ("is already busy with another peer", "wait for it to end, or start another one"),
    Verdict.MALFORMED: ("did not understand the handshake", "install the same version on both"),
    Verdict.OTHER_FORM: (
        "protects the connection in another way",
        "give --insecure to both sides or to none, and certificates to both or to none",
    ),
    Verdict.OLDER: ("has gone on with newer connections", "connect again"),
}


@dataclass(frozen=True)
class Hello:
    """What a side says of a connection."""

    side: Side
    role: Role
    attempt: int
    session: bytes

    def encode(self, keys: Keys, label: bytes, exported: bytes) -> bytes:
        begin = _HELLO.pack(MAGIC, VERSION, self.side, self.role, self.attempt, self.session, b"")[:-_PROOF_BYTES]
        return begin + _proof(keys, label, exported, begin)


@dataclass(frozen=True)
class Done:
    """Event: the connection is authenticated, both ways. `hello` is the peer's; `secret` the session's, for whoever
    connected."""

    hello: Hello
    secret: bytes = field(default=b"", repr=False)


def wrong(cause: str, remedy: str, code: ExitCode = ExitCode.PROTOCOL) -> ProtocolError:
    """The error of a handshake."""
    return ProtocolError(step="the handshake", object="the peer", cause=cause, remedy=remedy, code=code)


def foreign() -> ProtocolError:
    """The error for a peer that speaks something else."""
    return wrong("it does not speak this protocol", "check that the port is the one of the ticket")


def refused(verdict: int, version: int = VERSION) -> ProtocolError:
    """What a refusal means for the side that is refused, and for its own notes."""
    if verdict == Verdict.OTHER_VERSION:
        return _other_version(version)
    if verdict not in _REFUSALS:
        return foreign()
    cause, remedy = _REFUSALS[Verdict(verdict)]
    return wrong(cause, remedy, ExitCode.BAD_TICKET if verdict == Verdict.WRONG_TICKET else ExitCode.PROTOCOL)


def _other_version(version: int) -> ProtocolError:
    cause = f"it speaks version {version} of the protocol, this side version {VERSION}"
    return wrong(cause, "install the same version on both")


def encode_knock(form: Form, keys: Keys) -> bytes:
    """The first bytes of a connection."""
    return _KNOCK.pack(MAGIC, VERSION, form, keys.tag)


def encode_verdict(verdict: Verdict) -> bytes:
    """A verdict alone: a refusal."""
    return _VERDICT.pack(verdict, 0, VERSION, 0)


def check_beginning(held: bytes) -> None:
    """Refuse garbage and other versions as early as their bytes show it. Raises ProtocolError; `is_ours` says whether
    to answer."""
    if not is_ours(held):
        raise foreign()
    if len(held) >= _FIXED_IN_ALL_VERSIONS:
        version = int.from_bytes(held[8:10], "little")
        if version != VERSION:
            raise _other_version(version)


def is_ours(held: bytes) -> bool:
    """Could these first bytes be some version's of this protocol?"""
    return MAGIC.startswith(held[: len(MAGIC)])


def parse_knock(data: bytes, form: Form) -> bytes | Verdict:
    """The tag of a knock of which `check_beginning` found nothing wrong, or why it is refused."""
    _, _, theirs, tag = _KNOCK.unpack(data)
    return bytes(tag) if theirs == form else Verdict.OTHER_FORM


def read_refusal(data: bytes) -> ProtocolError:
    """What came in clear, where TLS or a VERDICT was to begin."""
    if len(data) < VERDICT_BYTES:
        return foreign()
    verdict, _, version, _ = _VERDICT.unpack(data[:VERDICT_BYTES])
    return foreign() if verdict == Verdict.WELCOME else refused(verdict, version)


def _proof(keys: Keys, label: bytes, exported: bytes, hello: bytes) -> bytes:
    return hmac.digest(keys.key, label + exported + hello, "sha256")


def _parse_hello(data: bytes, own_side: Side, keys: Keys, label: bytes, exported: bytes) -> Hello:
    check_beginning(data)
    if not hmac.compare_digest(data[-_PROOF_BYTES:], _proof(keys, label, exported, data[:-_PROOF_BYTES])):
        raise refused(Verdict.WRONG_TICKET)
    _, _, side, role, attempt, session, _ = _HELLO.unpack(data)
    if side != own_side.other or role not in iter(Role) or attempt == 0:
        cause = f"its hello makes no sense (side {side}, role {role}, attempt {attempt})"
        raise wrong(cause, "install the same version on both")
    return Hello(Side(side), Role(role), attempt, session)


class _Buffer:
    """Bytes received, until there are as many as a message has; never more is asked for than that."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.held = b""

    def wanted(self) -> int:
        return self.length - len(self.held)

    def take(self, data: bytes) -> bool:
        """Whether this was all of it. Raises ProtocolError for nothing, which means that the peer closed."""
        if not data:
            missing = self.wanted()
            cause = f"it closed the connection with {missing} bytes of the handshake missing"
            raise wrong(cause, "look at what the other side says, and that nothing else uses its port")
        self.held += data
        return self.wanted() == 0


class Connecting:
    """The side that connects, within TLS: send `hello`, `receive` at most `wanted` bytes, up to Done."""

    def __init__(self, keys: Keys, exported: bytes, hello: Hello) -> None:
        self._keys = keys
        self._exported = exported
        self._own = hello
        self._buffer = _Buffer(_VERDICT.size)
        self.hello = hello.encode(keys, _LABEL_OF_CONNECTING, exported)

    def wanted(self) -> int:
        """How many more bytes the peer's next words need."""
        return self._buffer.wanted()

    def receive(self, data: bytes) -> Done | None:
        """Take bytes of the peer, at most `wanted()`; empty means that it closed. Raises ProtocolError."""
        if not self._buffer.take(data):
            return None
        if self._buffer.length == _VERDICT.size:
            verdict, _, version, _ = _VERDICT.unpack(self._buffer.held)
            if verdict != Verdict.WELCOME:
                raise refused(verdict, version)
            self._buffer = _Buffer(_HELLO.size + SECRET_BYTES)
            return None
        whole = self._buffer.held
        own = self._own
        peer = _parse_hello(whole[: _HELLO.size], own.side, self._keys, _LABEL_OF_LISTENING, self._exported)
        session = peer.session if own.session == NO_SESSION else own.session
        if (peer.role, peer.attempt, peer.session) != (own.role, own.attempt, session) or session == NO_SESSION:
            raise wrong("its hello does not answer ours", "start both commands again")
        return Done(peer, whole[_HELLO.size :])


class Listening:
    """The side that listens, within TLS: `receive` at most `wanted` bytes, up to the peer's Hello, and answer it."""

    def __init__(self, keys: Keys, exported: bytes, side: Side, role: Role) -> None:
        self._keys = keys
        self._exported = exported
        self._side = side
        self._role = role
        self._buffer = _Buffer(_HELLO.size)

    def wanted(self) -> int:
        """How many more bytes the hello needs."""
        return self._buffer.wanted()

    def receive(self, data: bytes) -> Done | None:
        """Take bytes of the peer, at most `wanted()`; empty means that it closed. Raises ProtocolError."""
        if not self._buffer.take(data):
            return None
        hello = _parse_hello(self._buffer.held, self._side, self._keys, _LABEL_OF_CONNECTING, self._exported)
        if hello.role != self._role:
            raise wrong("its hello is for another role than its key", "install the same version on both")
        return Done(hello)

    def welcome(self, hello: Hello, session: bytes, secret: bytes) -> bytes:
        """The answer that lets in the maker of this hello."""
        mine = Hello(self._side, hello.role, hello.attempt, session)
        return encode_verdict(Verdict.WELCOME) + mine.encode(self._keys, _LABEL_OF_LISTENING, self._exported) + secret
