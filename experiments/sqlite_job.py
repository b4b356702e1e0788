"""The workload sqlite: a database in memory that is read and written row by row, and knows what each row must be.

    python -m live_migration.experiments.sqlite_job RECORD BYTES DIRTY_RATE MEASURED COMMAND_FILE uniform|zipf

A row has 1 KiB, which follows from its number and its version. Every row that is read is compared, and all of them at
the end. DIRTY_RATE: writes are paced so that they dirty so many bytes of pages per second, a page each; -1: a fifth are
writes. Which row is asked for how often: see load_client.py. COMMAND_FILE: see job_at_work.py.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from array import array

from live_migration.experiments.job_at_work import work
from live_migration.experiments.load_client import PAGE, WRITE_SHARE, chooser, value_of

ROW = 1400
"""Bytes of memory that a row takes, about: three stand on a page."""
DEBT_NS = 10_000_000


class Database:
    """The state: the database, and the version of each row."""

    def __init__(self, size: int, rate: int, keys: str) -> None:
        count = max(1, size // ROW)
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, value BLOB)")
        self.database.execute("BEGIN")
        rows = ((number, value_of(number, 0)) for number in range(count))
        self.database.executemany("INSERT INTO entries VALUES (?, ?)", rows)
        self.database.execute("COMMIT")
        self.versions = array("L", bytes(8 * count))
        self.write_ns = 0 if rate < 0 else 10**9 * PAGE // rate if rate else None
        self.due = time.time_ns()
        self.chosen = random.Random(7)
        self.choose = chooser(self.chosen, count, keys)
        self.differed = 0

    def operate(self, now: int) -> None:
        """Read a row, or write one."""
        number = self.choose()
        if not self.is_write(now):
            self.differed += self.read(number) != value_of(number, self.versions[number])
            return
        version = self.versions[number] + 1
        self.database.execute("UPDATE entries SET value = ? WHERE number = ?", (value_of(number, version), number))
        self.versions[number] = version

    def is_write(self, now: int) -> bool:
        """Whether the next operation writes."""
        if self.write_ns == 0:
            return self.chosen.random() < WRITE_SHARE
        if self.write_ns is None or now < self.due:
            return False
        self.due = max(self.due + self.write_ns, now - DEBT_NS)
        return True

    def read(self, number: int) -> bytes | None:
        """A row's content, None if there is no such row."""
        found = self.database.execute("SELECT value FROM entries WHERE number = ?", (number,)).fetchone()
        return found[0] if found else None

    def wrong(self) -> int:
        """How many rows were or are not what they must be."""
        now = sum(self.read(number) != value_of(number, version) for number, version in enumerate(self.versions))
        return self.differed + now


def main(words: list[str]) -> None:
    """See above."""
    record, size, rate, measured, command, keys = words
    work(Database(int(size), int(rate), keys), record, command, measured=bool(int(measured)))


if __name__ == "__main__":
    main(sys.argv[1:])
