"""Opening what a path is said to lead to, and nothing else.

A path can come from somebody who is not trusted, and what it leads to can be exchanged at any time. So the type is
read from what was found (O_PATH, which neither waits for a FIFO's other end nor wakes a device: open(2)), and then that
very inode is opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

TYPES = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
}


def open_as(file_type: int, path: str | bytes, flags: int, device: int | None = None) -> int:
    """Open `path`, whose type must be `file_type` (S_IFMT of its mode; one of TYPES), and if it is a device, number
    `device`. Never waits. `flags` as for open(2), without those of creation; close-on-exec is added.

    Raises OSError: EINVAL where it is something else."""
    named = os.open(path, os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if file_type == stat.S_IFDIR else 0))
    try:
        found = os.fstat(named)
        if stat.S_IFMT(found.st_mode) != file_type:
            raise OSError(errno.EINVAL, f"it is not {TYPES[file_type]} here", path)
        if device is not None and found.st_rdev != device:
            raise OSError(errno.EINVAL, "it is another device here", path)
        if flags & os.O_PATH:
            return os.dup(named)
        # A FIFO's other end, or a lease on a file (fcntl(2), F_SETLEASE), would be waited for.
        opened = os.open(f"/proc/self/fd/{named}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(named)
    if not flags & os.O_NONBLOCK:
        fcntl.fcntl(opened, fcntl.F_SETFL, fcntl.fcntl(opened, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    return opened
