"""Is the process still the one of the snapshot? It has not ended, and executes the same program."""

from __future__ import annotations

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.memory.maps import maps_text
from live_migration.source_server.snapshot import SourceSnapshot
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode


def check_same_program(seen: SourceSnapshot, step: str) -> None:
    """Raises LocalError if the snapshot is of no use any more. Nothing may be done to the threads then: the paths home
    that were found lead into another program's code."""
    if not seen.program.is_executed():
        raise program_gone(seen, step)


def program_gone(seen: SourceSnapshot, step: str) -> LocalError:
    """The error for a process that does not execute its program any more."""
    living = _has_memory(seen.pid)
    return LocalError(
        step=step,
        object=f"process {seen.pid}",
        cause="it has executed another program" if living else "it has ended",
        remedy="it runs on here; start again" if living else "nothing is left to move",
        code=ExitCode.SYSTEM if living else ExitCode.NO_PROCESS,
    )


def _has_memory(pid: int) -> bool:
    """A process that is ending has no memory even before it is a zombie; one that executes another program always has
    some."""
    try:
        return bool(maps_text(pid))
    except (OSError, ProcessGone):
        return False
