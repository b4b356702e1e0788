"""Files of /proc, read without the layers of Python's own files: three times as fast, and a freeze reads a dozen."""

from __future__ import annotations

import os

AT_ONCE = 1 << 16


def read_proc(path: str) -> bytes:
    """The whole of a file, which tells no size. Raises OSError: FileNotFoundError or ProcessLookupError when the
    process has ended."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some end a read(2) early, so that only an empty one is the end: smaps gives a page at a time, thousands of
        # them for a process with many mappings, so what is there is not copied again for each.
        parts = [os.read(descriptor, AT_ONCE)]
        while parts[-1]:
            parts.append(os.read(descriptor, AT_ONCE))
    finally:
        os.close(descriptor)
    return b"".join(parts)


def proc_text(path: str) -> str:
    """The same as text, whatever bytes are in it: processes may have any name. Raises OSError."""
    return read_proc(path).decode(errors="surrogateescape")


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the third field on, the state (proc_pid_stat(5)). Raises OSError."""
    return proc_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
