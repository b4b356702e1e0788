"""Fields of the rseq area that the source's kernel keeps and the destination's does not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from live_migration.process.memory.mappings import Mapping, MappingKind, snapshot_address_space
from live_migration.process.threads.rseq_fields import (
    AT_RSEQ_FEATURE_SIZE,
    VECTOR_ENTRY,
    has_sequences,
    kept_fields,
    rseq_blockers,
)
from tests.support import programs_help
from tests.support.programs_list import FOLDER

MORE_THAN_ANY = VECTOR_ENTRY.pack(AT_RSEQ_FEATURE_SIZE, 1 << 20) + VECTOR_ENTRY.pack(0, 0)


def program(path: str) -> Mapping:
    """A mapping of a program's text."""
    return Mapping(0x1000, 0x2000, MappingKind.PRIVATE_FILE, 5, 0, "08:01", 1, path, False)


def test_what_the_vector_tells() -> None:
    assert kept_fields(b"") == 20
    assert kept_fields(MORE_THAN_ANY + b"odd") == 1 << 20
    assert kept_fields(Path("/proc/self/auxv").read_bytes()) >= 20


def test_sequences_are_found_by_their_section(tmp_path: Path) -> None:
    programs_help.build()
    assert has_sequences(str(FOLDER / "bin" / "rseq_section"))
    assert not has_sequences(sys.executable)
    assert not any(has_sequences(one.path) for one in snapshot_address_space(os.getpid()).mappings if one.inode)
    for number, content in enumerate((b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 100, b"text")):
        (tmp_path / str(number)).write_bytes(content)
        assert not has_sequences(str(tmp_path / str(number)))


def test_only_a_program_that_has_some_is_refused_and_only_where_fields_are_missing() -> None:
    user, other = program("/old/rseq_section"), program(sys.executable)

    def map_path(path: str) -> str:
        return path.replace("/old", str(FOLDER / "bin"))

    own = Path("/proc/self/auxv").read_bytes()
    assert rseq_blockers(own, [user, other], map_path) == []
    assert rseq_blockers(MORE_THAN_ANY, [other], map_path) == []
    (found,) = rseq_blockers(MORE_THAN_ANY, [user, other], map_path)
    assert found.object == "restartable sequences in /old/rseq_section"
