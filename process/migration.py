"""What a migration moves, in the form that travels: its members, and whatever they may share, each thing once.

A source reads each member with all that it refers to and puts them together (`migration_of`). A destination checks the
whole, and restores each member with its own table (`table_of`). With one member nothing is copied on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from live_migration.process.attributes.session import Session
from live_migration.process.descriptors.contents import Content
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.registry import AnyObject, AnyShared
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.member import Member
from live_migration.process.memory.mapped_files import MappedFile
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.numbering import FIRST_OBJECT

NOT_TOLD = AddressSpace(mappings=[])
END_OF_SPACES = 1 << 32

Shared = TypeVar("Shared")


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """The members of a migration and what they share. Each object stands once, however many members refer to it.

    `open_files` are named by descriptors; sockets are among them, since no socket has two. `shared` is what several
    open files have in common (pipes), and `contents` what is in memfds and unlinked files (objects of the page stream):
    open files and mappings name both by the inode. `mapped_files` are named by mappings, by path and inode, and
    `sessions` by members. `frozen`: the members stood still.

    `pushed` numbers the push on the bulk connection that carries the changed pages of all members, with those that
    they touch first. `corrected` numbers a push that corrects what rounds have sent, as far as that was not possible
    earlier; 0: there is none. `files_as_staged`: the mapped files have not changed since the live description, and do
    not travel again."""

    members: list[Member]
    open_files: list[OpenFile[AnyObject]]
    shared: list[AnyShared] = []
    contents: list[Content] = []
    mapped_files: list[MappedFile] = []
    sessions: list[Session] = []
    frozen: bool = False
    pushed: int = 0
    corrected: int = 0
    files_as_staged: bool = False


@dataclass(frozen=True)
class MemberParts:
    """A member as the source reads it, with all that it refers to."""

    member: Member
    table: DescriptorTable
    contents: list[Content]
    files: list[MappedFile]
    session: Session


def migration_of(parts: Sequence[MemberParts], *, pushed: int = 0, corrected: int = 0) -> Migration:
    """What these members are together."""
    return Migration(
        members=[one.member for one in parts],
        open_files=_each_once([one.table.open_files for one in parts], lambda open_file: open_file.identity),
        shared=_each_once([one.table.shared for one in parts], lambda shared: (type(shared), shared.inode)),
        contents=_each_once([one.contents for one in parts], lambda content: content.space),
        mapped_files=_mapped_files([one.files for one in parts]),
        sessions=_each_once([[one.session] for one in parts], lambda session: session.id),
        frozen=all(one.table.frozen for one in parts),
        pushed=pushed,
        corrected=corrected,
    )


def _each_once(lists: Sequence[list[Shared]], name: Callable[[Shared], object]) -> list[Shared]:
    if len(lists) == 1:
        return lists[0]
    once: dict[object, Shared] = {}
    for found in lists:
        for one in found:
            once.setdefault(name(one), one)
    return list(once.values())


def _mapped_files(lists: Sequence[list[MappedFile]]) -> list[MappedFile]:
    """Each file once; one that any member writes to is written to."""
    files = _each_once(lists, _file_name)
    if len(lists) == 1:
        return files
    written = {_file_name(one) for found in lists for one in found if one.written}
    return [replace(one, written=_file_name(one) in written) for one in files]


def _file_name(mapped: MappedFile) -> tuple[str, int]:
    return mapped.file.path, mapped.file.inode


def table_of(migration: Migration, member: Member) -> DescriptorTable:
    """The descriptors of one member and the open files that they stand for, each called by its lowest number there."""
    open_files = migration.open_files
    if len(migration.members) > 1:
        # In reverse, so that the lowest number comes last.
        lowest = {one.open_file: one.number for one in reversed(member.descriptors)}
        open_files = [replace(one, number=lowest[one.identity]) for one in open_files if one.identity in lowest]
    return DescriptorTable(
        place=member.place,
        descriptors=member.descriptors,
        open_files=open_files,
        shared=migration.shared,
        frozen=migration.frozen,
    )


def whole_table(migration: Migration) -> DescriptorTable:
    """The open files of all members in one table: each is checked once, and the other end of a socket pair is not
    outside when another member has it."""
    return DescriptorTable(
        place=migration.members[0].place,
        descriptors=[one for member in migration.members for one in member.descriptors],
        open_files=migration.open_files,
        shared=migration.shared,
        frozen=migration.frozen,
    )


def without_staged(
    migration: Migration, memories: Mapping[int, AddressSpace], files: Sequence[MappedFile]
) -> Migration:
    """The migration without what the destination has already: the memory of each space, if it is the very object, and
    the mapped files. The shorter the message, the shorter the freeze."""
    members = [
        replace(one, memory=NOT_TOLD, as_staged=True) if one.memory is memories.get(one.space) else one
        for one in migration.members
    ]
    if migration.mapped_files is not files:
        return replace(migration, members=members)
    return replace(migration, members=members, mapped_files=[], files_as_staged=True)


def with_staged(migration: Migration, memories: Mapping[int, AddressSpace], files: list[MappedFile]) -> Migration:
    """The opposite of `without_staged`. Raises LookupError when a space has no memory."""
    members = [replace(one, memory=memories[one.space]) if one.as_staged else one for one in migration.members]
    known = files if migration.files_as_staged else migration.mapped_files
    return replace(migration, members=members, mapped_files=known)


def claim_of(migration: Migration) -> bytes:
    """What the source of a migration claims about where its members run, for the proof of it (wire/same_host.py)."""
    return msgspec.msgpack.encode([member.place for member in migration.members])


def out_of_reach(migration: Migration) -> Migration:
    """The migration of a source that has not proven where its members run: no process is named."""
    members = [replace(one, place=replace(one.place, pid=0)) for one in migration.members]
    return replace(migration, members=members)


def check_references(migration: Migration) -> None:
    """Every number stands for one thing, and every reference leads to something. Raises ValueError.

    What a peer sends is not trusted; beyond this each part checks its own."""
    spaces = [member.space for member in migration.members]
    if not spaces:
        raise ValueError("it has no members")
    if len(set(spaces)) < len(spaces) or not all(0 <= space < FIRST_OBJECT for space in spaces):
        raise ValueError(f"the spaces of its members are {spaces}")
    objects = [content.space for content in migration.contents]
    if len(set(objects)) < len(objects) or not all(FIRST_OBJECT <= space < END_OF_SPACES for space in objects):
        raise ValueError("its contents are not objects, or two of them are one")
    identities = {one.identity for one in migration.open_files}
    if len(identities) < len(migration.open_files):
        raise ValueError("two of its open files are one")
    sessions = {session.id for session in migration.sessions}
    for member in migration.members:
        numbers = {one.number for one in member.descriptors}
        if len(numbers) < len(member.descriptors):
            raise ValueError(f"process {member.task.pid} has a descriptor twice")
        if not identities.issuperset(one.open_file for one in member.descriptors):
            raise ValueError(f"process {member.task.pid} has a descriptor of an open file that is not described")
        if member.session not in sessions:
            raise ValueError(f"process {member.task.pid} is in session {member.session}, which is not described")
