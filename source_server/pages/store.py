"""The store: the spaces of a migration, from which any number of clients get pages. A thin cover of store.h."""

from __future__ import annotations

from typing import Any

from live_migration._lm import lib
from live_migration.kernel.errors import check_errno

FIRST_OBJECT: int = lib.LM_FIRST_OBJECT


class PageStore:
    """Spaces by their numbers, and a reader for each. Its clients are closed before it is."""

    def __init__(self) -> None:
        self._store = lib.lm_page_store_create()
        if not self._store:
            raise MemoryError("no memory for the page store")

    @property
    def handle(self) -> Any:
        """The struct lm_page_store, for clients."""
        return self._store

    def __enter__(self) -> PageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything."""
        if self._store:
            lib.lm_page_store_destroy(self._store)
            self._store = None

    def add_process(self, space: int, pid: int) -> None:
        """Give out `space` from the memory of `pid`. Raises OSError, EEXIST when the number is taken."""
        check_errno(lib.lm_page_store_add_process(self._store, space, pid))

    def add_object(self, space: int, descriptor: int) -> None:
        """Give out `space` (FIRST_OBJECT or more) from a duplicate of the descriptor, by offset. Raises OSError."""
        check_errno(lib.lm_page_store_add_object(self._store, space, descriptor))

    def open(self, is_open: bool) -> None:
        """Answer requests from now on, for all processes hold still, or no longer, as at first.

        A request that comes while the store is not open ends its client's connections."""
        lib.lm_page_store_open(self._store, is_open)
