"""As much of Redis' protocol (RESP) as clients of ours speak."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence

Answer = bytes | int | None | list["Answer"]


def key_of(number: int) -> bytes:
    """The name of an entry."""
    return b"entry:%d" % number


def value_of(number: int) -> bytes:
    """The value that belongs to an entry: 1 KiB that follows from its number, and compresses 2:1 at best."""
    return hashlib.shake_128(b"%d" % number).digest(512).hex().encode()


def encode(*words: bytes) -> bytes:
    """A command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Connection:
    """A connection to the server. Everything raises OSError when it is lost."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        """Close it."""
        self.stream.close()
        self.socket.close()

    def query(self, *words: bytes) -> Answer:
        """One command and its answer."""
        return self.query_all([words])[0]

    def query_all(self, commands: Sequence[Sequence[bytes]]) -> list[Answer]:
        """Several commands at once. Raises ValueError when the server answers with an error."""
        self.socket.sendall(b"".join(encode(*words) for words in commands))
        return [self.answer() for _ in commands]

    def answer(self) -> Answer:
        """Read one answer."""
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise ValueError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.exactly(int(rest))
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return rest

    def exactly(self, length: int) -> bytes:
        """A string of a known length."""
        text = self.stream.read(length + 2)
        if len(text) != length + 2:
            raise ConnectionError("the server closed the connection")
        return text[:-2]
