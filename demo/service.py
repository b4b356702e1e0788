"""A stand-in for redis-server where that is not installed: the same few commands over a dict, in Python."""

from __future__ import annotations

import socketserver
import sys
import threading
from typing import BinaryIO


def read_command(stream: BinaryIO) -> list[bytes] | None:
    """The next command of a client; None at its end."""
    head = stream.readline()
    if not head:
        return None
    words = []
    for _ in range(int(head[1:])):
        length = int(stream.readline()[1:])
        words.append(stream.read(length + 2)[:-2])
    return words


class Entries:
    """The server's state."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.lock = threading.Lock()

    def run(self, words: list[bytes]) -> bytes:
        """Run a command; its answer, encoded."""
        name, arguments = words[0].upper(), words[1:]
        with self.lock:
            if name == b"SET":
                self.values[arguments[0]] = arguments[1]
                return b"+OK\r\n"
            if name == b"INCR":
                number = int(self.values.get(arguments[0], b"0")) + 1
                self.values[arguments[0]] = b"%d" % number
                return b":%d\r\n" % number
            if name == b"DBSIZE":
                return b":%d\r\n" % len(self.values)
            if name == b"GET":
                return self.show(arguments[0])
            if name == b"MGET":
                return b"*%d\r\n" % len(arguments) + b"".join(self.show(key) for key in arguments)
        return b"+PONG\r\n" if name == b"PING" else b"-ERR unknown command\r\n"

    def show(self, key: bytes) -> bytes:
        """A value, encoded."""
        value = self.values.get(key)
        return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def main() -> None:
    """Serve until killed."""
    entries = Entries()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while (words := read_command(self.rfile)) is not None:  # type: ignore[arg-type]
                self.wfile.write(entries.run(words))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
