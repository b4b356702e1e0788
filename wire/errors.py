"""Errors, each a sentence that names the step, the object, the cause, the remedy and whose fault it is.

The three kinds say who is at fault: LocalError this side, RemoteError the other side (its own words,
sent in an Abort message), ProtocolError a peer that does not speak as agreed. Refused carries
blockers. `code` is a row of the table in wire/exit_codes.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from live_migration.wire.blockers import Blocker
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.plain_text import one_line


class MigrationError(Exception):
    """The migration cannot go on.

    step    what was being done, as a noun or -ing form: "freezing", "the handshake"
    object  what it was done to: "process 12", "port 5555"
    cause   what is wrong with it
    remedy  what the reader can do
    """

    whose = ""

    def __init__(self, *, step: str, object: str, cause: str, remedy: str, code: ExitCode = ExitCode.SYSTEM) -> None:
        super().__init__(step, object, cause, remedy, code)
        self.step = step
        self.object = object
        self.cause = cause
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return one_line(f"{self.whose}{self.step}: {self.object}: {self.cause}; {self.remedy}")


class LocalError(MigrationError):
    """Something on this side: a missing permission, a process that is gone, a port that is taken."""


class RemoteError(MigrationError):
    """The other side gave up, in its own words."""

    whose = "the other side failed, "

    def __init__(
        self, *, step: str, object: str, cause: str, remedy: str, code: ExitCode = ExitCode.PEER_FAILED
    ) -> None:
        super().__init__(step=step, object=object, cause=cause, remedy=remedy, code=code)


class ProtocolError(MigrationError):
    """The peer is not what it should be: another version, another ticket, or bytes that make no sense."""

    whose = "the peer is at fault, "

    def __init__(self, *, step: str, object: str, cause: str, remedy: str, code: ExitCode = ExitCode.PROTOCOL) -> None:
        super().__init__(step=step, object=object, cause=cause, remedy=remedy, code=code)


class Refused(MigrationError):
    """The process cannot be moved as it is; `blockers` are all the reasons, each with its remedy. `by_peer`: the other
    side found them."""

    def __init__(
        self,
        blockers: Sequence[Blocker],
        *,
        step: str = "the preflight",
        object: str = "the process",
        code: ExitCode = ExitCode.REFUSED,
        by_peer: bool = False,
    ) -> None:
        count = f"{len(blockers)} blockers" if len(blockers) != 1 else "1 blocker"
        super().__init__(
            step=step, object=object, cause=f"{count} in the way", remedy="remove each as it says", code=code
        )
        self.blockers = tuple(blockers)
        self.by_peer = by_peer

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  {blocker}" for blocker in self.blockers)])


class ConnectionLost(MigrationError):
    """The connection to the peer ended without a message, and nobody knows what the peer still sent. A tunnel can end
    the connection in order, by a FIN between two messages, while it still has the next message. What that means depends
    on whether COMMIT was sent.
    """

    def __init__(
        self, *, step: str, object: str, cause: str, remedy: str, code: ExitCode = ExitCode.LOST_BEFORE
    ) -> None:
        super().__init__(step=step, object=object, cause=cause, remedy=remedy, code=code)
