"""A bridge in the husk (process/memory/bridge.py): the kernel's own mappings move away, and the source's code takes
their place."""

from __future__ import annotations

import mmap

from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_mmap, SYS_mprotect, SYS_mremap
from live_migration.kernel.tracing import tracee
from live_migration.process.memory.bridge import Bridge
from live_migration.process.memory.rows import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from live_migration.process.memory.vdso import NAME


def move_row(program: Program, name: str, start: int, length: int, to: int) -> None:
    """A row that moves one of the kernel's mappings."""
    program.call(f"move {name}", SYS_mremap, start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to)


def bridge_rows(program: Program, bridge: Bridge) -> None:
    """Rows that move the kernel's mappings away and make the places of the source's, the one for code still empty."""
    for move in bridge.moves:
        move_row(program, move.name, move.start, move.length, move.to)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    for place in bridge.places:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if place.name == NAME else 0)
        program.call(f"map {place.name}", SYS_mmap, place.start, place.length, protection, flags, -1, 0)


def write_bridge(pid: int, bridge: Bridge) -> Program:
    """Put the code into the stopped husk `pid`; the program that then protects it. Raises OSError, ProcessGone."""
    program = Program("protecting the bridge")
    for place in bridge.places:
        if place.name == NAME:
            tracee.write_memory(pid, place.start, bridge.code)
            protection = mmap.PROT_READ | mmap.PROT_EXEC
            program.call("protect the bridge", SYS_mprotect, place.start, place.length, protection)
    return program
