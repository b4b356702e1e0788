"""Kinds of descriptors: each is a file with one record, and registry.py lists these. What goes over all of them knows
no kind.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from live_migration.process.descriptors.kind import Kind
from live_migration.process.descriptors.registry import KINDS
from tests.house.test_layers import MAY_USE, PACKAGE, ROOT, imports, module_name, python_files

FOLDER = ROOT / "process" / "descriptors"
REGISTRY = f"{PACKAGE}.process.descriptors.registry"
FILES = f"{PACKAGE}.process.descriptors.files"
SOCKETS = f"{PACKAGE}.process.descriptors.inet_sockets"
# Who may know a kind beside the registry, and why.
KNOWN = {
    (f"{PACKAGE}.process.descriptors.{name}", FILES): "it has a path, as files have"
    for name in ("directory", "memfd", "path_only")
} | {
    (f"{PACKAGE}.process.descriptors.written_files", FILES): "it is about files that are written to, and nothing else",
    (f"{PACKAGE}.process.descriptors.tcp_traffic", SOCKETS): "it is about TCP, and nothing else",
    (f"{PACKAGE}.process.memory.mapped_files", FILES): "a mapped file is described and compared as an open one is",
    (f"{PACKAGE}.restorer.preflight", FILES): "files that were opened since the husk was staged are looked for",
    (f"{PACKAGE}.source_server.precopy", FILES): "devices write past page tables where a file is open with O_DIRECT",
}


def records(path: Path) -> list[Kind[Any]]:
    """The records that a file of the folder makes itself."""
    module = importlib.import_module(module_name(path))
    return [
        value
        for value in vars(module).values()
        if isinstance(value, Kind) and value.object.__module__ == module.__name__
    ]


def test_every_file_of_a_kind_has_one_record_and_the_registry_lists_it() -> None:
    found = {path.stem: records(path) for path in FOLDER.glob("*.py")}
    assert {name: len(kinds) for name, kinds in found.items() if len(kinds) > 1} == {}
    assert {id(kind) for kinds in found.values() for kind in kinds} == {id(kind) for kind in KINDS}
    assert len({kind.object.__struct_config__.tag for kind in KINDS}) == len(KINDS)


def test_only_the_registry_knows_kinds() -> None:
    kinds = {kind.object.__module__ for kind in KINDS}
    found = set()
    for folder in MAY_USE:
        for path in python_files(folder):
            user = module_name(path)
            found |= {(user, used) for _, used in imports(path) if used in kinds and user not in (used, REGISTRY)}
    assert sorted(found - KNOWN.keys()) == []
    assert sorted(KNOWN.keys() - found) == [], "knows it no longer"
