"""Waiting for the source before READY: SIGINT, SIGTERM or the end of the frontend ends every wait."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from live_migration.restorer.frontend_line import Line
from live_migration.restorer.phases import Connected, Staged
from live_migration.restorer.room import arrived_blockers
from live_migration.wire import messages
from live_migration.wire.control import LOOK_SECONDS
from live_migration.wire.errors import LocalError, MigrationError, Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.session import Session
from live_migration.wire.stream import CHANGED, means_lost

LAST_WORDS_SECONDS = 2.0
PART_SECONDS = 0.05
Expected = TypeVar("Expected")


def expect(connected: Connected, kind: type[Expected], seconds: float) -> Expected:
    """The next message, which must be of `kind`. Raises MigrationError, as ControlChannel.expect does, and also when
    the frontend says to stop or is gone."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(connected.control.fileno(), select.POLLIN)
    poll.register(connected.line.fileno(), select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        ready = [number for number, _ in poll.poll(min(max(0.0, left), LOOK_SECONDS) * 1000)]
        if connected.line.fileno() in ready:
            connected.line.hear()
            if connected.line.is_to_stop:
                raise stopped(connected.line, connected.session)
        try:
            return connected.control.expect(kind, min(PART_SECONDS, max(0.0, left)))
        except LocalError as error:
            # Nothing, a ping, a pulse, or the beginning of a long message.
            if left <= 0:
                error.cause = f"nothing came for {seconds:g} s"
                raise


def receive_push(staged: Staged, identifier: int) -> None:
    """Receive pushed pages. Raises OSError, and MigrationError when the source is gone or the frontend says to stop."""
    connected = staged.connected
    try:
        staged.pager.receive_push(identifier)
    except OSError as error:
        changed = error.errno == errno.EBADMSG
        if not changed and not means_lost(error):
            raise
        if connected.line.is_to_stop:
            raise stopped(connected.line, connected.session) from None
        why = lost_pages(CHANGED if changed else str(error), connected.session)
        raise why if changed else last_words(connected, LAST_WORDS_SECONDS) or why from error
    check_arrived(staged)


def check_arrived(staged: Staged) -> None:
    """Raise Refused when more has arrived than --max-memory allows."""
    blockers = arrived_blockers(staged.husk.pid, staged.connected.options.max_memory)
    if blockers:
        raise Refused(blockers, step="receiving pages")


@contextlib.contextmanager
def interrupted_by_frontend(connected: Connected) -> Iterator[None]:
    """Within, the bulk connection ends when the frontend says to stop, and with it the calls that wait there."""
    done = os.eventfd(0, os.EFD_CLOEXEC)

    def watch() -> None:
        # select(2) knows no number above 1023, and the process may have more descriptors.
        watched = select.poll()
        for number in (done, connected.line.fileno()):
            watched.register(number, select.POLLIN)
        while not connected.line.is_to_stop:
            if done in (number for number, _ in watched.poll()):
                return
            connected.line.hear()
        with contextlib.suppress(OSError):
            connected.roles.bulk.shutdown()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        os.eventfd_write(done, 1)
        watcher.join()
        os.close(done)


def last_words(connected: Connected, seconds: float) -> MigrationError | None:
    """What the source has said about giving up, or that it is gone; None if neither happens in that time."""
    try:
        while True:
            message = connected.control.receive(seconds)
            if isinstance(message, messages.Abort):
                return messages.error_of(message)
            if isinstance(message, messages.Blockers):
                return messages.refusal_of(message)
    except LocalError:
        return None
    except MigrationError as error:
        return error


def lost_pages(cause: str, session: Session) -> LocalError:
    """The page connections failed before the resume."""
    return LocalError(
        step="fetching the memory",
        object="the page connections",
        cause=cause,
        remedy=f"{session.row.said}; try again",
        code=session.row.code,
    )


def stopped(line: Line, session: Session) -> LocalError:
    """SIGINT, SIGTERM, or the frontend is gone, before READY."""
    number = next((number for _, number in line.orders), 0)
    return LocalError(
        step="waiting",
        object="lm-restore",
        cause=f"{signal.Signals(number).name} came" if number else "its first process has ended",
        remedy=session.row.said,
        code=ExitCode.INTERRUPTED if number in (0, signal.SIGINT) else ExitCode.TERMINATED,
    )
