"""Clients of tests/support/connected_server.py, which go on while the server moves."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from live_migration.experiments.machines import Command, Machine, Move, start, wait_for
from tests.support.connected_server import LENGTH, numbered
from tests.support.lan import SERVICE, SERVICE6, Lan
from tests.support.started import begin_move

PORT = 7000
SERVER = Path(__file__).with_name("connected_server.py")
MAPPED = [SERVICE, SERVICE6]


@contextmanager
def serving(net: Lan, folder: Path) -> Iterator[Command]:
    """The server, on the source."""
    words = [sys.executable, str(SERVER), str(PORT)]
    one = start(net.source, words, folder, "program", start_new_session=True, cwd=folder)
    wait_for("the server", lambda: (folder / "listening").exists() or None)
    yield one


def take(address: str, bits: int) -> list[str]:
    """The words of lm-restore that take an address."""
    return ["--take-address", f"{address}/{bits}@lan"]


TAKING = [*take(SERVICE, 24), *take(SERVICE6, 64)]


def move_to(
    net: Lan, pid: int, folder: Path, machines: tuple[Machine, Machine] | None = None, **more: object
) -> Move:
    """Begin a move with both service addresses."""
    return begin_move(
        pid,
        machines or (net.source, net.destination),
        folder,
        restore=["--pid", "namespace", "--stdio", "null", *TAKING],
        **more,
    )


@dataclass
class Stream:
    """A numbered stream in both directions, at full rate."""

    connection: socket.socket
    sent: int = 0
    received: int = 0
    wrong: int = 0
    rest: bytes = b""
    failed: list[BaseException] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> Stream:
        """Begin."""
        self.connection.sendall(b"s")
        self.threads = [threading.Thread(target=self.guarded, args=(one,)) for one in (self.send, self.receive)]
        for thread in self.threads:
            thread.start()
        return self

    def guarded(self, what: object) -> None:
        try:
            what()  # type: ignore[operator]
        except BaseException as error:
            self.failed.append(error)

    def send(self) -> None:
        while not self.ended.is_set():
            self.connection.sendall(numbered(self.sent, 1 << 15))
            self.sent += 1 << 15
        self.connection.shutdown(socket.SHUT_WR)

    def receive(self) -> None:
        """The numbers end with a line, which comes when this side has been shut."""
        while data := self.connection.recv(1 << 16):
            wanted = numbered(self.received, len(data))
            if data != wanted:
                same = next(at for at in range(len(data)) if data[at] != wanted[at])
                self.wrong += not self.ended.is_set()
                self.rest = data[same:]
                self.received += same
                while data := self.connection.recv(1 << 16):
                    self.rest += data
                return
            self.received += len(data)

    def finish(self) -> None:
        """End it, and check that every byte has come, once, on both sides."""
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        self.connection.close()
        assert not self.failed, self.failed
        assert self.wrong == 0
        assert self.rest == b"%d 0\n" % self.sent, (self.rest[:40], self.sent)


def ask(connection: socket.socket, words: bytes) -> None:
    """An echo."""
    connection.sendall(words)
    answer = b""
    while len(answer) < len(words):
        piece = connection.recv(len(words) - len(answer))
        assert piece, "the connection has ended"
        answer += piece
    assert answer == words


def echoing(net: Lan, address: str) -> socket.socket:
    """A connection on which the server says everything again."""
    made = net.connect(PORT, address)
    made.sendall(b"e")
    ask(made, b"before")
    return made


def to_the_end(connection: socket.socket) -> bytes:
    """Everything that still comes."""
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
    return found


@dataclass
class Waiting:
    """Connections with something in their queues or half closed."""

    digested: socket.socket
    half: socket.socket
    queued: socket.socket
    go: socket.socket

    @classmethod
    def begin(cls, net: Lan) -> Waiting:
        """Make them. Both queues of `queued` are full, and of the others the unread one has something."""
        digested = net.connect(PORT, SERVICE)
        digested.sendall(b"w" + numbered(0, 70_000))
        digested.shutdown(socket.SHUT_WR)
        half = net.connect(PORT, SERVICE6)
        half.sendall(b"f")
        assert half.recv(1) == b""
        half.sendall(numbered(0, 50_000))
        queued = net.connect(PORT, SERVICE)
        queued.sendall(b"q")
        queued.setblocking(False)
        fill(queued)
        queued.settimeout(20)
        go = net.connect(PORT, SERVICE)
        go.sendall(b"c")
        return cls(digested, half, queued, go)

    def finish(self) -> None:
        """Everything comes."""
        self.half.sendall(b"more")
        self.half.shutdown(socket.SHUT_WR)
        self.queued.shutdown(socket.SHUT_WR)
        self.go.sendall(b"go\n")
        said = self.go.recv(100)
        assert said == b"went " + hashlib.md5(numbered(0, 50_000) + b"more").hexdigest().encode() + b"\n"
        assert to_the_end(self.digested).decode() == hashlib.md5(numbered(0, 70_000)).hexdigest()
        assert to_the_end(self.queued) == numbered(0, LENGTH)
        for one in (self.digested, self.half, self.queued, self.go):
            one.close()


def fill(connection: socket.socket) -> int:
    """Send what can be sent to one that reads nothing."""
    sent = 0
    while True:
        try:
            sent += connection.send(numbered(sent, 1 << 15))
        except BlockingIOError:
            return sent
