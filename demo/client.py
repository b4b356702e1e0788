"""The client: asks without a pause, checks every answer, connects again when a connection ends, and notes every wait.

Run as `python -m demo.client HOST PORT ENTRIES`; prints a JSON object when its standard input ends.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time

from live_migration.experiments.resp import Connection, key_of, value_of

# Long enough not to be mistaken for a slow machine, short enough not to be what is measured.
TIMEOUT = 1.0
RETRY = 0.0005


class Client:
    """What the client has seen. Times in seconds, on the clock that everybody shares (CLOCK_REALTIME)."""

    def __init__(self, host: str, port: int, entries: int) -> None:
        self.place = (host, port)
        self.entries = entries
        self.answers = self.wrong = self.lost = self.in_doubt = 0
        self.counted = 0
        self.waits: list[tuple[float, float]] = []
        self.last = time.time()

    def answered(self) -> None:
        """An answer came: how long after the one before?"""
        now = time.time()
        self.waits.append((now - self.last, now))
        self.waits = sorted(self.waits, reverse=True)[:20] if len(self.waits) > 10000 else self.waits
        self.last = now
        self.answers += 1

    def talk(self, connection: Connection) -> None:
        """Count and read until the connection or the standard input ends."""
        chosen = random.Random(7)
        while not over():
            self.in_doubt += 1
            count = connection.query(b"INCR", b"counter")
            # An increment whose answer was lost may have happened: the counter is never behind, and at most that ahead.
            if not isinstance(count, int) or not self.counted < count <= self.counted + self.in_doubt:
                self.wrong += 1
            self.in_doubt = 0
            self.counted = count if isinstance(count, int) else self.counted
            self.answered()
            number = chosen.randrange(self.entries)
            if connection.query(b"GET", key_of(number)) != value_of(number):
                self.wrong += 1
            self.answered()

    def run(self) -> None:
        """Talk, and connect again whenever that ends."""
        while not over():
            try:
                connection = Connection(*self.place, TIMEOUT)
            except OSError:
                time.sleep(RETRY)
                continue
            try:
                self.talk(connection)
            except OSError:
                self.lost += 1
            finally:
                connection.close()


def over() -> bool:
    """Standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main() -> None:
    """Run, and print what was seen."""
    client = Client(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    client.run()
    longest = sorted(client.waits, reverse=True)[:20]
    print(
        json.dumps(
            {
                "answers": client.answers,
                "wrong": client.wrong,
                "lost": client.lost,
                "counter": client.counted,
                "waits": [{"seconds": seconds, "until": until} for seconds, until in longest],
            }
        )
    )


if __name__ == "__main__":
    main()
