"""Faults injected by name: tests make any failpoint of the handover fail, and see whether the laws hold.

LM_FAULT=NAME:ACTION in the environment of lm-serve or lm-restore. ACTION is `fail` (an error is raised there), `kill`
(the command's process dies by SIGKILL there) or `hang` (nothing happens there any more, until a limit or the peer
ends it).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from live_migration.wire.errors import LocalError, MigrationError
from live_migration.wire.exit_codes import ExitCode

VARIABLE = "LM_FAULT"
HANG_SECONDS = 600.0
SOURCE_FAILPOINTS = (
    "source-connected",
    "source-described",
    "source-round",
    "source-staged",
    "source-frozen",
    "source-queried",
    "source-final-sent",
    "source-ready",
    "source-parked",
    "source-committed",
    "source-decided",
    "source-finished",
)
DESTINATION_FAILPOINTS = (
    "destination-connected",
    "destination-described",
    "destination-husk",
    "destination-staged",
    "destination-pushed",
    "destination-round",
    "destination-prepared",
    "destination-final",
    "destination-laid-out",
    "destination-restored",
    "destination-ready",
    "destination-waiting",
    "destination-committed",
    "destination-letting-go",
    "destination-resumed",
    "destination-complete",
)
FAILPOINTS = SOURCE_FAILPOINTS + DESTINATION_FAILPOINTS
ACTIONS = ("fail", "kill", "hang")


def check_fault(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a fault whose failpoint or action does not exist. Raises LocalError (USAGE)."""
    name, _, action = environment.get(VARIABLE, "").partition(":")
    if not name or (name in FAILPOINTS and action in ACTIONS):
        return
    raise LocalError(
        step="reading the environment",
        object=f"{VARIABLE}={name}:{action}",
        cause="there is no such failpoint or action",
        remedy=f"use NAME:ACTION with one of {', '.join(FAILPOINTS)} and one of {', '.join(ACTIONS)}",
        code=ExitCode.USAGE,
    )


def failpoint(name: str) -> None:
    """The failpoint `name` is reached. Does nothing unless LM_FAULT says so."""
    wanted, _, action = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(HANG_SECONDS)
    raise injected(name)


def injected(name: str) -> MigrationError:
    """The error that an injected fault raises."""
    return LocalError(
        step="an injected fault",
        object=name,
        cause=f"{VARIABLE} wants it",
        remedy=f"unset {VARIABLE}",
        code=ExitCode.SYSTEM,
    )
