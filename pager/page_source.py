"""Page sources: where a pager's pages come from. A thin cover of page_source.h and its kinds."""

from __future__ import annotations

from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import check_errno
from live_migration.wire.stream import Stream


class PageSource:
    """A struct lm_page_source. It is closed unless a pager has taken it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def take(self) -> Any:
        """The handle, which belongs to the caller from now on."""
        handle, self._handle = self._handle, None
        return handle

    def close(self) -> None:
        """Close it, if nobody has taken it."""
        if self._handle:
            lib.lm_page_source_close(self.take())


def socket_source(stream: Stream, role: int, session: bytes, attempt: int = 1) -> PageSource:
    """Pages over a connection (`role` LM_ROLE_FAULT or LM_ROLE_BULK), which is shared with whoever gives it.

    Raises OSError."""
    if len(session) != 16:
        raise ValueError(f"a session's name has 16 bytes, not {len(session)}")
    made = ffi.new("struct lm_page_source **")
    check_errno(lib.lm_socket_source_create(stream.link(), role, session, attempt, made))
    return PageSource(made[0])


def memory_source(content: bytes, start: int, space: int = 0) -> PageSource:
    """The pages of `space` from address `start` on are in `content`, which must stay as long as the source does; there
    are no others. Raises OSError."""
    made = ffi.new("struct lm_page_source **")
    check_errno(lib.lm_memory_source_create(space, start, len(content), ffi.from_buffer(content), made))
    return PageSource(made[0])
