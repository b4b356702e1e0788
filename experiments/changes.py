"""Waiting until something becomes of files, instead of polling them (inotify(7))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

IN_MODIFY = 0x002
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
WRITTEN = IN_MODIFY
"""A file was written to."""
ARRIVED = IN_CREATE | IN_MOVED_TO
"""A name has come to be in a folder."""
LONGEST = 0.1
"""Seconds without a change after which there may be something else to look at, such as the end of a process. Seldom: to
look takes what a benchmark wants all processors for."""


@contextlib.contextmanager
def changes(path: Path, mask: int, longest: float = LONGEST) -> Iterator[Callable[[float], None]]:
    """A function that waits for a change of `path`, for no longer than the seconds given to it or `longest`.

    A change before the first wait counts too. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(path), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))

        def wait(seconds: float) -> None:
            if select.select([descriptor], [], [], max(0.0, min(seconds, longest)))[0]:
                os.read(descriptor, 1 << 16)

        yield wait
    finally:
        os.close(descriptor)
