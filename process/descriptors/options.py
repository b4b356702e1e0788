"""What the user says about descriptors: the options of lm-restore that matter to them."""

from __future__ import annotations

import os
from typing import Literal

import msgspec


class DescriptorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How descriptors are restored.

    `stdio`: what stands at 0 to 2 if they lead outside; `files`: how files that are only read are compared; `tcp`: what
    becomes of established connections; `path_map`: pairs of an old and a new path, of which the longest wins.
    """

    stdio: Literal["attach", "null"] = "attach"
    files: Literal["strict", "size", "trust"] = "strict"
    tcp: Literal["refuse", "close"] = "refuse"
    path_map: tuple[tuple[str, str], ...] = ()

    def map_path(self, path: str) -> str:
        """Where the source's `path` is on the destination."""
        matching = [(old, new) for old, new in self.path_map if path == old or path.startswith(old.rstrip("/") + "/")]
        if not matching:
            return path
        old, new = max(matching, key=lambda pair: len(pair[0]))
        return new.rstrip("/") + path[len(old.rstrip("/")) :]

    def map_bytes(self, path: bytes) -> bytes:
        """The same for a path in bytes."""
        return os.fsencode(self.map_path(os.fsdecode(path)))
