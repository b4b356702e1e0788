"""SIGINT, SIGTERM and SIGHUP at lm-serve: they end it, but never between a freeze and its thaw, nor after COMMIT."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.session import Event, Session

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_by_signal(session: Session, pid: int) -> None:
    """Until COMMIT, SIGINT, SIGTERM and SIGHUP end lm-serve by an error of their own, and process `pid` runs on. After
    COMMIT they do not, for the memory is needed: lm-serve reports what has become of the process instead."""

    def stop(number: int, _: FrameType | None) -> None:
        if session.committed:
            if said := session.said(pid):
                session.happened(Event.CANCELLED)
                session.note(said)
            return
        raise LocalError(
            step="waiting",
            object="lm-serve",
            cause=f"{signal.Signals(number).name} came",
            remedy="the process runs on here, untouched",
            code=ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED,
        )

    for number in STOPPING:
        signal.signal(number, stop)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: nothing may come between a freeze and its thaw."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals_let_through() -> Iterator[None]:
    """Within `signals_held`: here a signal may end the wait, by its handler's exception."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
