"""Which fields of a thread's rseq area the kernel keeps (rseq(2)); newer ones have more, node_id and mm_cid.

The auxiliary vector tells (AT_RSEQ_FEATURE_SIZE, since Linux 6.3), once, at a program's start. On a kernel that keeps
fewer fields the others stay what they were: two threads with the same mm_cid would write to one another's data. Only
restartable sequences use them; they stand in a section of an ELF file with a name of its own; the C library has none.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from live_migration.kernel.opening import open_as
from live_migration.process.memory.mappings import Mapping, MappingKind
from live_migration.wire.blockers import Blocker

AT_RSEQ_FEATURE_SIZE = 27
# The fields that every kernel with rseq keeps, in bytes.
FIRST_FEATURES = 20
VECTOR_ENTRY = struct.Struct("=QQ")
SECTION = b"\0__rseq_cs"
ELF_MAGIC = b"\x7fELF\x02\x01"
# elf(5), 64 bits: e_shoff, e_shentsize, e_shnum, e_shstrndx; a section header's sh_offset and sh_size.
ELF_HEADER = struct.Struct("<40xQ10xHHH")
SECTION_HEADER = struct.Struct("<24xQQ24x")
MOST_NAMES = 1 << 20


def kept_fields(auxiliary_vector: bytes) -> int:
    """How many bytes of the area the kernel keeps, as this vector of it says."""
    whole = auxiliary_vector[: len(auxiliary_vector) // VECTOR_ENTRY.size * VECTOR_ENTRY.size]
    sizes = (int(value) for key, value in VECTOR_ENTRY.iter_unpack(whole) if key == AT_RSEQ_FEATURE_SIZE)
    return max(sizes, default=FIRST_FEATURES)


def rseq_blockers(
    auxiliary_vector: bytes, mappings: Iterable[Mapping], map_path: Callable[[str], str]
) -> list[Blocker]:
    """Blockers: what a process with this vector may miss on this host. Raises OSError if this process's own cannot be
    read."""
    if kept_fields(auxiliary_vector) <= kept_fields(Path("/proc/self/auxv").read_bytes()):
        return []
    programs = {m.path for m in mappings if m.kind is MappingKind.PRIVATE_FILE and m.protection & 4}
    return [
        Blocker(
            f"restartable sequences in {path}",
            "may rely on fields (node_id, mm_cid) that this host's kernel does not keep, and the source's does",
            "choose a host with Linux 6.3 or newer",
        )
        for path in sorted(programs)
        if has_sequences(map_path(path))
    ]


def has_sequences(path: str) -> bool:
    """Whether an ELF file has restartable sequences, by the names of its sections. False for another kind of file."""
    try:
        with open(open_as(stat.S_IFREG, path, os.O_RDONLY), "rb", buffering=0) as file:
            head = os.pread(file.fileno(), ELF_HEADER.size, 0)
            if not head.startswith(ELF_MAGIC):
                return False
            offset, size, count, names = ELF_HEADER.unpack(head)
            if size != SECTION_HEADER.size or names >= count:
                return False
            place, length = SECTION_HEADER.unpack(os.pread(file.fileno(), size, offset + names * size))
            return SECTION in os.pread(file.fileno(), min(length, MOST_NAMES), place)
    except (OSError, OverflowError, struct.error):
        return False
