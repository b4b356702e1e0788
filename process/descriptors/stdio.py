"""Terminals, pipes and sockets at descriptors 0 to 2 that lead out of the process.

They cannot move: what is at their other end stays. At 0 to 2, lm-restore's own standard descriptors or /dev/null
replace them; the same replaces a further descriptor of the same object.
"""

from __future__ import annotations

import os
import stat

from live_migration.process.descriptors.open_file import REOPEN_FLAGS, OpenContext, reopen, set_flags

STANDARD = (0, 1, 2)


def open_standard(standard: int, flags: int, context: OpenContext) -> int:
    """What replaces an object at 0 to 2 that leads outside: a descriptor of lm-restore's, or /dev/null.

    Flags are given only to an open file of its own: changing lm-restore's would affect the other users of its
    terminal.
    """
    if context.stdio == "null":
        return os.open("/dev/null", (flags & REOPEN_FLAGS & ~(os.O_DIRECT | os.O_DIRECTORY)) | os.O_CLOEXEC)
    number = context.standard[standard]
    access = flags & os.O_ACCMODE
    if stat.S_ISREG(os.fstat(number).st_mode):
        # The offset is shared, so that its other users and the process write one after the other.
        return os.dup(number)
    try:
        opened = reopen(number, access | os.O_NOCTTY | (flags & os.O_APPEND) | os.O_NONBLOCK)
    except OSError:
        # A socket, or a terminal of another user, to which only inheritance gives access.
        return os.dup(number)
    set_flags(opened, flags)
    return opened
