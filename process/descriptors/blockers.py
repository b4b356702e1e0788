"""Every blocker that a process's descriptors put in the way, on the source and on the destination."""

from __future__ import annotations

import os

from live_migration.process.descriptors.epoll import Epoll, epoll_blockers
from live_migration.process.descriptors.file_locks import kept_locks, lock_blockers
from live_migration.process.descriptors.files import (
    Device,
    Directory,
    File,
    device_blockers,
    difference,
    directory_blockers,
    file_blockers,
    is_writable,
    preflight_device,
    preflight_directory,
    preflight_file,
)
from live_migration.process.descriptors.inet_sockets import InetSocket, inet_blockers, preflight_inet
from live_migration.process.descriptors.inotify import Inotify, event_blockers, inotify_blockers, preflight_inotify
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.pipes import Pipe, preflight_pipe
from live_migration.process.descriptors.reach import reach_of
from live_migration.process.descriptors.stdio import Terminal, terminal_blockers
from live_migration.process.descriptors.table import OpenFile, Refused, Table
from live_migration.process.descriptors.unix_sockets import (
    UnixSocket,
    is_outside,
    preflight_unix,
    queue_blockers,
    unix_blockers,
)
from live_migration.process.scope import holders_text
from live_migration.wire.blockers import Blocker


def descriptor_blockers(table: Table, options: DescriptorOptions) -> list[Blocker]:
    """What the source can tell to be in the way, all of it."""
    own_sockets = table.unix_inodes()
    return [
        blocker for one in table.descriptions for blocker in blockers_of(one, options, own_sockets, table.frozen)
    ]


def blockers_of(one: OpenFile, options: DescriptorOptions, own_sockets: set[int], frozen: bool) -> list[Blocker]:
    """What is in the way of one description."""
    if one.standard is not None:
        return []
    found: list[Blocker] = []
    if is_held_outside(one):
        found.append(
            Blocker(
                one.name,
                f"it is also held by {holders_text(one.holders)}, which will not move",
                "let either side close it before the move, or end the holder",
            )
        )
    kind = one.kind
    if isinstance(kind, File):
        found += file_blockers(kind, one.flags, one.name)
    elif isinstance(kind, Directory):
        found += directory_blockers(kind, one.name)
    elif isinstance(kind, Device):
        found += device_blockers(kind, one.name)
    elif isinstance(kind, Terminal):
        found += terminal_blockers(kind, one.name)
    elif isinstance(kind, UnixSocket):
        found += unix_blockers(kind, one.name, is_outside(kind, own_sockets)) + queue_blockers(kind, one.name)
    elif isinstance(kind, InetSocket):
        found += inet_blockers(kind, one.name, options.tcp)
    elif isinstance(kind, Epoll):
        found += epoll_blockers(kind, one.name)
    elif isinstance(kind, Inotify):
        found += inotify_blockers(kind, one.name)
        if frozen:
            found += event_blockers(kind, one.name)
    elif isinstance(kind, Refused):
        found.append(Blocker(one.name, kind.cause, kind.remedy))
    if one.owner is not None and not one.owner.own:
        found.append(
            Blocker(
                one.name,
                f"it sends signals to process or group {one.owner.id}, which stays",
                "let the process give it another owner (F_SETOWN)",
            )
        )
    return found + lock_blockers(one.locks, one.name)


def passing_blockers(table: Table, same_machine: bool) -> list[Blocker]:
    """What is in the way of a frozen process but passes by itself once it runs: worth another try."""
    found: list[Blocker] = []
    for one in table.descriptions:
        if one.standard is not None:
            continue
        if same_machine:
            found += kept_locks(one.locks, one.name)
        if isinstance(one.kind, UnixSocket):
            found += queue_blockers(one.kind, one.name)
        elif isinstance(one.kind, Inotify):
            found += event_blockers(one.kind, one.name)
    return found


def is_held_outside(one: OpenFile) -> bool:
    """Is it held by a process that stays, in a way that matters?

    A device without state may be. So may a file at 0 to 2, inherited from a shell that waits: it is opened
    by its path on the destination, and only its offset is no longer shared.
    """
    if not one.holders or isinstance(one.kind, Device | Directory | Refused):
        return False
    return not (isinstance(one.kind, File) and one.number <= 2 and one.kind.linked)


def preflight_descriptors(table: Table, options: DescriptorOptions) -> list[Blocker]:
    """What the destination can tell to be in the way: files missing or different, no permission, ports
    taken.
    """
    found: list[Blocker] = []
    bodies = table.pipe_bodies()
    reach = reach_of(table.place)
    for one in table.descriptions:
        if one.standard is not None:
            continue
        kind = one.kind
        if isinstance(kind, File):
            found += preflight_file(kind, one.flags, one.name, options, reach.same_machine)
        elif isinstance(kind, Directory):
            found += preflight_directory(kind, one.name, options)
        elif isinstance(kind, Device):
            found += preflight_device(kind, one.name, options)
        elif isinstance(kind, Pipe) and kind.pipe in bodies:
            body = bodies.pop(kind.pipe)
            found += preflight_pipe(body, one.name, options.map_path(body.path) if body.path else None)
        elif isinstance(kind, UnixSocket):
            abstract = kind.address[:1] == b"\0"
            handed_over = reach.source and (reach.same_network or not abstract)
            found += preflight_unix(kind, one.name, options.map_path, not handed_over)
        elif isinstance(kind, InetSocket) and not (reach.source and reach.same_network):
            found += preflight_inet(kind, one.name)
        elif isinstance(kind, Inotify):
            found += preflight_inotify(kind, one.name, options.map_path)
    return found


def compare_written_files(table: Table, options: DescriptorOptions, same_machine: bool) -> list[Blocker]:
    """How files open for writing differ here from what the frozen source says; the source has flushed them
    before.
    """
    found = []
    for one in table.descriptions:
        if not isinstance(one.kind, File) or not one.kind.linked or not is_writable(one.flags):
            continue
        path = options.map_path(one.kind.path)
        try:
            wrong = difference(one.kind, os.stat(path), options.files, same_machine)
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
