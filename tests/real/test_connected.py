"""Real servers move there and back with their clients connected, who notice nothing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from live_migration.experiments.machines import start, wait_for
from tests.conftest import skip
from tests.support.connected import move_to
from tests.support.lan import SERVICE, SERVICE6, Lan

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]

PORT = 6390
MOVES = 4
PIPELINE = 20
ASYNCIO = """
import asyncio, sys
counted = 0
async def serve(reader, writer):
    global counted
    while (line := await reader.readline()) and line.startswith(b"GET"):
        while (await reader.readline()).strip():
            pass
        counted += 1
        await asyncio.sleep(0.001)
        body = b"%s %d" % (line.split()[1], counted)
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, ["0.0.0.0", "::"], int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Clients:
    """Threads that ask until they are told to end."""

    ended: threading.Event = field(default_factory=threading.Event)
    failed: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    answers: int = 0

    def run(self, what: Callable[[], None]) -> None:
        """Begin with one more."""

        def guarded() -> None:
            try:
                while not self.ended.is_set():
                    what()
                    self.answers += 1
            except BaseException as error:
                self.failed.append(error)

        self.threads.append(threading.Thread(target=guarded))
        self.threads[-1].start()

    def more(self) -> None:
        """Wait until they have had some more answers."""
        before = self.answers
        wait_for("answers", lambda: self.answers > before + 20 or bool(self.failed) or None)
        assert self.failed == []

    def finish(self) -> None:
        """End them all: nobody has met an error."""
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
        assert self.failed == []


def connected(net: Lan, address: str) -> socket.socket:
    """A client, as soon as the server listens."""

    def poll() -> socket.socket | None:
        with contextlib.suppress(ConnectionRefusedError):
            return net.connect(PORT, address)
        return None

    return wait_for("the server", poll, 60)


def there_and_back(net: Lan, pid: int, folder: Path, clients: Clients) -> None:
    """Move it some times, by every strategy."""
    places, inside = [net.source, net.destination], None
    strategies = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
    for number in range(MOVES):
        where, strategy = (places[0], places[1]), strategies[number]
        move = move_to(net, pid, folder, where, number=number, inside=inside, strategy=strategy)
        try:
            inside = move.resumed()
            move.restore.event("complete")
        except BaseException:
            print(move.said())
            raise
        clients.more()
        places.reverse()


def test_redis_with_pipelines_subscribers_and_blocked_pops(net: Lan, tmp_path: Path, orphans: None) -> None:
    redis = shutil.which("redis-server")
    if redis is None:
        skip("redis-server is not installed")
    words = [str(redis), "--port", str(PORT), "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""]
    server = start(net.source, [*words, "--dir", str(tmp_path)], tmp_path, "program", start_new_session=True)
    clients = Clients()

    def incrementing(number: int) -> Callable[[], None]:
        one = connected(net, SERVICE6 if number % 2 else SERVICE)
        lines, counted = one.makefile("rb"), [0]

        def ask() -> None:
            one.sendall(b"INCR key%d\r\n" % number * PIPELINE)
            for _ in range(PIPELINE):
                counted[0] += 1
                assert lines.readline() == b":%d\r\n" % counted[0]

        return ask

    def subscribing() -> Callable[[], None]:
        publisher, subscriber = connected(net, SERVICE), connected(net, SERVICE)
        subscriber.sendall(b"SUBSCRIBE news\r\n")
        published, heard = publisher.makefile("rb"), subscriber.makefile("rb")
        assert [heard.readline() for _ in range(6)][-1] == b":1\r\n"
        counted = [0]

        def ask() -> None:
            counted[0] += 1
            publisher.sendall(b"PUBLISH news %d\r\n" % counted[0])
            assert published.readline() == b":1\r\n"
            assert [heard.readline() for _ in range(7)][-1] == b"%d\r\n" % counted[0]

        return ask

    for number in range(20):
        clients.run(incrementing(number))
    clients.run(subscribing())
    blocked, pushing = connected(net, SERVICE), connected(net, SERVICE)
    blocked.sendall(b"BLPOP list 0\r\n")
    there_and_back(net, server.process.pid, tmp_path, clients)
    pushing.sendall(b"RPUSH list last\r\n")
    popped = blocked.makefile("rb")
    assert [popped.readline() for _ in range(5)][-1] == b"last\r\n"
    clients.finish()


def test_asyncio_with_connections_that_are_kept_alive(net: Lan, tmp_path: Path, orphans: None) -> None:
    server = start(net.source, [sys.executable, "-c", ASYNCIO, str(PORT)], tmp_path, "program", start_new_session=True)
    clients = Clients()

    def asking(number: int) -> Callable[[], None]:
        one = connected(net, SERVICE6 if number % 2 else SERVICE)
        lines, last, turn = one.makefile("rb"), [0], [0]

        def ask() -> None:
            turn[0] += 1
            path = b"/%d/%d" % (number, turn[0])
            one.sendall(b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % path)
            assert lines.readline() == b"HTTP/1.1 200 OK\r\n"
            length = int(lines.readline().split()[1])
            assert lines.readline() == b"\r\n"
            found, counted = lines.read(length).split()
            assert found == path
            assert int(counted) > last[0]
            last[0] = int(counted)

        return ask

    for number in range(20):
        clients.run(asking(number))
    there_and_back(net, server.process.pid, tmp_path, clients)
    clients.finish()
