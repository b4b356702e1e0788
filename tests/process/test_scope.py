"""Who is outside of a migration, and what the one scan over the host tells of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process import family, scope
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.contents import inodes_without_path
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.snapshot import snapshot_descriptors
from live_migration.process.memory.mappings import snapshot_address_space
from live_migration.process.memory.shared_memory import shared_memory_blockers
from live_migration.process.scope import HostScan, scope_of
from tests.process.descriptor_help import Child, running, without

# A parent and a child that share a pipe, an open file, and memory.
PARENT_AND_CHILD = """
import mmap, tempfile
memory = mmap.mmap(-1, 4096)
read_end, write_end = os.pipe()
put(read_end, 20); put(write_end, 21)
file = tempfile.NamedTemporaryFile()
os.dup2(file.fileno(), 22); os.close(file.fileno())
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.02)
    os._exit(0)
ready()
"""


@pytest.fixture
def parent() -> Iterator[Child]:
    with running(PARENT_AND_CHILD) as one:
        yield one


def found_by(scan: HostScan, parent: Child) -> list[str]:
    """The objects of all blockers that the scan finds for the parent."""
    table = without(snapshot_descriptors(ProcessSnapshot(parent.pid), scan=scan).table, parent.report)
    memory = snapshot_address_space(parent.pid, inodes_without_path(table))
    found = [
        *family.child_blockers(parent.pid, scan),
        *descriptor_blockers(table, DescriptorOptions(stdio="null")),
        *shared_memory_blockers(memory, table, scan),
    ]
    return [one.object for one in found]


def test_what_is_shared_with_a_process_that_stays_is_a_blocker(parent: Child) -> None:
    (child,) = HostScan(scope_of(parent.pid)).children(parent.pid)
    found = found_by(HostScan(scope_of(parent.pid)), parent)
    assert found[0].startswith(f"process {child} (")
    assert {name.split()[1] for name in found[1:-1]} >= {"20", "21", "22"}
    assert found[-1].startswith("mapping ")


def test_what_members_share_is_no_blocker(parent: Child) -> None:
    (child,) = HostScan(scope_of(parent.pid)).children(parent.pid)
    assert found_by(HostScan(scope_of(parent.pid, child)), parent) == []


def test_observers_hold_nothing_that_counts(parent: Child) -> None:
    (child,) = HostScan(scope_of(parent.pid)).children(parent.pid)
    watched = scope.Scope(frozenset((parent.pid,)), frozenset((os.getpid(), child)))
    (found,) = found_by(HostScan(watched), parent)
    assert found.startswith(f"process {child} (")


def test_all_questions_go_to_one_scan(parent: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    read: list[int] = []
    all_processes, links_of = scope.all_processes, scope.links_of

    def list_processes() -> list[int]:
        listed.append(1)
        return all_processes()

    def read_links(pid: int) -> Iterator[tuple[int, str]]:
        read.append(pid)
        return links_of(pid)

    monkeypatch.setattr(scope, "all_processes", list_processes)
    monkeypatch.setattr(scope, "links_of", read_links)
    scan = HostScan(scope_of(parent.pid))
    assert not listed
    found_by(scan, parent)
    family.sharing_blockers(ProcessSnapshot(parent.pid), scan)
    assert len(listed) == 1
    assert len(read) == len(set(read)) == len(scan.others) - 1


MANY = 200
# Two processes that have eventfds of their own besides those that they share.
MANY_EVENTFDS = f"""
shared = [os.eventfd(0) for _ in range({MANY})]
parent = os.getpid()
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.close(shared[0])
    own = [os.eventfd(0) for _ in range({MANY})]
    os.write(write_end, b".")
    while os.getppid() == parent:
        time.sleep(0.02)
    os._exit(0)
own = [os.eventfd(0) for _ in range({MANY})]
os.read(read_end, 1)
ready()
"""


@pytest.mark.parametrize("is_changed", [False, True])
def test_who_holds_one_of_many_open_files(is_changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found without comparing all with all; also where the order was another one when they were sorted."""
    compared: list[int] = []
    in_place = scope.in_place

    def count(one: scope.DescriptorAt, other: scope.DescriptorAt) -> int:
        compared.append(1)
        sorting = len(compared) < 20 * MANY
        return in_place(one, other) * (-1 if is_changed and sorting and one[0] == other[0] else 1)

    monkeypatch.setattr(scope, "in_place", count)
    with running(MANY_EVENTFDS) as parent:
        (child,) = HostScan(scope_of(parent.pid)).children(parent.pid)
        by_link: dict[str, list[scope.DescriptorAt]] = {}
        for number, link in scope.links_of(parent.pid):
            by_link.setdefault(link, []).append((parent.pid, number))
        own = by_link["anon_inode:[eventfd]"]
        _, held = HostScan(scope_of(parent.pid)).holders([], {"anon_inode:[eventfd]": own})
        numbers = sorted(number for _, number in own)
        assert sorted(number for _, number in held) == numbers[1:MANY]
        assert {one.pid for holders in held.values() for one in holders} == {child}
    assert len(own) == 2 * MANY
    if not is_changed:
        assert len(compared) < 100 * MANY
