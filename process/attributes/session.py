"""The session of a process (setsid(2)), which it shares with others."""

from __future__ import annotations

import msgspec

from live_migration.kernel.process_snapshot import ProcessSnapshot


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session, by its id as its members see it."""

    id: int


def snapshot_session(process: ProcessSnapshot) -> Session:
    """The session of a process from outside. Raises ProcessGone."""
    sessions = process.status.get("NSsid") or process.stat[5]
    return Session(id=int(sessions.split()[-1]))
