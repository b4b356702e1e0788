"""The page server: answers for the memory of processes that hold still, and pushes what cannot be asked for.

A thin cover of page_server.h; its threads are C and never take the interpreter's lock. Addresses and lengths are in
bytes.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib

COMPRESS_AUTO: int = lib.LM_COMPRESS_AUTO
COMPRESS_NONE: int = lib.LM_COMPRESS_NONE
FIRST_OBJECT: int = lib.LM_FIRST_OBJECT

COUNTERS = tuple(name for name, _ in ffi.typeof("struct lm_server_statistics").fields)
STATISTICS_SIZE: int = ffi.sizeof("struct lm_server_statistics")


class ServerState(enum.IntEnum):
    """IDLE before connect; LOST when the peer is gone; REFUSED when it broke the protocol or asked too early; FAILED
    when the memory could not be read."""

    IDLE = lib.LM_SERVER_IDLE
    CONNECTED = lib.LM_SERVER_CONNECTED
    LOST = lib.LM_SERVER_LOST
    REFUSED = lib.LM_SERVER_REFUSED
    FAILED = lib.LM_SERVER_FAILED


@dataclass(frozen=True)
class PushRun:
    """A stretch [start, end) of a space; `present`: only pages that the page tables show as there."""

    space: int
    start: int
    end: int
    present: bool = False


def check(result: int) -> int:
    """Raise OSError for a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def counters(memory: Any) -> dict[str, int]:
    """The counters in a piece of memory of STATISTICS_SIZE bytes."""
    statistics = ffi.from_buffer("struct lm_server_statistics *", memory)
    return {name: getattr(statistics, name) for name in COUNTERS}


class PageServer:
    """Serves spaces on a FAULT and a BULK connection until it is closed.

    `memory`, when given, is writable memory of STATISTICS_SIZE bytes (a shared mmap) that takes the counters."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = memory if memory is not None else bytearray(STATISTICS_SIZE)
        self._statistics = ffi.from_buffer("struct lm_server_statistics *", self.memory, require_writable=True)
        self._server = lib.lm_page_server_create(self._statistics)
        if not self._server:
            raise MemoryError("no memory for the page server")

    @property
    def handle(self) -> Any:
        """The struct lm_page_server, for what works beside it."""
        return self._server

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and let go of everything."""
        if self._server:
            lib.lm_page_server_destroy(self._server)
            self._server = None

    def add_process(self, space: int, pid: int) -> None:
        """Serve `space` from the memory of `pid`. Raises OSError."""
        check(lib.lm_page_server_add_process(self._server, space, pid))

    def add_object(self, space: int, descriptor: int) -> None:
        """Serve `space` (FIRST_OBJECT or more) from a duplicate of the descriptor, by offset. Raises OSError."""
        check(lib.lm_page_server_add_object(self._server, space, descriptor))

    def connect(self, fault: socket.socket, bulk: socket.socket, session: bytes, attempt: int = 1) -> None:
        """Begin to serve on two connected sockets, or serve on after the last two were lost. Raises OSError.

        The sockets are duplicated and made blocking; the caller may close its own."""
        check(lib.lm_page_server_connect(self._server, fault.fileno(), bulk.fileno(), _session(session), attempt))

    def answer(self, answering: bool) -> None:
        """Whether requests are answered: from now on, for all processes hold still, or not, as at the beginning.

        A request that comes while they are not ends the connections."""
        lib.lm_page_server_answer(self._server, answering)

    def limit(self, bytes_per_second: int) -> None:
        """Hold the bulk stream back; 0: not."""
        lib.lm_page_server_limit(self._server, bytes_per_second)

    def compress(self, policy: int) -> None:
        """COMPRESS_AUTO, COMPRESS_NONE or a level of zstd."""
        lib.lm_page_server_compress(self._server, policy)

    def push(
        self,
        identifier: int,
        runs: Iterable[PushRun],
        *,
        remember: bool = False,
        changed: bool = False,
        urgent: bool = False,
    ) -> None:
        """Send runs on the bulk channel, and END with `identifier` (not 0) behind them.

        `remember`: keep a digest of every page, and leave out what a running process has unmapped since;
        `changed`: leave out pages whose digest is the remembered one;
        `urgent`: no limit holds it back, for a frozen process waits for it.
        Raises OSError: ESRCH when the process is gone, EPIPE when the peer is."""
        listed = [(run.start, run.end, run.space, lib.LM_PUSH_PRESENT if run.present else 0) for run in runs]
        flags = (lib.LM_PUSH_REMEMBER if remember else 0) | (lib.LM_PUSH_CHANGED if changed else 0)
        flags |= lib.LM_PUSH_URGENT if urgent else 0
        array = ffi.new("struct lm_push_run[]", listed)
        check(lib.lm_page_server_push(self._server, identifier, array, len(listed), flags))

    def discard_pushed(self, space: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Discard the digests of the pages in [start, end), bytes: the next push sends them whatever they are. No error
        where there are none."""
        for start, end in ranges:
            lib.lm_page_server_discard_pushed(self._server, space, start, end)

    def hang_up(self) -> None:
        """End both connections, so that a push under way in another thread comes back."""
        lib.lm_page_server_hang_up(self._server)

    @property
    def state(self) -> ServerState:
        """The state now."""
        return ServerState(lib.lm_page_server_state(self._server))

    def wait(self, state: ServerState, timeout: float | None = None) -> ServerState:
        """Wait until the state is another than `state`, at most `timeout` seconds; the state then."""
        milliseconds = -1 if timeout is None else int(timeout * 1000)
        return ServerState(lib.lm_page_server_wait(self._server, state, milliseconds))

    @property
    def event(self) -> int:
        """An eventfd, the server's own, that is readable after a change of state until it is read."""
        return int(lib.lm_page_server_event(self._server))

    @property
    def cause(self) -> str:
        """Why the connection was lost, "" as long as it was not."""
        buffer = ffi.new("char[256]")
        lib.lm_page_server_cause(self._server, buffer, 256)
        return bytes(ffi.string(buffer)).decode(errors="replace")

    @property
    def counters(self) -> dict[str, int]:
        """What was sent, by the names of struct lm_server_statistics."""
        return counters(self.memory)


def _session(session: bytes) -> bytes:
    if len(session) != 16:
        raise ValueError(f"a session's name has 16 bytes, not {len(session)}")
    return session
