"""What lm-serve leaves in the source's memory when it is killed in a freeze, and how it is taken away (leftover.h).

The custodian starts `python -m live_migration.source_server.leftover PID ADDRESS LENGTH`. Each thread goes home by
itself. When all are there, the mapping is unmapped by a remote syscall, as lm-serve would have done.

The mapping in which threads are led out of the vdso (vdso_exit.py) is not recorded: a thread in a handler may yet
return into it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.sigreturn_path import find_gadgets, place_frame, remote_syscall
from live_migration.kernel.injection.source_threads import bring_home, choose_end_signal, snapshot_threads
from live_migration.kernel.injection.syscall_numbers import SYS_munmap
from live_migration.kernel.memory.maps import MapEntry, maps
from live_migration.kernel.own_name import call_ourselves
from live_migration.kernel.tracing import tracee

NAME = "lm-custodian"
PURPOSE = "takes away what a dead lm-serve has left"
TRY_SECONDS = 60.0
PAUSE_SECONDS = 0.05
COMMAND = (sys.executable, "-P", "-m", "live_migration.source_server.leftover")
"""What the custodian starts."""


@dataclass(frozen=True)
class Leftover:
    """The record that lm-serve shares with its custodian."""

    record: Any

    def made(self, pid: int, address: int, length: int) -> None:
        """A mapping is about to be made in a stopped process."""
        self.record.pid, self.record.address = pid, address
        self.record.length = length

    def gone(self) -> None:
        """It is not there any more, or never was."""
        self.record.length = 0


def take_away(pid: int, address: int, length: int) -> bool:
    """Unmap the mapping if all threads are at home; False when that has to be tried again.

    Raises ProcessGone, OSError (a new lm-serve may be tracing the process), TimeoutError."""
    stops = tracee.freeze(pid)
    try:
        found = maps(pid)
        if not is_ours(pid, found, address, length):
            return True
        if stops[0].tid != pid or any(_is_inside(stop.tid, address, length) for stop in stops):
            return False
        # It aborts a restartable sequence, which a remote syscall would end without a word (kernel/tracing/rseq.h).
        leader = snapshot_threads(pid, [pid], choose_end_signal(0) or 0)
        gadgets = find_gadgets(pid, found)
        stack = next(((one.start, one.end) for one in found if one.path == "[stack]"), None)
        frame = None if gadgets is None else place_frame(pid, gadgets, stack)
        if gadgets is None or frame is None:
            return False
        remote_syscall(pid, gadgets, frame, SYS_munmap, address, length)
        bring_home(leader)
        return True
    finally:
        tracee.thaw(stops, True)


def is_ours(pid: int, found: Sequence[MapEntry], address: int, length: int) -> bool:
    """Is the mapping there, and what lm-serve has put into it, or nothing yet?"""
    inside = [one for one in found if one.start <= address and address + length <= one.end]
    if not inside or inside[0].permissions != "rwxp" or inside[0].inode:
        return False
    stub = bytes(ffi.buffer(lib.lm_stub_code(), lib.LM_STUB_ROOM))
    return tracee.read_memory(pid, address, len(stub)) in (stub, bytes(len(stub)))


def _is_inside(tid: int, address: int, length: int) -> bool:
    """Is a stopped thread still in the mapping?"""
    return address <= tracee.get_registers(tid).instruction_pointer < address + length


def main(arguments: Sequence[str]) -> int:
    """Try it until it is done, the process is gone, or there is no use in it."""
    call_ourselves(NAME, PURPOSE)
    pid, address, length = (int(word, 16) for word in arguments)
    end = time.monotonic() + TRY_SECONDS
    while time.monotonic() < end:
        try:
            if take_away(pid, address, length):
                return 0
        except ProcessGone:
            return 0
        except (OSError, TimeoutError):
            pass
        time.sleep(PAUSE_SECONDS)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
