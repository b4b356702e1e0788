"""As much of Redis' protocol (RESP) and of HTTP as load_client.py speaks.

Everything raises OSError when the connection is lost or the server does not answer in time."""

from __future__ import annotations

import http.client
import json
import socket

LENGTH = 1024
"""Of an entry's content, in bytes."""


class RedisServer:
    """A connection to redis-server."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        """End it."""
        self.stream.close()
        self.socket.close()

    def fill(self, first: int, values: list[bytes]) -> None:
        """All in one message."""
        self.socket.settimeout(60)
        self.socket.sendall(b"".join(encode(b"SET", key_of(number), v) for number, v in enumerate(values, first)))
        for _ in values:
            self._line()

    def get(self, number: int) -> bytes:
        """GET."""
        self.socket.sendall(encode(b"GET", key_of(number)))
        return self._value()

    def put(self, number: int, version: int, value: bytes) -> None:
        """SET."""
        self.socket.sendall(encode(b"SET", key_of(number), value))
        self._line()

    def get_range(self, first: int, end: int) -> list[bytes]:
        """MGET."""
        self.socket.settimeout(60)
        self.socket.sendall(encode(b"MGET", *(key_of(number) for number in range(first, end))))
        return [self._value() for _ in range(int(self._line()[1:]))]

    def gaps(self) -> list[tuple[float, float]]:
        """It does not tell."""
        return []

    def _line(self) -> bytes:
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        if line[:1] == b"-":
            raise ConnectionError(line[1:-2].decode())
        return line[:-2]

    def _value(self) -> bytes:
        length = int(self._line()[1:])
        if length < 0:
            return b""
        text = self.stream.read(length + 2)
        if len(text) != length + 2:
            raise ConnectionError("the server closed the connection")
        return text[:-2]


def key_of(number: int) -> bytes:
    """The name of an entry."""
    return b"entry:%d" % number


def encode(*words: bytes) -> bytes:
    """A command."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class HttpServer:
    """A connection to http_server.js."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """End it."""
        self.connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        # Once closed it would connect again by itself, and the server's end would go unseen.
        if self.connection.sock is None:
            raise ConnectionError("the server closed the connection")
        try:
            self.connection.request(method, path, body)
            return self.connection.getresponse().read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None

    def fill(self, first: int, values: list[bytes]) -> None:
        """The server fills itself."""

    def get(self, number: int) -> bytes:
        """GET."""
        return self._ask("GET", f"/{number}")

    def put(self, number: int, version: int, value: bytes) -> None:
        """PUT; the server makes the content from the version."""
        self._ask("PUT", f"/{number}", b"%d" % version)

    def get_range(self, first: int, end: int) -> list[bytes]:
        """Many at once."""
        self.connection.sock.settimeout(60)
        text = self._ask("GET", f"/range/{first}/{end}")
        return [text[at : at + LENGTH] for at in range(0, len(text), LENGTH)]

    def gaps(self) -> list[tuple[float, float]]:
        """(when it ended, how long it was) of the waits of the server's event loop, seconds since 1970 and seconds."""
        return [(end / 1000, took / 1000) for end, took in json.loads(self._ask("GET", "/gaps"))]
