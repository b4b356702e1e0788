"""What the user says about descriptors: the options of lm-restore that matter to them."""

from __future__ import annotations

import errno
import os
from typing import Literal

import msgspec

HARMLESS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")


class DescriptorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How descriptors are restored.

    `stdio`: what stands at 0 to 2 if they lead outside; `files`: how files that are only read are compared; `tcp`: what
    becomes of established connections; `take_addresses`: addresses that this host gets with the process; `path_map`:
    pairs of an old and a new path, of which the longest wins; `allowed_paths`: what is under none of them is not
    touched; without any everything may be.
    """

    stdio: Literal["attach", "null"] = "attach"
    files: Literal["strict", "size", "trust"] = "strict"
    tcp: Literal["keep", "close", "refuse"] = "keep"
    take_addresses: tuple[str, ...] = ()
    path_map: tuple[tuple[str, str], ...] = ()
    allowed_paths: tuple[str, ...] = ()

    def map_path(self, path: str) -> str:
        """Where the source's `path` is on the destination. Raises PermissionError for one that is not allowed: whatever
        is looked at, opened, made or bound goes through here."""
        found = self.mapped(path)
        if self.allowed_paths and not self.is_allowed(found):
            raise PermissionError(errno.EACCES, "it is not under any --allow-path", found)
        return found

    def mapped(self, path: str) -> str:
        """The same, whether it is allowed or not."""
        matching = [(old, new) for old, new in self.path_map if path == old or path.startswith(old.rstrip("/") + "/")]
        if not matching:
            return path
        old, new = max(matching, key=lambda pair: len(pair[0]))
        return new.rstrip("/") + path[len(old.rstrip("/")) :]

    def is_allowed(self, path: str) -> bool:
        """Whether a path here is under one of `allowed_paths`, wherever symbolic links lead. The root directory itself
        and devices that hold nothing always are."""
        if not self.allowed_paths or path == "/" or path in HARMLESS:
            return True
        allowed = [os.path.realpath(one) for one in self.allowed_paths]
        # The name itself may be a symbolic link that is opened as such (O_PATH).
        places = (os.path.realpath(path), os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))
        return all(any(place == one or place.startswith(one.rstrip("/") + "/") for one in allowed) for place in places)

    def map_bytes(self, path: bytes) -> bytes:
        """The same for a path in bytes."""
        return os.fsencode(self.map_path(os.fsdecode(path)))
