"""Locks, owners, terminals, and who else holds what a process holds."""

from __future__ import annotations

import fcntl
import mmap
import os
import pty
import signal
from pathlib import Path

import pytest
from descriptor_help import moved, running, travel, without

from linux.program import Program
from process.descriptor_obstacles import descriptor_obstacles, passing_obstacles, preflight_descriptors
from process.descriptor_options import DescriptorOptions
from process.descriptor_rows import descriptor_rows
from process.descriptors import look_descriptors, open_descriptors, update_descriptors
from process.outsiders import memory_holders

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
        table = without(look_descriptors(child.pid).table, child.report)
        assert {
            one.number: [(lock.kind, lock.start, lock.length) for lock in one.locks]
            for one in table.descriptions
            if one.locks
        } == {
            20: [("FLOCK", 0, 0)],
            21: [("OFDLCK", 10, 5)],
            22: [("POSIX", 3, 7)],
        }
        assert descriptor_obstacles(table, NULL) == []
        assert preflight_descriptors(table, NULL) == []
        assert [str(one) for one in passing_obstacles(table, same_machine=True)] == [
            f"descriptor 22 ({tmp_path / 'posix'}): on one machine the source keeps its lock until it ends; "
            "try again when it has been released"
        ]
        assert passing_obstacles(table, same_machine=False) == []
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
        look = look_descriptors(child.pid, frozen=True)
        look.close()
    table = travel(without(look.table, child.report))
    opened = open_descriptors(table, NULL, source_access=False)
    try:
        update_descriptors(opened, table)
        other = os.open(tmp_path / "ofd", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 14)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 15)
        os.close(other)
        program = Program("locks")
        descriptor_rows(program, table, set())
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
        table = without(look_descriptors(child.pid).table, child.report)
        owner = next(one.owner for one in table.descriptions if one.number == 20)
        assert owner is not None
        assert (owner.id, owner.signal, owner.own) == (child.pid, signal.SIGRTMIN, True)
        assert [str(one).split(": ", 1)[1] for one in descriptor_obstacles(table, NULL)] == [
            f"it sends signals to process or group {os.getpid()}, which stays; "
            "let the process give it another owner (F_SETOWN)"
        ]
        program = Program("owners")
        descriptor_rows(program, table, set())
        assert len(program) == 4


def test_terminals() -> None:
    controller, terminal = pty.openpty()
    name = os.ttyname(terminal)
    try:
        with running(f"put({terminal}, 2); os.dup2(2, 20); ready()", pass_fds=[terminal]) as child:
            table = without(look_descriptors(child.pid).table, child.report)
            assert descriptor_obstacles(table, NULL) == []
            with moved(child, NULL) as here:
                assert os.fstat(here(20)).st_rdev == os.makedev(1, 3)
            opened = open_descriptors(
                table, DescriptorOptions(), source_access=False, standard=(terminal, terminal, terminal)
            )
            identity = next(d.description for d in table.descriptors if d.number == 20)
            assert os.ttyname(opened.numbers[identity]) == name
            opened.close()
        with running(f"put({terminal}, 20); ready()", pass_fds=[terminal]) as child:
            table = without(look_descriptors(child.pid).table, child.report)
            assert [str(one) for one in descriptor_obstacles(table, NULL)] == [
                f"descriptor 20 ({name}): terminal {name} stays with its user; start it with its terminal at 0 to 2 "
                "only, where --stdio replaces it, or let it close the descriptor"
            ]
    finally:
        os.close(controller)
        os.close(terminal)


def test_shared_memory_is_found_in_other_processes() -> None:
    memory = os.memfd_create("shared")
    os.truncate(memory, 4096)
    status = os.fstat(memory)
    try:
        code = f"import mmap; m = mmap.mmap({memory}, 4096); ready()"
        with mmap.mmap(memory, 4096), running(code, pass_fds=[memory]) as child:
            device = os.makedev(*shared_memory_device(child.pid, status.st_ino))
            found = memory_holders(child.pid, [(device, status.st_ino)], [])
            assert [holder.pid for holder in found[device, status.st_ino]] == [os.getpid()]
            assert memory_holders(child.pid, [(device, status.st_ino)], [os.getpid()]) == {}
    finally:
        os.close(memory)


def shared_memory_device(pid: int, inode: int) -> tuple[int, int]:
    """The device of a mapped file as /proc/PID/maps gives it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(inode):
            major, minor = fields[3].split(":")
            return int(major, 16), int(minor, 16)
    raise AssertionError("not mapped")
