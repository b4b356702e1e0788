"""Waiting for the destination before COMMIT: the end of the process ends every wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from live_migration.kernel.errors import ProcessGone
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.pusher import Pusher
from live_migration.source_server.phases import Connected
from live_migration.source_server.snapshot import SourceSnapshot
from live_migration.source_server.stopping import signals_let_through
from live_migration.wire import messages
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.session import Event
from live_migration.wire.stream import means_lost


@contextlib.contextmanager
def while_it_lives(control: ControlChannel, seen: SourceSnapshot, pusher: Pusher | None = None) -> Iterator[None]:
    """Within, a wait for the destination ends when the process does, or when a push of its memory has failed: the
    destination would wait for these pages.

    The waits raise ProcessGone, and the OSError of the push."""

    def look() -> None:
        if seen.program.is_ending():
            raise ProcessGone(seen.pid)
        failed = None if pusher is None else pusher.failed
        # A lost connection shows on the control channel as well, with what the destination said before.
        if failed is not None and (isinstance(failed, ProcessGone) or not means_lost(failed)):
            raise failed

    with control.looking(look):
        yield


def await_ready(connected: Connected, seen: SourceSnapshot, pusher: Pusher, deadline: float) -> list[int]:
    """Wait for READY; returns what the destination has taken over. Raises MigrationError, ProcessGone, OSError."""
    try:
        with signals_let_through(), while_it_lives(connected.control, seen, pusher):
            ready = connected.control.expect(messages.Ready, left(deadline))
    except LocalError as error:
        raise (too_long(connected.options) if error.code is ExitCode.TIMEOUT else error) from None
    connected.session.happened(Event.READY)
    failpoint("source-ready")
    return messages.unpack(ready.payload, list[int])


def left(deadline: float) -> float:
    """The seconds until then, 0 when it has passed."""
    return max(0.0, deadline - time.monotonic())


def too_long(options: ServeOptions) -> LocalError:
    """The freeze took longer than it may."""
    return LocalError(
        step="the freeze",
        object=f"process {options.pid}",
        cause=f"it was not over after {options.max_freeze:g} s, and the process runs on here",
        remedy="choose post-copy, a faster link, or a higher --max-freeze",
        code=ExitCode.TIMEOUT,
    )


def ended(pid: int, step: str, failed: str = "") -> LocalError:
    """The process has ended before COMMIT; `failed` is what else went wrong, most likely for that."""
    return LocalError(
        step=step,
        object=f"process {pid}",
        cause=f"it has ended ({failed})" if failed else "it has ended",
        remedy="nothing is left to move",
        code=ExitCode.NO_PROCESS,
    )
