"""A session as either command keeps it, so that another process can go on with it where that one was killed."""

from __future__ import annotations

import os

import msgspec

from live_migration.wire.addresses import Address
from live_migration.wire.connection import Roles
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Form
from live_migration.wire.meeting_point import Certificates
from live_migration.wire.stream import TlsContext, ended_stream

STEP = "going on"


class KeptSession(msgspec.Struct, frozen=True, kw_only=True):
    """What new connections of a session are made of.

    attempt       of the connections that stood last
    certificates  the files, by absolute paths
    listening     whether this side listens at `address`; else the other one does
    """

    id: bytes
    secret: bytes
    attempt: int
    form: int
    certificates: tuple[str, str, str] | None
    listening: bool
    family: int
    address: tuple[str | int, ...]

    @property
    def where(self) -> Address:
        """The address of whoever listens."""
        return Address(self.family, self.address)

    def roles(self) -> Roles:
        """The session with connections that have ended. Raises LocalError for certificates that are useless."""
        context = TlsContext(Certificates(*self.certificates) if self.certificates else None)
        control, fault, bulk = (ended_stream() for _ in range(3))
        peer = None if self.listening else self.where
        return Roles(self.id, self.attempt, control, fault, bulk, self.secret, None, Form(self.form), context, peer)


def keep_session(roles: Roles, files: Certificates | None) -> KeptSession:
    """What there is to keep of a session. Its connections may have ended already."""
    if roles.listener is not None:
        where = Address(roles.listener.family, roles.listener.getsockname())
    else:
        assert roles.peer, "one side listens, and the other one knows where"
        where = roles.peer
    return KeptSession(
        id=roles.session,
        secret=roles.secret,
        attempt=roles.attempt,
        form=int(roles.form),
        certificates=_paths(files),
        listening=roles.listener is not None,
        family=int(where.family),
        address=tuple(where.where),
    )


def with_certificates(session: KeptSession, files: Certificates | None) -> KeptSession:
    """The same with other files, if there are some: a certificate may have been renewed since. Raises LocalError for a
    session without certificates, for the other side expects none."""
    if files is None:
        return session
    if session.certificates is None:
        raise LocalError(
            step=STEP,
            object="--tls-cert, --tls-key and --tls-ca",
            cause="the process was moved without certificates, and the other side expects none",
            remedy="leave these options out",
            code=ExitCode.USAGE,
        )
    return msgspec.structs.replace(session, certificates=_paths(files))


def cannot_go_on(pid: int, cause: str, remedy: str, code: ExitCode = ExitCode.REFUSED) -> LocalError:
    """Why nobody goes on for process `pid`."""
    return LocalError(step=STEP, object=f"process {pid}", cause=cause, remedy=remedy, code=code)


def _paths(files: Certificates | None) -> tuple[str, str, str] | None:
    # Whoever goes on may be in another directory.
    if files is None:
        return None
    return os.path.abspath(files.certificate), os.path.abspath(files.key), os.path.abspath(files.authority)
