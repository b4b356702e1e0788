"""The numbers of one migration: spaces of the page stream and identities of open files, given in one place.

Whatever member asks for one, no number ever stands for two things, and what has a number keeps it for as long as the
migration lasts.
"""

from __future__ import annotations

import itertools

from live_migration._lm import lib

FIRST_OBJECT: int = lib.LM_FIRST_OBJECT
"""Spaces below are the memory of members, those from here on objects (wire/page_stream.h)."""


class Numbering:
    """Gives the numbers of one migration."""

    def __init__(self) -> None:
        self._spaces: dict[int, int] = {}
        self._objects: dict[tuple[int, int, int], int] = {}
        self._open_files = itertools.count(1)

    def space_of(self, pid: int) -> int:
        """The space of a member's memory, by its id on the source host."""
        return self._spaces.setdefault(pid, len(self._spaces))

    def object_of(self, device: int, inode: int, size: int) -> int:
        """The space of a file's content. The file of another size is another object: the page server and the pager
        learn an object's size once."""
        return self._objects.setdefault((device, inode, size), FIRST_OBJECT + len(self._objects))

    def new_open_file(self) -> int:
        """The identity of an open file that has none yet."""
        return next(self._open_files)
