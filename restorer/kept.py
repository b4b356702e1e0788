"""What the worker keeps beside the page tables, where the keeper holds it too (pager/ledger.h), so that another worker
can go on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from live_migration.pager.pager import Pager
from live_migration.process.member import Member
from live_migration.restorer.plain_locks import locked_ranges
from live_migration.wire.again import Address, address_of
from live_migration.wire.connection import Roles
from live_migration.wire.errors import LocalError
from live_migration.wire.handshake import Form
from live_migration.wire.meeting_point import Certificates
from live_migration.wire.stream import TlsContext, ended_stream


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The session, and what is still to be done for the process.

    attempt       of the connections that stood last
    listening     whether this side listens at `address`; else the other one does
    heard         the number of the source's last message that was taken in (wire/messages.py)
    resume_ns     as messages.Resumed has it
    threads       their ids inside the process -> their ids for this host
    spaces        of the processes
    locked        what was locked by mlock(2)
    filtered      whether a thread has seccomp filters
    """

    session: bytes
    secret: bytes
    attempt: int
    form: int
    certificates: tuple[str, str, str] | None
    listening: bool
    family: int
    address: tuple[str | int, ...]
    strategy: str
    heard: int = 0
    resume_ns: int = 0
    threads: dict[int, int] = {}
    spaces: list[int] = []
    locked: list[tuple[int, int]] = []
    filtered: bool = False

    @property
    def where(self) -> Address:
        """The address of whoever listens."""
        return Address(self.family, self.address)

    def roles(self) -> Roles:
        """The session with connections that have ended. Raises LocalError."""
        context = TlsContext(Certificates(*self.certificates) if self.certificates else None)
        control, fault, bulk = (ended_stream() for _ in range(3))
        form = Form(self.form)
        return Roles(self.session, self.attempt, control, fault, bulk, self.secret, None, form, context)


def kept_of(roles: Roles, files: Certificates | None, strategy: str) -> Kept:
    """What there is to keep of a session. Raises OSError when the connections have ended already."""
    if roles.listener is not None:
        where = Address(roles.listener.family, roles.listener.getsockname())
    else:
        where = address_of(roles.control)
    return Kept(
        session=roles.session,
        secret=roles.secret,
        attempt=roles.attempt,
        form=int(roles.form),
        certificates=(files.certificate, files.key, files.authority) if files else None,
        listening=roles.listener is not None,
        family=int(where.family),
        address=tuple(where.where),
        strategy=strategy,
    )


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
        raise LocalError(
            step="going on",
            object=f"process {pid}",
            cause="what its worker has kept cannot be read",
            remedy="install the version with which it was moved",
        ) from None
