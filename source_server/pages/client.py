"""A client of a page store is one destination. It gets answers for the memory of processes that hold still, and pushes
of what it cannot request.

A thin cover of client.h and pushes.h; its threads are C and never take the interpreter's lock. Addresses and
lengths are in bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import check_errno
from live_migration.source_server.pages.store import PageStore
from live_migration.wire import status
from live_migration.wire.stream import Stream

COMPRESS_AUTO: int = lib.LM_COMPRESS_AUTO
COMPRESS_NONE: int = lib.LM_COMPRESS_NONE
STATISTICS_SIZE: int = ffi.sizeof("struct lm_client_statistics")


class ClientState(enum.IntEnum):
    """IDLE before connect; LOST when the peer is gone; DROPPED when it broke the protocol or sent a request too early;
    FAILED when the memory could not be read."""

    IDLE = lib.LM_CLIENT_IDLE
    CONNECTED = lib.LM_CLIENT_CONNECTED
    LOST = lib.LM_CLIENT_LOST
    DROPPED = lib.LM_CLIENT_DROPPED
    FAILED = lib.LM_CLIENT_FAILED


@dataclass(frozen=True)
class PushRun:
    """A stretch [start, end) of a space; `present`: only pages that the page tables show as present."""

    space: int
    start: int
    end: int
    present: bool = False


class PageClient:
    """Gives one destination pages of a store, on a FAULT and a BULK connection, until it is closed. The store must
    outlive it.

    `memory`, when given, is writable memory of STATISTICS_SIZE bytes (a shared mmap) that takes the counters."""

    def __init__(self, store: PageStore, memory: Any = None) -> None:
        self.store = store
        self.memory = memory if memory is not None else bytearray(STATISTICS_SIZE)
        self._statistics = ffi.from_buffer("struct lm_client_statistics *", self.memory, require_writable=True)
        self._client = lib.lm_page_client_create(store.handle, self._statistics)
        if not self._client:
            raise MemoryError("no memory for a client of the page store")

    @property
    def handle(self) -> Any:
        """The struct lm_page_client, for the rounds."""
        return self._client

    def __enter__(self) -> PageClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and free everything but the store."""
        if self._client:
            lib.lm_page_client_destroy(self._client)
            self._client = None

    def connect(self, fault: Stream, bulk: Stream, session: bytes, attempt: int = 1) -> None:
        """Begin to serve on two connections, or go on with new ones after the last two were lost. Raises OSError.

        They are shared; the caller may close its own."""
        check_errno(lib.lm_page_client_connect(self._client, fault.link(), bulk.link(), _session(session), attempt))

    def limit(self, bytes_per_second: int) -> None:
        """Hold the bulk stream back to so many bytes per second; 0: no limit."""
        lib.lm_page_client_limit(self._client, bytes_per_second)

    def compress(self, policy: int) -> None:
        """COMPRESS_AUTO, COMPRESS_NONE or a level of zstd."""
        lib.lm_page_client_compress(self._client, policy)

    def push(
        self,
        identifier: int,
        runs: Iterable[PushRun],
        *,
        remember: bool = False,
        changed: bool = False,
        urgent: bool = False,
    ) -> None:
        """Send runs on the bulk channel, and END with `identifier` (not 0) after them.

        `remember`: keep a digest of every page, and leave out what a running process has unmapped since;
        `changed`: leave out pages whose digest is the remembered one;
        `urgent`: no limit holds the push back, for a frozen process waits for it.
        Raises OSError: ESRCH when the process is gone, EPIPE when the peer is."""
        listed = [(run.start, run.end, run.space, lib.LM_PUSH_PRESENT if run.present else 0) for run in runs]
        flags = (lib.LM_PUSH_REMEMBER if remember else 0) | (lib.LM_PUSH_CHANGED if changed else 0)
        flags |= lib.LM_PUSH_URGENT if urgent else 0
        array = ffi.new("struct lm_push_run[]", listed)
        check_errno(lib.lm_page_client_push(self._client, identifier, array, len(listed), flags))

    def discard_pushed(self, space: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Discard the digests of the pages in [start, end), bytes: the next push sends them whatever they are. It is no
        error if there are none."""
        for start, end in ranges:
            lib.lm_page_client_discard_pushed(self._client, space, start, end)

    def hang_up(self) -> None:
        """End both connections, so that a push in another thread returns."""
        lib.lm_page_client_hang_up(self._client)

    @property
    def _status(self) -> Any:
        return lib.lm_page_client_status(self._client)

    @property
    def state(self) -> ClientState:
        """The state now."""
        return ClientState(lib.lm_status_state(self._status))

    def wait(self, state: ClientState, timeout: float | None = None) -> ClientState:
        """Wait until the state is no longer `state`, at most `timeout` seconds; return the state then."""
        return ClientState(status.wait(self._status, state, timeout))

    @property
    def event(self) -> int:
        """An eventfd of the client, readable from a change of state until it is read."""
        return int(lib.lm_status_event(self._status))

    @property
    def cause(self) -> str:
        """Why the connection was lost; "" while it is not."""
        return status.cause(self._status)

    @property
    def counters(self) -> dict[str, int]:
        """What was sent, by the names of struct lm_client_statistics."""
        return status.counters("lm_client_statistics", self.memory)


def _session(session: bytes) -> bytes:
    if len(session) != 16:
        raise ValueError(f"a session's name has 16 bytes, not {len(session)}")
    return session
