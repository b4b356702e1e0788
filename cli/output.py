"""Writing to standard output and error without ever waiting for whoever reads them.

A command says something while a process stands still, and it goes on serving pages for hours: nobody who stops reading
(a full pipe, a stopped terminal) may hold that up. What cannot be written yet is kept, and goes before what comes next.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import TextIO, cast

MOST_HELD = 4 << 20
"""Bytes that are kept for a reader; whatever would be more is dropped."""
LITTLE = 256
"""So much a terminal or pipe takes at once when poll(2) says that it takes anything."""
ENDING_SECONDS = 5.0


class Outlet:
    """A descriptor that is written to without waiting. A reader that has gone away is no error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        """Write it now, or keep it."""
        if len(self._held) + len(data) <= MOST_HELD:
            self._held += data
        try:
            while self._held:
                del self._held[: write_some(self._descriptor, self._held)]
        except BlockingIOError:
            pass
        except OSError:
            self._held.clear()

    def drain(self, seconds: float) -> None:
        """Wait for the reader, at most so long."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._held and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.write(b"")
        self._held.clear()


def write_some(descriptor: int, data: bytes | bytearray) -> int:
    """Write as much as is taken at once; how much that was. Raises OSError: BlockingIOError for nothing.

    O_NONBLOCK would hold for everybody who has this open file, a shell for example: so it is opened anew, where that is
    possible, and only for the moment, for a pipe has an end only when nobody has it open."""
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return os.write(descriptor, data)
    if kind == stat.S_IFSOCK:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError from None
        return os.write(descriptor, data[:LITTLE])
    try:
        return os.write(own, data)
    finally:
        os.close(own)


class OutletText(io.TextIOBase):
    """The same as a stream of text, line by line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = ""
        self.outlet = Outlet(descriptor)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of what is written."""
        return "utf-8"

    def write(self, text: str) -> int:
        self._line += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        line, self._line = self._line, ""
        self.outlet.write(line.encode("utf-8", "backslashreplace"))

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Within, nothing that is printed waits for its reader. At the end a slow reader gets some time."""
    before = sys.stdout, sys.stderr
    ours = [_instead_of(stream) for stream in before]
    sys.stdout, sys.stderr = (cast(TextIO, one or stream) for one, stream in zip(ours, before, strict=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for one in ours:
            if one is not None:
                one.flush()
                one.outlet.drain(ENDING_SECONDS)


def _instead_of(stream: TextIO | None) -> OutletText | None:
    """A stream to the same descriptor, or None where there is none: a closed stream, or one in memory."""
    try:
        if stream is None:
            return None
        stream.flush()
        return OutletText(stream.fileno())
    except (OSError, ValueError):
        return None
