"""As much of Redis' protocol (RESP) and of HTTP as load_client.py speaks.

Everything raises OSError when the connection is lost or the server does not answer in time."""

from __future__ import annotations

import http.client
import json
import socket

from live_migration.experiments.resp import Answer, Connection, key_of

LENGTH = 1024
"""Of an entry's content, in bytes."""


class RedisServer:
    """A connection to redis-server."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.connection = Connection(host, port, timeout)

    def close(self) -> None:
        """End it."""
        self.connection.close()

    def _ask(self, *words: bytes) -> Answer:
        try:
            return self.connection.query(*words)
        except ValueError as error:
            raise ConnectionError(str(error)) from None

    def fill(self, first: int, values: list[bytes]) -> None:
        """All in one message."""
        self.connection.socket.settimeout(60)
        self.connection.query_all([(b"SET", key_of(number), value) for number, value in enumerate(values, first)])

    def get(self, number: int) -> bytes:
        """GET; nothing for an entry that is not there."""
        return _content(self._ask(b"GET", key_of(number)))

    def put(self, number: int, version: int, value: bytes) -> None:
        """SET."""
        self._ask(b"SET", key_of(number), value)

    def get_range(self, first: int, end: int) -> list[bytes]:
        """MGET."""
        self.connection.socket.settimeout(60)
        found = self._ask(b"MGET", *(key_of(number) for number in range(first, end)))
        return [_content(one) for one in found] if isinstance(found, list) else []

    def gaps(self) -> list[tuple[float, float]]:
        """It does not tell."""
        return []


def _content(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else b""


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
