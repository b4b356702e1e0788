"""Memfds and unlinked files, to which only descriptors lead: the page store reads them as objects."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from live_migration.kernel import pidfd
from live_migration.process.descriptors.contents import Content, identity_of, new_contents, number_of
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.snapshot import FrozenSource, SourceSnapshot


def serve_contents(store: PageStore, seen: SourceSnapshot) -> list[Content]:
    """Let the page store read those of a running process, through descriptors of its own; returns which of them it
    reads now. The process may have closed one since the snapshot, and opened another file at its number."""
    source = pidfd.open_pidfd(seen.pid)
    served = []
    try:
        for content in seen.contents:
            number = number_of(seen.descriptors.table, content)
            try:
                duplicate = pidfd.fetch_descriptor(source, number)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                continue
            status = os.fstat(duplicate)
            if (status.st_dev, status.st_ino) == (content.device, content.inode):
                store.add_object(content.space, duplicate)
                served.append(content)
            os.close(duplicate)
    finally:
        os.close(source)
    return served


def serve_new_contents(store: PageStore, served: Iterable[Content], source: FrozenSource) -> None:
    """The same for those that have appeared, or changed their size, since then."""
    description = source.description
    for content in new_contents(description.contents, served):
        identity = identity_of(description.table, content)
        store.add_object(content.space, source.descriptors.duplicates[identity])
