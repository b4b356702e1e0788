"""The DECISION connection as Python prepares it: the tokens of its words, and how it is made (decision.h)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from live_migration._lm import ffi, lib
from live_migration.wire.connection import SET_UP_SECONDS, Roles
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import MAGIC, VERSION, Side

_HELLO = struct.Struct("<8sHBBI16s32x")
_ROLE = 4
_LABELS = {
    lib.LM_WORD_ASK: b"ask",
    lib.LM_WORD_UNDECIDED: b"undecided",
    lib.LM_WORD_RESUMED: b"resumed",
    lib.LM_WORD_DROPPED: b"dropped",
    lib.LM_WORD_ACKNOWLEDGED: b"acknowledged",
}


Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Hashes(msgspec.Struct, frozen=True, kw_only=True):
    """The SHA-256 of the source's two tokens: by them the destination knows COMMIT and NO, and nobody else can say
    them.
    """

    commit: Hash
    no: Hash


@dataclass(frozen=True)
class Tokens:
    """The source's, which nobody else knows before it has said one of them."""

    commit: bytes
    no: bytes

    def hashes(self) -> Hashes:
        """What the destination gets of them."""
        return Hashes(commit=hashlib.sha256(self.commit).digest(), no=hashlib.sha256(self.no).digest())


def make_tokens() -> Tokens:
    """Fresh ones, for one handover."""
    return Tokens(secrets.token_bytes(lib.LM_WORD_TOKEN), secrets.token_bytes(lib.LM_WORD_TOKEN))


def encode_hello(side: Side, session: bytes) -> bytes:
    """How a DECISION connection begins."""
    return _HELLO.pack(MAGIC, VERSION, side, _ROLE, 1, session)


def prepare(decision: Any, roles: Roles, side: Side, known: Tokens | Hashes | None) -> None:
    """Fill in a struct lm_decision: `known` has the tokens, or at the destination their hashes, once they are known.
    Raises OSError.
    """
    words = {kind: hmac.digest(roles.secret, b"lm-word " + label, "sha256") for kind, label in _LABELS.items()}
    if known is not None:
        words |= {lib.LM_WORD_COMMIT: known.commit, lib.LM_WORD_NO: known.no}
    for kind, token in words.items():
        ffi.memmove(decision.tokens[kind], token, lib.LM_WORD_TOKEN)
    ffi.memmove(decision.hello, encode_hello(side, roles.session), lib.LM_WORD_HELLO)
    if roles.peer is not None:
        host, port, *more = roles.peer.where
        scope = more[1] if more else 0
        host = str(host).partition("%")[0].encode()
        error = lib.lm_decision_remember(decision, roles.peer.family, host, port, scope)
        if error:
            raise OSError(-error, f"{roles.peer}: this is no address")


def listener_of(roles: Roles) -> int:
    """The descriptor to listen on for a connection that is made; -1 where this side makes it."""
    return roles.listener.fileno() if roles.listener is not None else -1


def way_to_command() -> tuple[socket.socket, socket.socket]:
    """For a custodian to pass on connections that are for its command: the command's end, and the custodian's. Raises
    OSError.
    """
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def connect(roles: Roles, side: Side, seconds: float = SET_UP_SECONDS) -> socket.socket:
    """Make the first one, or let it in. Raises LocalError (TIMEOUT), OSError."""
    known = ffi.new("struct lm_decision *")
    prepare(known, roles, side, None)
    line = ffi.new("struct lm_decision_line *")
    lib.lm_decision_open(line, known, -1, listener_of(roles))
    first = lib.LM_WORD_UNDECIDED if side is Side.SOURCE else lib.LM_WORD_ASK
    made = lib.lm_decision_meet(line, first, int(seconds * 1000))
    if made < 0:
        raise LocalError(
            step="connecting",
            object="the connection of the decision",
            cause=f"it was not made within {seconds:g} s",
            remedy="check that the port of the ticket stays open, and try again",
            code=ExitCode.TIMEOUT,
        )
    return socket.socket(fileno=made)


def open_line(decision: Any, connection: socket.socket, listener: int) -> Any:
    """This process's end of the connection, a struct lm_decision_line, with a duplicate of the socket."""
    line = ffi.new("struct lm_decision_line *")
    lib.lm_decision_open(line, decision, connection.dup().detach(), listener)
    return line
