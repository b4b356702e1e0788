"""Compression where it pays, limits for bulk and never for faults."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import termios
import threading
import time
from array import array
from contextlib import suppress
from pathlib import Path

import pytest

from live_migration.kernel.memory.pagemap import present_runs
from live_migration.pager.pager import HotRun
from live_migration.source_server.pages.client import COMPRESS_AUTO, COMPRESS_NONE, PushRun
from live_migration.wire.stream import Stream
from tests.pager.paging import BASE, PAGE, SESSION, Move, connected_pair, eventually, moving

pytestmark = pytest.mark.alone
REQUEST_SIZE = 32


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


class SlowLink:
    """A connection whose one direction passes through here at so many bytes per second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.server, self.inner = connected_pair()
        self.outer, self.client = connected_pair()
        for link in (self.server, self.inner, self.outer, self.client):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.threads = [
            threading.Thread(target=self._relay, args=(self.inner, self.outer, rate)),
            threading.Thread(target=self._relay, args=(self.outer, self.inner, 0)),
        ]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _relay(one: socket.socket, other: socket.socket, rate: int) -> None:
        begin, passed = time.monotonic(), 0
        try:
            while data := one.recv(16384):
                other.sendall(data)
                passed += len(data)
                if rate and (ahead := passed / rate - (time.monotonic() - begin)) > 0:
                    time.sleep(ahead)
        except OSError:
            pass

    def close(self) -> None:
        """End both ways."""
        for link in (self.server, self.inner, self.outer, self.client):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for link in (self.server, self.inner, self.outer, self.client):
            link.close()


def over_a_slow_link(move: Move, rate: int) -> SlowLink:
    """Connect both again, the bulk connection over a slow link."""
    fault, slow = connected_pair(), SlowLink(rate)
    move.links += fault
    move.client.connect(Stream(fault[0]), Stream(slow.server), SESSION, 2)
    move.pager.connect(Stream(fault[1]), Stream(slow.client), SESSION, 2)
    return slow


@pytest.mark.parametrize("policy", [COMPRESS_NONE, 1, 9])
def test_a_policy_given_by_hand_holds(program: Path, policy: int) -> None:
    with moving(program, 5000) as move:
        move.client.compress(policy)
        assert move.destination.run("check", 0, 300) == 0
        move.complete()
        assert move.destination.run("check", 0, 5000) == 0
        counters = move.client.counters
        if policy == COMPRESS_NONE:
            assert counters["packed_pages"] == 0
            assert counters["wire_bytes"] > counters["bytes"]
        else:
            assert counters["packed_pages"] == counters["pages"]
            assert counters["wire_bytes"] < 0.7 * counters["bytes"]
        assert move.pager.counters["bytes"] <= counters["bytes"]


def test_what_does_not_shrink_travels_raw(program: Path) -> None:
    noise = os.urandom(64 * PAGE)
    with moving(program, 200) as move:
        with open(f"/proc/{move.source.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(BASE)
            memory.write(noise)
        move.client.compress(3)
        assert move.destination.run("get", 7, 0) == noise[7 * PAGE]
        assert move.client.counters["packed_pages"] == 0
        move.complete()


def test_a_slow_link_is_worth_compressing_for(program: Path) -> None:
    with moving(program, 12000) as move:
        slow = over_a_slow_link(move, 10_000_000)
        move.client.compress(COMPRESS_AUTO)
        move.complete()
        counters = move.client.counters
        assert counters["packed_pages"] > 0.5 * counters["pages"]
        assert counters["wire_bytes"] < 0.8 * counters["bytes"]
        assert counters["link_rate"] > 0
        assert move.destination.run("check", 0, 12000) == 0
        slow.close()


def test_a_fast_link_is_not(program: Path) -> None:
    with moving(program, 50000) as move:
        move.client.compress(COMPRESS_AUTO)
        move.complete()
        counters = move.client.counters
        assert counters["packed_pages"] < 0.2 * counters["pages"]


def test_little_is_under_way_under_a_limit_that_only_the_source_knows(program: Path) -> None:
    """What was requested and is brought by faults meanwhile comes a second time, and the end waits for it."""
    with moving(program, 1500) as move:
        move.client.limit(65_536)
        move.client.compress(COMPRESS_NONE)
        move.pager.prefetch_start()
        eventually(lambda: move.client.counters["requests"] > 0)
        assert move.destination.run("check", 0, 1500) == 0
        unread = array("i", [0])
        fcntl.ioctl(move.links[2], termios.FIONREAD, unread)
        # Sixteen requests would be all that can be under way.
        assert unread[0] <= 4 * REQUEST_SIZE
        move.client.limit(0)
        move.complete()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_limit_holds_bulk_back_and_never_faults(program: Path, side: str) -> None:
    with moving(program, 4000) as move:
        limited = move.client if side == "source" else move.pager
        limited.limit(4_000_000)
        move.client.compress(COMPRESS_NONE)
        begin = time.monotonic()
        move.pager.prefetch_start()
        # Far faster than the limit allows for the pages that these faults bring.
        assert move.destination.run("check", 2000, 1500) == 0
        faults_took = time.monotonic() - begin
        limited.limit(2_000_000)
        move.complete()
        took = time.monotonic() - begin
        rate = move.pager.counters["prefetched_pages"] * PAGE / took
        assert rate < 5_000_000
        assert faults_took < took / 2


@pytest.mark.parametrize("faults", [0, 3])
def test_what_is_hot_comes_first_also_beside_faults(program: Path, faults: int) -> None:
    hot = [BASE + page * PAGE for page in range(2000, 4000, 8)]
    with moving(program, 4000) as move:
        move.pager.limit(2_000_000)
        move.client.compress(COMPRESS_NONE)
        for number in range(faults):
            assert move.destination.run("check", 500 * number, 1) == 0
        move.pager.prefetch_first([HotRun(address, address + PAGE) for address in hot])
        move.pager.prefetch_start()

        def come() -> int:
            runs = present_runs(move.destination.pid, [(address, address + PAGE) for address in hot])
            return sum((end - start) // PAGE for start, end in runs)

        # Some of the pages hold zeros alone and are not placed.
        eventually(lambda: come() > 0.75 * len(hot))
        assert move.pager.counters["prefetched_pages"] < 2 * len(hot)
        move.pager.limit(0)
        move.complete()


def test_a_limit_holds_pushes_back(program: Path) -> None:
    with moving(program, 1000) as move:
        move.client.limit(8_000_000)
        move.client.compress(COMPRESS_NONE)
        begin = time.monotonic()
        thread = threading.Thread(target=lambda: move.client.push(1, [PushRun(0, BASE, BASE + 1000 * PAGE)]))
        thread.start()
        move.pager.receive_push(1)
        thread.join()
        assert time.monotonic() - begin > 0.25
        move.complete()


def test_an_urgent_push_is_not_held_back(program: Path) -> None:
    with moving(program, 1000) as move:
        move.client.limit(20_000)
        move.client.compress(COMPRESS_NONE)
        begin = time.monotonic()
        runs = [PushRun(0, BASE, BASE + 1000 * PAGE)]
        thread = threading.Thread(target=lambda: move.client.push(1, runs, urgent=True))
        thread.start()
        move.pager.receive_push(1)
        thread.join()
        # Held back, it would take 200 seconds.
        assert time.monotonic() - begin < 20
        move.client.limit(0)
        move.complete()
