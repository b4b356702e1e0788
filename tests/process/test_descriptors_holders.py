"""Locks, owners, terminals, and who else holds what a process holds."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
from pathlib import Path

import pytest

from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.blockers import descriptor_blockers, passing_blockers, preflight_descriptors
from live_migration.process.descriptors.contents import inodes_without_path
from live_migration.process.descriptors.opening import open_descriptors, update_descriptors
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.rows import descriptor_rows
from live_migration.process.descriptors.snapshot import snapshot_descriptors
from live_migration.process.memory.mappings import snapshot_address_space
from live_migration.process.memory.shared_memory import shared_memory_blockers
from live_migration.process.scope import HostScan, scope_of
from tests.process.descriptor_help import moved, running, travel, without

NULL = DescriptorOptions(stdio="null")
LOCKS = """
put(os.open("flock", os.O_RDWR | os.O_CREAT), 20)
fcntl.flock(20, fcntl.LOCK_EX)
put(os.open("ofd", os.O_RDWR | os.O_CREAT), 21)
fcntl.fcntl(21, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 10, 5, 0))
put(os.open("posix", os.O_RDWR | os.O_CREAT), 22)
fcntl.lockf(22, fcntl.LOCK_EX, 7, 3)
ready()
os.close(22)
ready()
"""


def test_locks_of_descriptions_are_handed_over_on_one_machine(tmp_path: Path) -> None:
    with running(LOCKS, cwd=tmp_path) as child:
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
        assert {
            one.number: [(lock.kind, lock.start, lock.length) for lock in one.locks]
            for one in table.open_files
            if one.locks
        } == {
            20: [("FLOCK", 0, 0)],
            21: [("OFDLCK", 10, 5)],
            22: [("POSIX", 3, 7)],
        }
        assert descriptor_blockers(table, NULL) == []
        assert preflight_descriptors(table, NULL) == []
        assert [str(one) for one in passing_blockers(table, same_machine=True)] == [
            f"descriptor 22 ({tmp_path / 'posix'}): on one machine the source keeps its lock until it ends; "
            "try again when it has been released"
        ]
        assert passing_blockers(table, same_machine=False) == []
        child.go_on()
        with moved(child, source_access=True) as here:
            child.process.kill()
            child.process.wait()
            other = os.open(tmp_path / "flock", os.O_RDWR)
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(here(20))
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(other)


def test_locks_are_taken_anew_elsewhere(tmp_path: Path) -> None:
    with running(LOCKS, cwd=tmp_path) as child:
        seen = snapshot_descriptors(ProcessSnapshot(child.pid), frozen=True)
        seen.close()
    table = travel(without(seen.table, child.report))
    opened = open_descriptors(table, NULL, source_access=False)
    try:
        update_descriptors(opened, table)
        other = os.open(tmp_path / "ofd", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 14)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 15)
        os.close(other)
        program = Program("locks")
        descriptor_rows(program, table)
        assert len(program) == 1
    finally:
        opened.close()


def test_owners() -> None:
    code = """
    a, b = socket.socketpair()
    put(a.detach(), 20); put(b.detach(), 21)
    fcntl.fcntl(20, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(20, fcntl.F_SETSIG, signal.SIGRTMIN)
    fcntl.fcntl(20, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    fcntl.fcntl(21, fcntl.F_SETOWN, os.getppid())
    ready()
    """
    with running(code) as child:
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
        owner = next(one.owner for one in table.open_files if one.number == 20)
        assert owner is not None
        assert (owner.id, owner.signal, owner.own) == (child.pid, signal.SIGRTMIN, True)
        assert [str(one).split(": ", 1)[1] for one in descriptor_blockers(table, NULL)] == [
            f"it sends signals to process or group {os.getpid()}, which stays; "
            "let the process give it another owner (F_SETOWN)"
        ]
        program = Program("owners")
        descriptor_rows(program, table)
        assert len(program) == 4


def test_terminals() -> None:
    controller, terminal = pty.openpty()
    name = os.ttyname(terminal)
    try:
        with running(f"put({terminal}, 2); os.dup2(2, 20); ready()", pass_fds=[terminal]) as child:
            table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
            assert descriptor_blockers(table, NULL) == []
            with moved(child, NULL) as here:
                assert os.fstat(here(20)).st_rdev == os.makedev(1, 3)
            opened = open_descriptors(
                table, DescriptorOptions(), source_access=False, standard=(terminal, terminal, terminal)
            )
            identity = next(d.open_file for d in table.descriptors if d.number == 20)
            assert os.ttyname(opened.numbers[identity]) == name
            opened.close()
        with running(f"put({terminal}, 20); ready()", pass_fds=[terminal]) as child:
            table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
            assert [str(one) for one in descriptor_blockers(table, NULL)] == [
                f"descriptor 20 ({name}): terminal {name} stays with its user; start it with its terminal at 0 to 2 "
                "only, where --stdio replaces it, or let it close the descriptor"
            ]
    finally:
        os.close(controller)
        os.close(terminal)


def test_each_standard_descriptor_is_replaced_by_its_own() -> None:
    controller, terminal = pty.openpty()
    code = f"""
    put({terminal}, 1)
    for number in (0, 2, 20):
        os.dup2(1, number)
    ready()
    """
    try:
        with running(code, pass_fds=[terminal]) as child:
            live = snapshot_descriptors(ProcessSnapshot(child.pid))
            frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
            frozen.close()
            for seen in (live, frozen):
                by_identity = seen.table.by_identity()
                found = {each.number: by_identity[each.open_file].standard for each in seen.table.descriptors}
                assert {number: found[number] for number in (0, 1, 2, 20)} == {0: 0, 1: 1, 2: 2, 20: 0}
            assert live.table.descriptors == frozen.table.descriptors
            table = without(live.table, child.report)
            read_end, write_end = os.pipe()
            standard = (read_end, terminal, write_end)
            opened = open_descriptors(table, DescriptorOptions(), source_access=False, standard=standard)
            identities = {each.number: each.open_file for each in table.descriptors}
            here = [os.fstat(opened.numbers[identities[number]]).st_ino for number in (0, 1, 2)]
            assert here == [os.fstat(number).st_ino for number in standard]
            update_descriptors(opened, without(frozen.table, child.report))
            opened.close()
            os.close(read_end)
            os.close(write_end)
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("mapped", [True, False])
def test_shared_memory_is_found_in_other_processes(mapped: bool) -> None:
    memory = os.memfd_create("shared")
    os.truncate(memory, 4096)
    code = f"import mmap; m = mmap.mmap({memory}, 4096); ready()"
    with running(code, pass_fds=[memory]) as child, running("ready()", pass_fds=[] if mapped else [memory]) as other:
        os.close(memory)
        table = snapshot_descriptors(ProcessSnapshot(child.pid)).table
        space = snapshot_address_space(child.pid, inodes_without_path(table))
        found = shared_memory_blockers(space, without(table, child.report), HostScan(scope_of(child.pid)))
        if mapped:
            assert found == []
        else:
            assert [one.cause for one in found] == [
                f"memory that is also held by python ({other.pid}), which will not move".replace("(", "(process ")
            ]


def test_private_shared_memory_is_nobody_elses() -> None:
    with running("import mmap; m = mmap.mmap(-1, 4096); ready()") as child:
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
        scan = HostScan(scope_of(child.pid))
        assert shared_memory_blockers(snapshot_address_space(child.pid), table, scan) == []
        code = """
        import mmap
        memory = mmap.mmap(-1, 4096)
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.02)
            os._exit(0)
        ready()
        """
        with running(code) as parent:
            table = without(snapshot_descriptors(ProcessSnapshot(parent.pid)).table, parent.report)
            scan = HostScan(scope_of(parent.pid))
            found = shared_memory_blockers(snapshot_address_space(parent.pid), table, scan)
            assert [one.object.rpartition(" ")[0].endswith("/dev/zero") for one in found] == [True]
