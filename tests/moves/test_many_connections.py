"""Connections that are many, and such over a link that loses packets."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from tests.support.bad_link import bad_link
from tests.support.connected import PORT, Stream, move_to, serving
from tests.support.connected_server import numbered
from tests.support.lan import SERVICE, SERVICE6, Lan
from tests.support.started import warm

IDLE, BUSY, AT_ONCE = 1000, 100, 50
USUAL = 1024
pytestmark = [pytest.mark.program, pytest.mark.alone, pytest.mark.timeout(400)]


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Within, this process and the server may have many descriptors, and our commands begin with the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.prlimit(warm().process.pid, resource.RLIMIT_NOFILE, (USUAL, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        resource.prlimit(warm().process.pid, resource.RLIMIT_NOFILE, before)


def begun(net: Lan) -> list[socket.socket]:
    """Some connections; no more at once than have room in the server's queue."""
    some = [net.connect(PORT, SERVICE6 if number % 2 else SERVICE) for number in range(AT_ONCE)]
    for one in some:
        one.sendall(b"e")
        one.settimeout(200)
    ask_all(some, b"before")
    return some


def ask_all(those: list[socket.socket], words: bytes) -> None:
    """All of them at once have something under way, which is to come back."""
    for one in those:
        one.sendall(words)
    for one in those:
        found = b""
        while len(found) < len(words):
            piece = one.recv(len(words) - len(found))
            assert piece, "the connection has ended"
            found += piece
        assert found == words


def test_a_thousand_idle_and_a_hundred_busy_connections(net: Lan, tmp_path: Path, orphans: None) -> None:
    ended, turns, failed = threading.Event(), [0], list[BaseException]()

    def guarded() -> None:
        try:
            while not ended.is_set():
                ask_all(busy, numbered(turns[0], 300))
                turns[0] += 1
        except BaseException as error:
            failed.append(error)

    with many_descriptors(), serving(net, tmp_path) as server, net.captured() as capture:
        every: list[socket.socket] = []
        while len(every) < IDLE + BUSY:
            every += begun(net)
        busy = every[:BUSY]
        thread = threading.Thread(target=guarded)
        thread.start()
        move = move_to(net, server.process.pid, tmp_path, serve=["--max-freeze", "120"])
        try:
            move.resumed()
            move.restore.event("complete")
        except BaseException:
            print(move.said())
            raise
        finally:
            ended.set()
            thread.join(200)
        ask_all(every, b"after")
    assert failed == []
    assert turns[0] > 1
    assert capture.resets == []


@pytest.mark.parametrize("strategy", ["post-copy", "stop-and-copy"])
def test_over_a_link_that_loses_and_reorders(strategy: str, net: Lan, tmp_path: Path, orphans: None) -> None:
    """Of numbered bytes in both directions each comes once. Between the hosts the link is good."""
    with serving(net, tmp_path) as server, bad_link(net, 1) as relay, net.captured() as capture:
        streams = [Stream(net.connect(PORT, address)).start() for address in (SERVICE, SERVICE6)]
        wait_for("some losses", lambda: relay.dropped > 20 or None, 120)
        move = move_to(net, server.process.pid, tmp_path, strategy=strategy)
        move.resumed()
        move.restore.event("complete")
        before = relay.dropped
        wait_for("more losses", lambda: relay.dropped > before + 20 or None, 120)
        # What was sent twice may come when a connection has ended, and is answered by a reset then, move or not.
        assert capture.resets == []
        for stream in streams:
            stream.finish()
    assert relay.overtaken > 100
