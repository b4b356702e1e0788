"""A migration of two members through every part that does no I/O: what they share stands once, and numbers are unique.

Both are read from a parent and its child, which share a pipe, a memfd, a socket pair, memory, files and a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from live_migration._lm import ffi, lib
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process import family
from live_migration.process.descriptors.blockers import descriptor_blockers, passing_blockers
from live_migration.process.descriptors.contents import inodes_without_path, new_contents, snapshot_contents
from live_migration.process.descriptors.opening import DescriptorChanges, descriptor_changes
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.rows import descriptor_rows
from live_migration.process.descriptors.snapshot import snapshot_descriptors
from live_migration.process.member import Member, Runs
from live_migration.process.memory.layout_change import layout_difference
from live_migration.process.memory.mapped_files import snapshot_mapped_files
from live_migration.process.memory.mappings import PAGE, AddressSpace, snapshot_address_space
from live_migration.process.memory.shared_memory import shared_memory_blockers
from live_migration.process.migration import (
    MemberParts,
    Migration,
    check_references,
    migration_of,
    table_of,
    whole_table,
    with_staged,
    without_staged,
)
from live_migration.process.numbering import FIRST_OBJECT, Numbering
from live_migration.process.scope import HostScan, Scope, scope_of
from live_migration.process.task import snapshot_task
from live_migration.restorer import preflight as preflights
from live_migration.restorer import room
from live_migration.restorer.migrate import only_member, unpack_migration
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.preflight import new_file_blockers
from live_migration.restorer.rounds import memory_ranges
from live_migration.source_server.serve import push_runs
from live_migration.wire import messages
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import ProtocolError
from live_migration.wire.host import snapshot_host
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.strategy import Parameters
from tests.process.descriptor_help import running, without

NULL = DescriptorOptions(stdio="null")
PAIR = """
import mmap
memory = mmap.mmap(-1, 4096)
read_end, write_end = os.pipe()
put(read_end, 20); put(write_end, 21)
put(os.memfd_create("shared"), 22)
os.truncate(22, 8192)
one, other = socket.socketpair()
put(one.detach(), 23); put(other.detach(), 24)
parent = os.getpid()
if os.fork() == 0:
    os.close(20); os.close(23)
    while os.getppid() == parent:
        time.sleep(0.02)
    os._exit(0)
os.close(21); os.close(24)
os.dup2(22, 30); os.close(22)
ready()
"""


@dataclass(frozen=True)
class Pair:
    """A parent and its child, each as it is read, and the numbers of their migration."""

    numbering: Numbering
    parts: list[MemberParts]

    @property
    def migration(self) -> Migration:
        return migration_of(self.parts, pushed=2)


def read(pid: int, report: int, scope: Scope, numbering: Numbering) -> MemberParts:
    """One member from outside, without the pipe by which the test hears of it."""
    live = snapshot_task(ProcessSnapshot(pid))
    table = without(snapshot_descriptors(ProcessSnapshot(pid), scan=HostScan(scope), numbering=numbering).table, report)
    memory = snapshot_address_space(pid, inodes_without_path(table))
    files = snapshot_mapped_files(pid, memory.mappings)
    member = Member(
        space=numbering.space_of(pid),
        place=table.place,
        executable="/usr/bin/python3",
        memory=memory,
        task=live.description,
        session=live.session.id,
        descriptors=table.descriptors,
        changed=[Runs(memory.mappings[0].start, 1)],
        resident=1 << 20,
    )
    return MemberParts(member, table, snapshot_contents(table, numbering), files, live.session)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running(PAIR) as parent:
        (child,) = HostScan(scope_of(parent.pid)).children(parent.pid)
        scope, numbering = scope_of(parent.pid, child), Numbering()
        yield Pair(numbering, [read(pid, parent.report, scope, numbering) for pid in (parent.pid, child)])


def travelled(migration: Migration) -> Migration:
    """The migration as the destination gets it."""
    return messages.unpack(messages.pack(migration), Migration)


def identity_at(member: Member, number: int) -> int:
    """The open file that a member has at a number."""
    return next(one.open_file for one in member.descriptors if one.number == number)


def texts(found: list[Blocker]) -> list[str]:
    return [str(one) for one in found]


def test_it_travels_as_it_is(pair: Pair) -> None:
    assert travelled(pair.migration) == pair.migration
    check_references(travelled(pair.migration))


def test_what_members_share_stands_once(pair: Pair) -> None:
    first, second = pair.parts
    migration = pair.migration
    # The child has closed 20 and 23; the parent has closed 21 and 24, and has the memfd at 30.
    memfd = identity_at(first.member, 30)
    assert identity_at(second.member, 22) == memfd
    assert identity_at(first.member, 0) == identity_at(second.member, 0)
    identities = [one.identity for one in migration.open_files]
    assert len(identities) == len(set(identities))
    assert set(identities) == {one.identity for part in pair.parts for one in part.table.open_files}
    assert len(identities) < sum(len(part.table.open_files) for part in pair.parts)
    pipes = {pipe.inode for part in pair.parts for pipe in part.table.shared}
    assert {pipe.inode for pipe in first.table.shared} == {pipe.inode for pipe in second.table.shared} == pipes
    assert sorted(pipe.inode for pipe in migration.shared) == sorted(pipes)
    assert [(one.device, one.inode) for one in migration.contents] == [
        (one.device, one.inode) for one in first.contents
    ]
    assert len(migration.contents) == 1
    assert migration.mapped_files == first.files == second.files
    assert migration.sessions == [first.session] == [second.session]
    assert {member.session for member in migration.members} == {first.session.id}


def test_a_file_that_any_member_writes_to_is_written_to(pair: Pair) -> None:
    first, second = pair.parts
    files = [replace(second.files[0], written=True), *second.files[1:]]
    migration = migration_of([first, dataclasses.replace(second, files=files)])
    assert migration.mapped_files == files


def test_numbers_are_the_migrations(pair: Pair) -> None:
    spaces = [member.space for member in pair.migration.members]
    assert spaces == [0, 1]
    assert [content.space for content in pair.migration.contents] == [FIRST_OBJECT]
    # Read again, everything keeps its number; a file of another size is another object.
    for part in pair.parts:
        assert pair.numbering.space_of(part.member.place.pid) == part.member.space
        assert snapshot_contents(part.table, pair.numbering) == part.contents
    (content,) = pair.migration.contents
    larger = pair.numbering.object_of(content.device, content.inode, content.size + 1)
    assert larger not in {*spaces, content.space}
    assert new_contents([replace(content, space=larger)], pair.migration.contents)
    assert pair.numbering.new_open_file() not in {one.identity for one in pair.migration.open_files}


def test_each_member_has_its_own_table(pair: Pair) -> None:
    migration = travelled(pair.migration)
    for member, part in zip(migration.members, pair.parts, strict=True):
        table = table_of(migration, member)
        assert table.place == part.table.place
        assert table.descriptors == part.table.descriptors
        # The parent's numbers are not the child's, in what either calls the same file.
        assert {one.identity: one.number for one in table.open_files} == {
            one.identity: one.number for one in part.table.open_files
        }
        assert descriptor_changes(part.table, table) == DescriptorChanges([], [], [])
        program = Program("rows of one member")
        descriptor_rows(program, table)
    assert [one.identity for one in whole_table(migration).open_files] == [one.identity for one in migration.open_files]


def test_nothing_between_members_is_outside(pair: Pair) -> None:
    migration = travelled(pair.migration)
    assert texts(descriptor_blockers(whole_table(migration), NULL)) == []
    assert texts(passing_blockers(whole_table(migration), same_machine=False)) == []
    # Each alone: the other has the other ends.
    for member in migration.members:
        alone = replace(migration, members=[member])
        found = texts(descriptor_blockers(table_of(migration, member), NULL))
        assert any("has the other end" in text for text in found)
        check_references(alone)


def test_whoever_stays_is_outside_of_both(pair: Pair) -> None:
    first, second = (part.member.place.pid for part in pair.parts)
    both = HostScan(scope_of(first, second))
    assert family.child_blockers(first, both) == family.child_blockers(second, both) == []
    assert [family.sharing_blockers(ProcessSnapshot(pid), both) for pid in (first, second)] == [[], []]
    for part in pair.parts:
        assert shared_memory_blockers(part.member.memory, part.table, both) == []
    alone = HostScan(scope_of(first))
    assert len(family.child_blockers(first, alone)) == 1
    # The memory that they have in common, and the memfd.
    assert len(shared_memory_blockers(pair.parts[0].member.memory, pair.parts[0].table, alone)) == 2


def test_a_final_description_leaves_out_what_is_known_of_each_member(pair: Pair) -> None:
    staged = pair.migration
    memories = {member.space: member.memory for member in staged.members}
    first, second = staged.members
    grown = AddressSpace(mappings=second.memory.mappings[1:])
    final = replace(staged, members=[first, replace(second, memory=grown)])
    told = without_staged(final, memories, staged.mapped_files)
    assert [member.as_staged for member in told.members] == [True, False]
    assert told.files_as_staged
    assert not told.mapped_files
    assert not told.members[0].memory.mappings
    there = travelled(told)
    whole = with_staged(there, memories, staged.mapped_files)
    assert [member.memory for member in whole.members] == [first.memory, grown]
    assert whole.mapped_files == staged.mapped_files
    assert new_file_blockers(whole, staged, NULL) == []
    assert not layout_difference(first.memory, whole.members[0].memory).unmap
    assert layout_difference(second.memory, whole.members[1].memory).unmap == [
        (second.memory.mappings[0].start, second.memory.mappings[0].end)
    ]
    fewer = without_staged(replace(final, mapped_files=staged.mapped_files[1:]), memories, staged.mapped_files)
    assert with_staged(travelled(fewer), memories, staged.mapped_files).mapped_files == staged.mapped_files[1:]


def test_every_member_is_judged_by_the_destination(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    here = snapshot_host(cpu.describe(), "")
    options = RestoreOptions(
        Meeting(), Parameters(), "auto", True, "null", "trust", (), "refuse", "trust", None, False, 0
    )
    migration = travelled(pair.migration)
    monkeypatch.setattr(room, "available", lambda: room.Available(2 << 20, []))
    assert texts(preflights.preflight(migration, preflights.Peer(here, here), options, NULL)) == []
    monkeypatch.setattr(room, "available", lambda: room.Available((2 << 20) - 1, []))
    missing = replace(migration.members[1], executable="/nowhere/program")
    found = preflights.preflight(
        replace(migration, members=[migration.members[0], missing]), preflights.Peer(here, here), options, NULL
    )
    assert [one.object for one in found] == ["executable /nowhere/program", "this host's memory"]
    kept = dataclasses.replace(options, pid="keep")
    found = preflights.preflight(migration, preflights.Peer(here, here), kept, NULL)
    assert {f"id {member.task.pid}" for member in migration.members} <= {one.object for one in found}


def test_pages_of_members_never_meet(pair: Pair) -> None:
    """At the same addresses both have memory: each has a space and page tables of its own, and a push names both."""
    total = ffi.new("uint64_t *", 0)
    spaces = []
    for member in pair.migration.members:
        space = ffi.new("struct lm_space *")
        lib.lm_space_init(space, member.space, -1, 0, -1)
        for one in memory_ranges(member.memory):
            table = lib.lm_page_table_create(ffi.NULL, (one.end - one.start) // PAGE, total)
            piece = {
                "start": one.start,
                "end": one.end,
                "source": one.start,
                "source_space": member.space,
                "kind": int(one.kind),
                "table": table,
                "first": 0,
            }
            assert lib.lm_space_insert(space, ffi.new("struct lm_range *", piece)) == 0
        spaces.append(space)
    ranges = [memory_ranges(member.memory) for member in pair.migration.members]
    same = {one.start for one in ranges[0]} & {one.start for one in ranges[1]}
    assert same
    for place in same:
        first, second = (lib.lm_space_at(space, place) for space in spaces)
        assert (first.source_space, second.source_space) == (0, 1)
        assert first.table != second.table
        assert lib.lm_space_by_source(spaces[0], 1, place, place + PAGE) == ffi.NULL
    for space in spaces:
        lib.lm_space_deinit(space)
    assert total[0] == 0
    pushes = [
        run for member in pair.migration.members for run in push_runs(member.space, member.changed, ())
    ] + push_runs(0, (), pair.migration.contents)
    assert [run.space for run in pushes] == [0, 1, FIRST_OBJECT]
    assert pushes[0].start == pushes[1].start
    assert pushes[2].end == 8192


def test_references_that_lead_nowhere_are_found(pair: Pair) -> None:
    migration = pair.migration
    first, second = migration.members
    twice = replace(second, space=first.space)
    foreign = replace(second, space=FIRST_OBJECT)
    repeated = replace(first, descriptors=[*first.descriptors, first.descriptors[0]])
    for broken, words in (
        (replace(migration, members=[]), "no members"),
        (replace(migration, members=[first, twice]), "spaces"),
        (replace(migration, members=[first, foreign]), "spaces"),
        (replace(migration, contents=[replace(migration.contents[0], space=1)]), "objects"),
        (replace(migration, contents=migration.contents * 2), "objects"),
        (replace(migration, open_files=migration.open_files * 2), "open files"),
        (replace(migration, open_files=migration.open_files[1:]), "an open file that is not described"),
        (replace(migration, members=[repeated]), "a descriptor twice"),
        (replace(migration, sessions=[]), "session"),
    ):
        with pytest.raises(ValueError, match=words):
            check_references(broken)


def test_lm_restore_refuses_what_it_cannot_restore_yet(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="it describes 2 processes"):
        only_member(unpack_migration(messages.pack(pair.migration)))
    with pytest.raises(ProtocolError, match="no members"):
        unpack_migration(messages.pack(replace(pair.migration, members=[])))
