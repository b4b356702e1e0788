"""A blocker stands in the way of a migration, and says so that the reader can remove it."""

from __future__ import annotations

import msgspec

from live_migration.wire.plain_text import one_line


class Blocker(msgspec.Struct, frozen=True):
    """One reason why a process cannot be moved: what it is about, why, and what to do.

    As text it is one sentence: "descriptor 7: a pipe that process 12 holds too; close it in one of them".
    """

    object: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return one_line(f"{self.object}: {self.cause}; {self.remedy}")
