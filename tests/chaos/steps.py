"""A command that halts at one step of the handover until it is told to go on.

Run as a command of tests/support/warm.py: `MODULE STEP SOCKET ARGUMENTS`. At the failpoint STEP it connects to the unix
socket, says its name, and waits for a byte. What happens to it meanwhile is up to whoever listens there.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
from dataclasses import dataclass

from live_migration.wire import failpoints

LONGEST_SECONDS = 20.0


@dataclass
class Step:
    """The step that is waited for, once."""

    name: str
    path: str
    reached: bool = False

    def at(self, name: str) -> None:
        """What stands in the place of wire.failpoints.failpoint."""
        if name != self.name or self.reached:
            return
        self.reached = True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(LONGEST_SECONDS)
            caller.connect(self.path)
            caller.sendall(name.encode())
            caller.recv(1)


def main() -> int:
    """Run the command whose module comes first."""
    module, name, path, *arguments = sys.argv[1:]
    command = importlib.import_module(module)
    step, original = Step(name, path), failpoints.failpoint
    for known in list(sys.modules.values()):
        if getattr(known, "failpoint", None) is original and known is not failpoints:
            known.failpoint = step.at  # type: ignore[attr-defined]
    sys.argv = [module, *arguments]
    return int(command.main(arguments))
