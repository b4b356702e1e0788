"""Meeting again: newer attempts of a session get in, whatever else comes, and older or forged ones do not."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import pytest

from live_migration._lm import ffi
from live_migration.experiments.machines import wait_for
from live_migration.wire import decision
from live_migration.wire.again import Link, Redialling, connect_again
from live_migration.wire.connection import Listener, Roles, connect_roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import MigrationError, ProtocolError
from live_migration.wire.handshake import Side, Verdict, refused
from live_migration.wire.kept_session import keep_session
from live_migration.wire.reception import Readmission, accept_roles
from live_migration.wire.ticket import make_ticket
from tests.chaos.relay import ABORT
from tests.wire.test_connection import check_pairs


@dataclass
class Met:
    """Two sides that have met: the source listens."""

    source: Roles
    destination: Roles
    readmission: Readmission
    refused: list[MigrationError]

    def let_in(self, seconds: float = 60) -> Roles | None:
        """What the source lets in within that time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            select.select([self.readmission], [], [], min(left, 0.05))
            if found := self.readmission.take():
                return found
        return None

    def refuse(self, dialled: Future[Roles], verdict: Verdict) -> None:
        """The source does not let in who has dialled, and says why."""
        while not dialled.done():
            assert self.let_in(0.05) is None
        # Without TLS it may be closed while more is on its way, and the answer is lost with that.
        with pytest.raises(ProtocolError, match=f"{refused(verdict).cause}|broke off"):
            dialled.result()

    def dial(self, known: Roles, attempt: int) -> Roles:
        """The destination connects again, once."""
        address = self.destination.peer
        assert address
        first = socket.create_connection(address.where)
        return connect_again(first, address, known, Side.DESTINATION, attempt)


@pytest.fixture(params=[True, False])
def met(request: pytest.FixtureRequest) -> Iterator[Met]:
    listener = Listener("127.0.0.1", 0)
    ticket = make_ticket("127.0.0.1", listener.port, with_secret=request.param)
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(accept_roles, listener, ticket.secret, Side.SOURCE)
        destination = connect_roles(ticket, Side.DESTINATION)
        source = accepted.result(60)
    assert source
    assert source.listener
    refusals: list[MigrationError] = []
    readmission = Readmission(source.listener, source, Side.SOURCE, refusals.append)
    with closing(source), closing(destination), closing(readmission):
        yield Met(source, destination, readmission, refusals)


def test_the_next_attempts_get_in(met: Met) -> None:
    assert met.destination.peer
    with closing(Redialling(met.destination.peer, met.destination, Side.DESTINATION)) as redialling:
        for attempt in (2, 3):
            redialling.begin()
            there = met.let_in()
            assert there
            select.select([redialling], [], [], 60)
            here = redialling.take()
            assert here
            with closing(here), closing(there):
                assert here.attempt == there.attempt == attempt
                assert (here.session, here.secret) == (met.source.session, met.source.secret)
                check_pairs(here, there, encrypted=there.form != 3)
    assert not met.refused


def test_older_and_forged_attempts_do_not(met: Met) -> None:
    forged = replace(met.destination, secret=bytes(32))
    elsewhere = replace(met.destination, session=bytes(range(16)))
    with ThreadPoolExecutor(1) as pool:
        for known, attempt, verdict in (
            (met.destination, 1, Verdict.OLDER),
            (elsewhere, 2, Verdict.OTHER_SESSION),
            (forged, 2, Verdict.WRONG_TICKET),
        ):
            met.refuse(pool.submit(met.dial, known, attempt), verdict)
        assert len(met.refused) == 3
        # Nothing of that keeps the right one out, nor does one that was left half done.
        half = pool.submit(met.dial, met.destination, 7)
        there = met.readmission.take() or met.let_in()
        here = half.result(60)
        assert there
        assert there.attempt == here.attempt == 7
        met.refuse(pool.submit(met.dial, met.destination, 7), Verdict.OLDER)
        here.close()
        there.close()


def is_reset(one: socket.socket) -> bool | None:
    """Whether the kernel does not know any more where a connection led to; None as long as it does."""
    try:
        one.getpeername()
    except OSError:
        return True
    return None


def test_connections_that_were_reset_are_not_asked_where_they_led(met: Met) -> None:
    """The source is killed with something unread: whatever the destination does next needs its address."""
    here = met.destination
    met.source.control.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    met.source.control.close()
    wait_for("the reset", lambda: is_reset(here.control.socket))
    assert keep_session(here, None).where == here.peer
    shared = ffi.new("struct lm_decision *")
    decision.prepare(shared, here, Side.DESTINATION, None)
    assert shared.address_length
    with closing(Link(here, Side.DESTINATION, ControlChannel(here.control), None)) as link:
        link.lose("it was reset")
        there = met.let_in()
        assert there
        there.close()
