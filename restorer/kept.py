"""What the worker keeps beside the page tables, where the keeper holds it too (pager/ledger.h), so that another worker
can go on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from live_migration.pager.pager import Pager
from live_migration.process.member import Member
from live_migration.restorer.plain_locks import locked_ranges
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.kept_session import KeptSession, cannot_go_on


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The session, and what is still to be done for the process.

    heard         the number of the source's last message that was taken in (wire/messages.py)
    resume_ns     as messages.Resumed has it
    threads       their ids inside the process -> their ids for this host
    spaces        of the processes
    locked        what was locked by mlock(2)
    filtered      whether a thread has seccomp filters
    """

    session: KeptSession
    strategy: str
    heard: int = 0
    resume_ns: int = 0
    threads: dict[int, int] = {}
    spaces: list[int] = []
    locked: list[tuple[int, int]] = []
    filtered: bool = False


def with_process(kept: Kept, members: Sequence[Member], threads: Mapping[int, int]) -> Kept:
    """The same with what is to be done for the process."""
    return replace(
        kept,
        threads=dict(threads),
        spaces=[member.space for member in members],
        filtered=any(thread.filters for member in members for thread in member.task.threads),
        locked=[one for member in members for one in locked_ranges(member.memory.mappings)],
    )


def keep(pager: Pager, kept: Kept) -> None:
    """Keep it from now on. Raises OSError."""
    pager.note(msgspec.msgpack.encode(kept))


def read_kept(note: bytes, pid: int) -> Kept:
    """What another worker has kept of process `pid`. Raises LocalError."""
    try:
        return msgspec.msgpack.decode(note, type=Kept)
    except msgspec.DecodeError:
        cause, remedy = "what its worker has kept cannot be read", "install the version with which it was moved"
        raise cannot_go_on(pid, cause, remedy, ExitCode.SYSTEM) from None
