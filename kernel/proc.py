"""Files of /proc, read without the layers of Python's own files: three times as fast, and a freeze reads a dozen."""

from __future__ import annotations

import os

AT_ONCE = 1 << 16


def read_proc(path: str) -> bytes:
    """The whole of a file, which tells no size. Raises OSError: FileNotFoundError or ProcessLookupError when the
    process has ended."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Some end a read(2) early, so that only an empty one is the end.
        text = part = os.read(descriptor, AT_ONCE)
        while part:
            part = os.read(descriptor, AT_ONCE)
            text += part
    finally:
        os.close(descriptor)
    return text
