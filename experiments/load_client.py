"""A client that asks a server without a pause, compares every answer, connects again when its connection ends, and
keeps the time of every answer.

    python -m live_migration.experiments.load_client redis|http HOST PORT ENTRIES DIRTY_RATE uniform|zipf RECORD

It fills the server, prints "ready", and asks until its standard input ends. Then it reads everything back and prints a
JSON object. Each entry has a version, which its content follows from, so that an answer can be old, lost or mixed up
without going unseen. A write whose answer was lost may have been done or not: either is right until the next write.

DIRTY_RATE: writes are paced so that they dirty so many bytes of pages per second, a page each; -1: a fifth are writes.

With zipf, the entry of rank n is asked for 1/n^0.99 times as often as the first (as YCSB's clients do: Cooper et al.,
SoCC 2010); which entry has which rank is drawn, so that those that are asked for most lie anywhere in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from live_migration.experiments.load_protocols import HttpServer, RedisServer
from live_migration.experiments.recorder import Recorder

TIMEOUT = 1.0
RETRY = 0.0005
PATIENCE = 120.0
PAGE = 4096
WRITE_SHARE = 0.2
BATCH = 500
DEBT = 0.01
ZIPF = 0.99


class Server(Protocol):
    """A connection to a server. Everything raises OSError when it is lost."""

    def fill(self, first: int, values: list[bytes]) -> None:
        """Give entries their content."""

    def get(self, number: int) -> bytes:
        """An entry's content."""

    def put(self, number: int, version: int, value: bytes) -> None:
        """Give it another."""

    def get_range(self, first: int, end: int) -> list[bytes]:
        """The contents of many."""

    def gaps(self) -> list[tuple[float, float]]:
        """(when it ended, how long it was) of what the server itself waited for, in seconds."""

    def close(self) -> None:
        """End the connection."""


KINDS: dict[str, Callable[[str, int, float], Server]] = {"redis": RedisServer, "http": HttpServer}


def value_of(number: int, version: int) -> bytes:
    """1 KiB that compresses 2:1 at best."""
    return hashlib.shake_128(b"%d.%d" % (number, version)).hexdigest(512).encode()


class Client:
    """The client's state. `doubtful`: entries whose last write may or may not have been done."""

    def __init__(
        self, kind: str, host: str, port: int, entries: int, rate: int, keys: str, recorder: Recorder
    ) -> None:
        self.kind, self.place, self.entries, self.recorder = kind, (host, port), entries, recorder
        self.versions = [0] * entries
        self.doubtful: set[int] = set()
        self.write_seconds = 0.0 if rate < 0 else PAGE / rate if rate else None
        self.due = time.time()
        self.wrong = self.lost = self.answers = 0
        self.chosen = random.Random(7)
        self.choose = chooser(self.chosen, entries, keys)

    def connect(self) -> Server:
        """Connect, as long as that takes. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                return KINDS[self.kind](*self.place, TIMEOUT)
            except OSError:
                time.sleep(RETRY)
        raise TimeoutError(f"nobody answers at {self.place[0]}:{self.place[1]}")

    def is_write(self) -> bool:
        """Whether the next operation writes."""
        if self.write_seconds == 0:
            return self.chosen.random() < WRITE_SHARE
        if self.write_seconds is None or (now := time.time()) < self.due:
            return False
        self.due = max(self.due + self.write_seconds, now - DEBT)
        return True

    def check(self, number: int, found: bytes) -> None:
        """Is this what the entry must hold?"""
        version = self.versions[number]
        if found != value_of(number, version):
            if number not in self.doubtful or found != value_of(number, version + 1):
                self.wrong += 1
                return
            self.versions[number] += 1
        self.doubtful.discard(number)

    def operate(self, server: Server) -> None:
        """Write or read an entry that is chosen at random. An entry in doubt is read first."""
        number = self.choose()
        if number not in self.doubtful and self.is_write():
            version = self.versions[number] + 1
            self.doubtful.add(number)
            server.put(number, version, value_of(number, version))
            self.versions[number] = version
            self.doubtful.discard(number)
        else:
            self.check(number, server.get(number))
        self.answers += 1

    def fill(self) -> None:
        """Give every entry its first content."""
        server = self.connect()
        for first in range(0, self.entries, BATCH):
            numbers = range(first, min(first + BATCH, self.entries))
            server.fill(first, [value_of(number, 0) for number in numbers])
        server.close()

    def run(self) -> None:
        """Ask until standard input ends, connecting again whenever that is needed."""
        last = time.time_ns()
        while not over():
            server = self.connect()
            try:
                while not over():
                    self.operate(server)
                    now = time.time_ns()
                    self.recorder.add(now, now - last)
                    last = now
            except OSError:
                self.lost += 1
            finally:
                server.close()

    def check_all(self) -> list[tuple[float, float]]:
        """Read everything back. What the server itself waited for, if it tells."""
        server = self.connect()
        for first in range(0, self.entries, BATCH):
            end = min(first + BATCH, self.entries)
            for number, found in enumerate(server.get_range(first, end), first):
                self.check(number, found)
        gaps = server.gaps()
        server.close()
        return gaps


def chooser(chosen: random.Random, entries: int, keys: str) -> Callable[[], int]:
    """What draws the number of the entry to ask for next."""
    if keys == "uniform":
        return lambda: chosen.randrange(entries)
    ranked = list(range(entries))
    chosen.shuffle(ranked)
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(entries)))
    return lambda: chosen.choices(ranked, cum_weights=weights)[0]


def over() -> bool:
    """Standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main(words: list[str]) -> None:
    """See above."""
    kind, host, port, entries, rate, keys, record = words
    client = Client(kind, host, int(port), int(entries), int(rate), keys, Recorder(Path(record)))
    client.fill()
    print("ready", flush=True)
    client.run()
    gaps = client.check_all()
    seen = {"wrong": client.wrong, "lost": client.lost, "answers": client.answers, "gaps": gaps}
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
