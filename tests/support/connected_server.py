"""A server whose connections are of many kinds, each by the first byte that its client sends.

e   echo
s   a numbered stream in both directions, until the client shuts its own; then a line: how many bytes came, and how many
    pieces were wrong
w   nothing is read until somebody says go; then everything to the end, and the answer is its digest
f   the same, after the server's own direction was shut; the digest goes to whoever says go
q   a stream of a fixed length that the client does not read, and nothing is read until somebody says go
c   says go
u   as w, when an urgent byte has come and was read out of turn, which is said
z   its own direction is shut, and everything is read; then it is kept, and whoever says go hears what else it reads

Before one of them there may be an o, and a line of options: JSON, a list of level, number and value.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import select
import selectors
import socket
import sys
from dataclasses import dataclass, field

LENGTH = 3 << 20
PIECE = 1 << 16


def numbered(first: int, length: int) -> bytes:
    """Bytes of a stream in which each four are a number, from byte `first` on."""
    start = first // 4
    block = array.array("I", range(start, start + length // 4 + 2)).tobytes()
    return block[first % 4 : first % 4 + length]


@dataclass
class Client:
    """One connection."""

    connection: socket.socket
    kind: bytes = b""
    sent: int = 0
    received: int = 0
    wrong: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.md5)
    pending: bytes = b""
    ended: bool = False


class Server:
    """All of them, in one thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.clients: list[Client] = []
        self.going = False
        self.told = b""

    def listen(self, port: int) -> None:
        # Whoever sets this too can listen at the same port.
        words = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 64, "reuse_port": True}
        one = socket.create_server(("::", port), **words)  # type: ignore[arg-type]
        self.selector.register(one, selectors.EVENT_READ, one)

    def accept(self, one: socket.socket) -> None:
        connection, _ = one.accept()
        kind = connection.recv(1)
        if kind == b"o":
            line = b""
            while not line.endswith(b"\n"):
                line += connection.recv(1)
            for option in json.loads(line):
                connection.setsockopt(*option)
            kind = connection.recv(1)
        if kind == b"u":
            select.select([], [], [connection])
            connection.sendall(connection.recv(1, socket.MSG_OOB))
            kind = b"w"
        client = Client(connection, kind)
        connection.setblocking(False)
        self.clients.append(client)
        if client.kind in (b"f", b"z"):
            connection.shutdown(socket.SHUT_WR)
        self.watch(client)

    def watch(self, client: Client) -> None:
        wanted = 0
        held = client.kind in (b"w", b"f", b"q") and not self.going
        if not held and not client.ended:
            wanted |= selectors.EVENT_READ
        writes = {b"s": not client.ended, b"q": client.sent < LENGTH}
        if client.pending or writes.get(client.kind):
            wanted |= selectors.EVENT_WRITE
        if client.connection.fileno() in self.selector.get_map():
            self.selector.unregister(client.connection)
        if wanted:
            self.selector.register(client.connection, wanted, client)

    def close(self, client: Client) -> None:
        if client.connection.fileno() in self.selector.get_map():
            self.selector.unregister(client.connection)
        client.connection.close()
        self.clients.remove(client)

    def read(self, client: Client) -> None:
        data = client.connection.recv(PIECE)
        if client.kind == b"c":
            if not data:
                return self.close(client)
            self.going = True
            for one in list(self.clients):
                if one.kind in (b"w", b"f", b"q"):
                    self.watch(one)
            client.connection.setblocking(True)
            self.told += b"".join(b"[%s]" % one.connection.recv(9) for one in self.clients if one.kind == b"z")
            while any(one.kind == b"f" for one in self.clients):
                self.turn()
            client.connection.sendall(b"went " + self.told + b"\n")
            return None
        if client.kind == b"s":
            client.wrong += data != numbered(client.received, len(data))
        client.received += len(data)
        client.digest.update(data)
        if client.kind == b"e":
            client.pending += data
        if not data:
            client.ended = True
            if client.kind == b"s":
                client.pending += b"%d %d\n" % (client.received, client.wrong)
            if client.kind == b"w":
                client.pending += client.digest.hexdigest().encode()
            if client.kind == b"f":
                self.told += client.digest.hexdigest().encode()
                return self.close(client)
        return self.finish(client)

    def write(self, client: Client) -> None:
        if client.pending:
            client.pending = client.pending[client.connection.send(client.pending) :]
        elif client.kind in (b"s", b"q"):
            wanted = PIECE if client.kind == b"s" else min(PIECE, LENGTH - client.sent)
            client.sent += client.connection.send(numbered(client.sent, wanted))
        self.finish(client)

    def finish(self, client: Client) -> None:
        if client.ended and client.kind == b"z":
            self.selector.unregister(client.connection)
        elif client.ended and not client.pending and (client.kind != b"q" or client.sent == LENGTH):
            self.close(client)
        else:
            self.watch(client)

    def turn(self) -> None:
        for key, events in self.selector.select():
            if isinstance(key.data, socket.socket):
                self.accept(key.data)
                continue
            try:
                if events & selectors.EVENT_WRITE:
                    self.write(key.data)
                if events & selectors.EVENT_READ and key.data in self.clients:
                    self.read(key.data)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                self.close(key.data)


def main() -> None:
    """Serve until killed."""
    server = Server()
    server.listen(int(sys.argv[1]))
    with open("listening.new", "w") as file:
        file.write("yes")
    os.rename("listening.new", "listening")
    while True:
        server.turn()


if __name__ == "__main__":
    main()
