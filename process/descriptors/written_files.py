"""Regular files that are open for writing, on storage that both hosts see: the source flushes them, and then the
destination compares them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from live_migration.process.descriptors.files import File, file_difference, is_writable
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.registry import AnyObject
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.wire.blockers import Blocker


def written_files(table: DescriptorTable) -> Iterator[tuple[OpenFile[AnyObject], File]]:
    """The open files that can write to a file with a path."""
    for one in table.open_files:
        if isinstance(one.object, File) and one.object.linked and is_writable(one.flags):
            yield one, one.object


def each_once(table: DescriptorTable) -> list[OpenFile[AnyObject]]:
    """One open file for each such file."""
    found: dict[tuple[int, int], OpenFile[AnyObject]] = {}
    for one, file in written_files(table):
        found.setdefault((file.device, file.inode), one)
    return list(found.values())


def flush_written_files(table: DescriptorTable, duplicates: dict[int, int]) -> None:
    """On the source: write what is still in memory of the files open for writing to their storage, so that the other
    host sees it. `duplicates` are those of the frozen snapshot. Raises OSError.
    """
    for one in each_once(table):
        if one.identity in duplicates:
            os.fsync(duplicates[one.identity])


def flush_beforehand(pid: int, table: DescriptorTable) -> None:
    """The same while process `pid` runs, so that little is left to write when it is frozen."""
    for one in each_once(table):
        with contextlib.suppress(OSError):
            number = os.open(f"/proc/{pid}/fd/{one.number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def compare_written_files(table: DescriptorTable, options: DescriptorOptions, same_machine: bool) -> list[Blocker]:
    """How files open for writing differ here from what the frozen source says; the source has flushed them before.
    """
    found = []
    for one, file in written_files(table):
        path = options.map_path(file.path)
        try:
            wrong = file_difference(file, os.stat(path), options.files, same_machine)
        except OSError as error:
            wrong = str(error.strerror)
        if wrong is not None:
            found.append(
                Blocker(
                    one.name,
                    f"{path}, open for writing: {wrong}",
                    "keep it on storage that both hosts see, or relax --files",
                )
            )
    return found
