"""SIGINT, SIGTERM and SIGHUP at lm-serve: they end it, but never between a freeze and its thaw."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_by_signal() -> None:
    """Until COMMIT SIGINT, SIGTERM and SIGHUP end lm-serve by an error of their own, and the process runs
    on.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise LocalError(
            step="waiting",
            object="lm-serve",
            cause=f"{signal.Signals(number).name} came",
            remedy="the process runs on here, untouched",
            code=ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED,
        )

    for number in STOPPING:
        signal.signal(number, stop)


def outlast_signals(said: Callable[[], None]) -> None:
    """From COMMIT on no signal ends lm-serve: the memory is needed. `said` is called instead."""
    for number in STOPPING:
        signal.signal(number, lambda *_: said())


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Keep SIGINT and SIGTERM waiting: nothing may come between a freeze and its thaw."""
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
