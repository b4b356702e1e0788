"""The numbers of one migration: spaces of the page stream and identities of open files, given in one place.

Whichever member needs a number, none ever stands for two things, and what has a number keeps it for as long as the
migration lasts.
"""

from __future__ import annotations

import itertools

from live_migration._lm import lib
from live_migration.process.scope import DescriptorAt, is_held

FIRST_OBJECT: int = lib.LM_FIRST_OBJECT
"""Spaces below are the memory of members, those from here on objects (wire/page_stream.h)."""


class Numbering:
    """Gives the numbers of one migration."""

    def __init__(self) -> None:
        self._spaces: dict[int, int] = {}
        self._objects: dict[tuple[int, int, int], int] = {}
        self._open_files: dict[str, dict[int, list[tuple[DescriptorAt, int]]]] = {}
        self._identities = itertools.count(1)

    def space_of(self, pid: int) -> int:
        """The space of a member's memory, by its id on the source host."""
        return self._spaces.setdefault(pid, len(self._spaces))

    def object_of(self, device: int, inode: int, size: int) -> int:
        """The space of a file's content. A file that changes its size is another object: the page server and the pager
        learn an object's size once."""
        return self._objects.setdefault((device, inode, size), FIRST_OBJECT + len(self._objects))

    def open_file_of(self, at: DescriptorAt, link: str) -> int:
        """The identity of the open file at a descriptor, of which /proc/PID/fd says `link`: where another member has it
        too, the one that it has there, as kcmp(2) tells; else a new one."""
        known = self._open_files.setdefault(link, {})
        others = (one for pid, those in known.items() if pid != at[0] for one in those)
        identity = next((identity for other, identity in others if is_held(other, at)), 0) or self.new_open_file()
        known.setdefault(at[0], []).append((at, identity))
        return identity

    def new_open_file(self) -> int:
        """The identity of an open file that nobody has yet."""
        return next(self._identities)
