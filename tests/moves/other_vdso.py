"""lm-serve as on a machine whose kernel has another vdso than this one: the same code, but not the same bytes.

A script for tests, with lm-serve's arguments."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from unittest import mock

from live_migration.cli.serve import main
from live_migration.kernel.memory.maps import MapEntry
from live_migration.process.memory import vdso

# Padding of the ELF header (elf(5), EI_PAD): nothing reads it.
PLACE = 15

read_code = vdso.read_code


def read_other_code(pid: int, mappings: Iterable[MapEntry]) -> bytes:
    """A process's vdso as another kernel might have it."""
    code = bytearray(read_code(pid, mappings))
    if code:
        code[PLACE] ^= 1
    return bytes(code)


@contextlib.contextmanager
def other_kernel() -> Iterator[None]:
    """Within, every process's vdso is another kernel's."""
    with (
        mock.patch("live_migration.process.memory.vdso.read_code", read_other_code),
        mock.patch("live_migration.process.memory.mappings.read_code", read_other_code),
    ):
        yield


if __name__ == "__main__":
    with other_kernel():
        sys.exit(main())
