"""The session of a process (setsid(2)), which it shares with others."""

from __future__ import annotations

import msgspec

from live_migration.process.attributes.prctl import snapshot_stat


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session, by its id as its members see it."""

    id: int


def snapshot_session(pid: int, status: dict[str, str]) -> Session:
    """The session of a process from outside, with the lines of its status. Raises ProcessGone."""
    sessions = status["NSsid"] if "NSsid" in status else snapshot_stat(pid)[5]
    return Session(id=int(sessions.split()[-1]))
