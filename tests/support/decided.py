"""The two ends of a session's DECISION connection, without a process that is moved."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.wire import decision
from live_migration.wire.addresses import Address
from live_migration.wire.connection import Roles
from live_migration.wire.handshake import Side
from live_migration.wire.stream import Stream

SECRET, SESSION = b"k" * 32, b"s" * 16
TOKENS = decision.Tokens(b"c" * 32, b"n" * 32)
SAID = ("ASK", "UNDECIDED", "COMMIT", "NO", "RESUMED", "DROPPED", "ACKNOWLEDGED")
WORDS = {name: int(getattr(lib, f"LM_WORD_{name}")) for name in SAID}
NAMES = {number: name for name, number in WORDS.items()}


@dataclass(frozen=True)
class End:
    """What one side has of a session."""

    roles: Roles
    decision: socket.socket

    def close(self) -> None:
        self.roles.close()
        self.decision.close()


@dataclass(frozen=True)
class Ends:
    """Both ends of a session."""

    source: End
    destination: End


def roles_of(control: socket.socket, listener: socket.socket | None) -> Roles:
    """Those of a session of which only the connection of the decision matters."""
    one, other = (Stream(half) for half in socket.socketpair())
    dials = listener is None and control.family != socket.AF_UNIX
    peer = Address(control.family, control.getpeername()) if dials else None
    return Roles(SESSION, 1, Stream(control), one, other, SECRET, listener, peer=peer)


@contextmanager
def ends(listens: Side = Side.SOURCE) -> Iterator[Ends]:
    """Connected, with the port open on one side."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    connecting = socket.create_connection(listener.getsockname())
    listening = accept(listener)
    here = End(roles_of(connecting.dup(), None), connecting)
    there = End(roles_of(listening.dup(), listener), listening)
    found = Ends(there, here) if listens is Side.SOURCE else Ends(here, there)
    try:
        yield found
    finally:
        here.close()
        there.close()


def accept(listener: socket.socket) -> socket.socket:
    """The next connection, blocking, within some seconds."""
    end = time.monotonic() + 10
    while True:
        try:
            found = listener.accept()[0]
            found.setblocking(True)
            found.settimeout(30)
            return found
        except BlockingIOError:
            assert time.monotonic() < end, "nobody connects"
            time.sleep(0.005)


def shared(roles: Roles, side: Side) -> Any:
    """A side's struct lm_decision."""
    found = ffi.new("struct lm_decision *")
    decision.prepare(found, roles, side, TOKENS if side is Side.SOURCE else TOKENS.hashes())
    return found


def word(kind: str, number: int = 0, frozen_ns: int = 0, token: bytes | None = None) -> bytes:
    """A word as the side says it that may."""
    with_tokens = ffi.new("struct lm_decision *")
    one, other = socket.socketpair()
    roles = roles_of(one, other)
    decision.prepare(with_tokens, roles, Side.SOURCE, TOKENS)
    roles.close()
    own = bytes(ffi.buffer(with_tokens.tokens[WORDS[kind]]))
    fields = {"kind": WORDS[kind], "number": number, "frozen_ns": frozen_ns, "token": token or own}
    return bytes(ffi.buffer(ffi.new("struct lm_word *", fields)))


def hear(connection: socket.socket) -> tuple[str, int, bytes]:
    """The next word: what it is, its number and its token. ("", 0, b"") at the end of the connection."""
    data = b""
    while len(data) < ffi.sizeof("struct lm_word"):
        part = connection.recv(ffi.sizeof("struct lm_word") - len(data))
        if not part:
            return "", 0, b""
        data += part
    found = ffi.from_buffer("struct lm_word *", data)
    return NAMES[found.kind], int(found.number), bytes(ffi.buffer(found.token))


def hear_first(connection: socket.socket) -> tuple[str, int, bytes]:
    """The first word of a connection made anew."""
    hello = connection.recv(lib.LM_WORD_HELLO, socket.MSG_WAITALL)
    assert hello[:8] == b"LMIGRATE"
    assert hello[16:32] == SESSION
    return hear(connection)
