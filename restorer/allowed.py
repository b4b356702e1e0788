"""What the operator of lm-restore lets the holder of a ticket bring: --allow-uid, --allow-path (restorer/options.py).

A description that asks for more is refused by name: the live one, each new layout, and the final one. In the end every
path goes through DescriptorOptions.map_path, which lets no other through.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from live_migration.process.attributes.credentials import Credentials, capability_names
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.memory.mappings import Mapping, MappingKind
from live_migration.process.migration import Migration
from live_migration.wire.blockers import Blocker

PATH_FIELDS = frozenset({"path", "directory", "executable", "working_directory", "root", "address", "peer_address"})
"""The fields of a description that can hold paths; a mapping has one only if its kind is of a file."""


def allowed_blockers(migration: Migration, users: Sequence[int], options: DescriptorOptions) -> list[Blocker]:
    """The blockers that the operator's options make; `users` are those of --allow-uid, none: everybody."""
    return [*_user_blockers(migration, users), *path_blockers(migration, options)]


def _user_blockers(migration: Migration, users: Sequence[int]) -> list[Blocker]:
    if not users or 0 in users:
        return []
    tasks = [member.task for member in migration.members]
    held = [one for task in tasks for one in (task.credentials, *(thread.credentials for thread in task.threads))]
    groups = {user: _groups_of(user) for user in users}
    return [found for one in dict.fromkeys(held) if (found := _credentials_blocker(one, groups)) is not None]


def _groups_of(user: int) -> frozenset[int]:
    """The groups of a user (getgrouplist(3)); none without an entry in passwd(5)."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _credentials_blocker(held: Credentials, groups: dict[int, frozenset[int]]) -> Blocker | None:
    """Why nobody of those who are allowed may have these credentials, or None."""
    strange = sorted(set(held.user_ids) - groups.keys())
    if strange:
        return Blocker("--allow-uid", f"the process is of user {strange[0]}", f"allow it: --allow-uid {strange[0]}")
    known = frozenset[int]().union(*(groups[user] for user in held.user_ids))
    foreign = sorted({*held.group_ids, *held.groups} - known)
    if foreign:
        return Blocker(
            "--allow-uid",
            f"the process is in group {foreign[0]}, in which user {held.user_ids[0]} is not on this host",
            "add the user to the group here (passwd(5), group(5)), or leave the option out",
        )
    if powers := held.permitted | held.effective | held.inheritable | held.ambient:
        return Blocker(
            "--allow-uid",
            f"the process has {capability_names(powers)}, which user {held.user_ids[0]} does not get here",
            "drop them from the process, or leave the option out",
        )
    return None


def path_blockers(described: object, options: DescriptorOptions) -> list[Blocker]:
    """A blocker for each path of a description that --allow-path does not allow."""
    if not options.allowed_paths:
        return []
    return [
        Blocker(path, "is not under any --allow-path", "allow it, or point elsewhere with --map-path OLD=NEW")
        for path in dict.fromkeys(_paths(described))
        if not options.is_allowed(options.mapped(path))
    ]


def _paths(described: object) -> Iterator[str]:
    """Every path in a description."""
    if isinstance(described, Mapping) and described.kind not in (MappingKind.PRIVATE_FILE, MappingKind.SHARED_FILE):
        return
    if isinstance(described, OpenFile) and described.standard is not None:
        return
    if isinstance(described, msgspec.Struct):
        for name in described.__struct_fields__:
            value = getattr(described, name)
            if name in PATH_FIELDS and isinstance(value, str | bytes):
                path = os.fsdecode(value)
                yield from [path] if path.startswith("/") else []
            else:
                yield from _paths(value)
    elif isinstance(described, Iterable) and not isinstance(described, str | bytes):
        for one in described:
            yield from _paths(one)
