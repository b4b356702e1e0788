"""Regular files, directories, devices and pipes: described in a child, opened here, compared."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from live_migration.kernel.pidfd import open_pidfd
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.blockers import descriptor_blockers, preflight_descriptors
from live_migration.process.descriptors.files import File
from live_migration.process.descriptors.open_file import close_all
from live_migration.process.descriptors.opening import (
    OpenedDescriptors,
    descriptor_changes,
    open_descriptors,
    update_descriptors,
)
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.snapshot import Snapshot, see_open_files, snapshot_descriptors
from live_migration.process.descriptors.written_files import compare_written_files
from tests.process.descriptor_help import moved, running, travel, without

OPTIONS = DescriptorOptions()


def shared(first: int, second: int) -> bool:
    """Do two descriptors of this process share their offset?"""
    before = os.lseek(first, 0, os.SEEK_CUR)
    os.lseek(first, before + 1, os.SEEK_SET)
    same = os.lseek(second, 0, os.SEEK_CUR) == before + 1
    os.lseek(first, before, os.SEEK_SET)
    return same


def test_offset_flags_and_duplicates(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 10)
    code = """
    one = os.open("file", os.O_RDWR)
    os.dup2(one, 20, inheritable=True)
    two = os.open("file", os.O_RDWR | os.O_APPEND | os.O_NONBLOCK)
    os.dup2(two, 21, inheritable=False)
    os.lseek(20, 37, 0)
    ready()
    os.lseek(20, 41, 0)
    fcntl.fcntl(21, fcntl.F_SETFL, os.O_NONBLOCK)
    ready()
    """
    with running(code, cwd=tmp_path) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            child.go_on()

        seen = snapshot_descriptors(ProcessSnapshot(child.pid))
        numbers = {d.number: d for d in seen.table.descriptors}
        one = next(d.number for d in seen.table.descriptors if d.open_file == numbers[20].open_file)
        assert one != 20
        assert not numbers[20].close_on_exec
        assert numbers[21].close_on_exec
        assert numbers[20].open_file != numbers[21].open_file
        with moved(child, between=between) as here:
            assert here(one) == here(20)
            assert os.lseek(here(20), 0, os.SEEK_CUR) == 41
            assert not shared(here(20), here(21))
            flags = fcntl.fcntl(here(21), fcntl.F_GETFL)
            assert flags & os.O_NONBLOCK
            assert not flags & os.O_APPEND
            assert os.fstat(here(21)).st_ino == (tmp_path / "file").stat().st_ino


def test_directory_and_null(tmp_path: Path) -> None:
    code = """
    put(os.open(".", os.O_RDONLY | os.O_DIRECTORY), 20)
    put(os.open("/dev/null", os.O_WRONLY), 21)
    put(os.open(".", os.O_PATH), 22)
    ready()
    """
    with running(code, cwd=tmp_path) as child, moved(child) as here:
        assert os.fstat(here(20)).st_ino == tmp_path.stat().st_ino
        assert os.fstat(here(21)).st_rdev == os.makedev(1, 3)
        assert os.fstat(here(22)).st_ino == tmp_path.stat().st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.listdir(here(22))


def test_unlinked_file_is_made_anew_once(tmp_path: Path) -> None:
    code = """
    put(os.open("gone", os.O_RDWR | os.O_CREAT, 0o640), 20)
    put(os.open("gone", os.O_RDONLY), 21)
    os.write(20, b"content" * 1000)
    os.unlink("gone")
    ready()
    """
    wanted: list[int] = []
    with running(code, cwd=tmp_path) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            for number in opened.content_wanted.values():
                wanted.append(os.write(number, b"content" * 1000))

        with moved(child, between=between) as here:
            assert here(20) != here(21)
            assert os.pread(here(21), 20000, 0) == b"content" * 1000
            assert os.lseek(here(20), 0, os.SEEK_CUR) == 7000
            assert os.lseek(here(21), 0, os.SEEK_CUR) == 0
            assert os.fstat(here(21)).st_mode & 0o777 == 0o640
            os.pwrite(here(20), b"X", 0)
            assert os.pread(here(21), 1, 0) == b"X"
    assert wanted == [7000]
    assert not (tmp_path / "gone").exists()


def test_file_replaced_by_rename_is_told_apart(tmp_path: Path) -> None:
    code = """
    put(os.open("file", os.O_RDONLY), 20)
    open("new", "w").write("new")
    os.rename("new", "file")
    ready()
    """
    (tmp_path / "file").write_text("old")
    with running(code, cwd=tmp_path) as child:
        table = snapshot_descriptors(ProcessSnapshot(child.pid)).table
        described = next(d for d in table.open_files if d.number == 20)
        assert isinstance(described.object, File)
        assert not described.object.linked
        assert described.object.path == str(tmp_path / "file")


def test_preflight_names_every_difference(tmp_path: Path) -> None:
    code = """
    put(os.open("read", os.O_RDONLY), 20)
    put(os.open("written", os.O_WRONLY), 21)
    put(os.open("missing", os.O_RDONLY), 22)
    ready()
    """
    for name in ("read", "written", "missing"):
        (tmp_path / name).write_text(name)
    with running(code, cwd=tmp_path) as child:
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
    # The same machine knows that a file has only just gone; this is about another one.
    table = replace(table, place=replace(table.place, boot="another"))
    assert preflight_descriptors(table, OPTIONS) == []
    (tmp_path / "missing").unlink()
    os.utime(tmp_path / "read", ns=(1, 1))
    os.utime(tmp_path / "written", ns=(1, 1))
    read, missing = tmp_path / "read", tmp_path / "missing"
    assert [str(blocker) for blocker in preflight_descriptors(table, OPTIONS)] == [
        f"descriptor 20 ({read}): {read}: it was modified at another time than the source's; "
        "copy it here with its times, or relax --files",
        f"descriptor 22 ({missing}): {missing}: No such file or directory; "
        "copy it here or point to it with --map-path OLD=NEW",
    ]
    size = DescriptorOptions(files="size", path_map=((str(missing), str(read)),))
    assert [o.object for o in preflight_descriptors(table, size)] == [f"descriptor 22 ({missing})"]
    assert [o.cause for o in compare_written_files(table, OPTIONS, same_machine=False)] == [
        f"{tmp_path / 'written'}, open for writing: it was modified at another time than the source's"
    ]
    assert compare_written_files(table, DescriptorOptions(files="size"), same_machine=False) == []
    # Somebody else writes to it too, as to a log; another file in its place is another one here as well.
    assert compare_written_files(table, OPTIONS, same_machine=True) == []
    (tmp_path / "another").write_text("other")
    (tmp_path / "another").rename(tmp_path / "written")
    assert [o.cause for o in compare_written_files(table, OPTIONS, same_machine=True)] == [
        f"{tmp_path / 'written'}, open for writing: its size is 5 bytes here and 7 bytes on the source"
    ]


def test_pipe_keeps_its_data_and_ends(tmp_path: Path) -> None:
    code = """
    r, w = os.pipe()
    fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 17)
    os.dup2(r, 20); os.dup2(w, 21); os.close(r); os.close(w)
    fcntl.fcntl(20, fcntl.F_SETFL, os.O_NONBLOCK)
    for i in range(1000):
        os.write(21, b"%07d " % i)
    r, w = os.pipe2(os.O_DIRECT)
    os.dup2(r, 22); os.close(r)
    os.write(w, b"one"); os.write(w, b"second"); os.write(w, b"3")
    os.close(w)
    ready()
    assert os.read(20, 8) == b"0000000 "
    ready()
    """
    with running(code) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            child.go_on()

        with moved(child, between=between) as here:
            assert fcntl.fcntl(here(20), fcntl.F_GETPIPE_SZ) == 1 << 17
            assert fcntl.fcntl(here(20), fcntl.F_GETFL) == os.O_RDONLY | os.O_NONBLOCK
            assert fcntl.fcntl(here(21), fcntl.F_GETFL) == os.O_WRONLY
            expected = b"".join(b"%07d " % i for i in range(1, 1000))
            assert os.read(here(20), 1 << 17) == expected
            os.write(here(21), b"more")
            assert os.read(here(20), 100) == b"more"
            assert [os.read(here(22), 100) for _ in range(4)] == [b"one", b"second", b"3", b""]
            os.close(here(21))
            assert os.read(here(20), 100) == b""


def test_fifo_on_this_machine_is_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    code = """
    put(os.open("fifo", os.O_RDWR), 20)
    os.write(20, b"waiting")
    ready()
    """
    with running(code, cwd=tmp_path) as child, moved(child) as here:
        os.set_blocking(here(20), False)
        assert os.read(here(20), 100) == b"waiting"
        with pytest.raises(BlockingIOError):
            os.read(here(20), 100)


def test_outside_ends_are_named(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    other = os.fork()
    if other == 0:
        signal.pause()
    try:
        with running("ready()", stderr=write_end) as child:
            seen = snapshot_descriptors(ProcessSnapshot(child.pid))
            table = without(seen.table, child.report)
            standard = next(d for d in table.open_files if d.number == 2)
            assert standard.standard == 2
            assert {holder.pid for holder in standard.holders} >= {other}
            assert descriptor_blockers(table, OPTIONS) == []
        with running(f"os.dup2({write_end}, 20); ready()", pass_fds=[write_end]) as child:
            table = snapshot_descriptors(ProcessSnapshot(child.pid)).table
            found = descriptor_blockers(without(table, child.report), OPTIONS)
            assert f"(process {other})" in found[0].cause
    finally:
        os.close(write_end)
        os.close(read_end)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def test_changes_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    code = """
    a = os.open("a", os.O_RDONLY)
    os.dup2(a, 20); os.dup2(a, 21); os.dup2(a, 22, inheritable=False)
    ready()
    os.close(21); put(os.open("a", os.O_WRONLY), 20); os.dup2(a, 23)
    os.set_inheritable(22, True)
    ready()
    """
    with running(code, cwd=tmp_path) as child:
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        child.go_on()
        frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
        frozen.close()
        changes = descriptor_changes(live.table, travel(frozen.table))
        assert 21 in changes.close
        assert {20, 23} <= {d.number for d in changes.install}
        assert [(d.number, d.close_on_exec) for d in changes.close_on_exec] == [(22, False)]


def test_a_file_removed_while_staging_is_left_out(tmp_path: Path) -> None:
    code = """
    put(os.open("temporary", os.O_RDWR | os.O_CREAT), 20)
    ready()
    os.close(20); os.unlink("temporary")
    put(os.open("another", os.O_RDWR | os.O_CREAT), 20)
    ready()
    """
    with running(code, cwd=tmp_path) as child:
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        child.go_on()
        staged = without(travel(live.table), child.report)
        assert preflight_descriptors(staged, OPTIONS) == []
        opened = open_descriptors(staged, OPTIONS, source_access=False)
        assert 20 not in {each.number for each in opened.part_of(staged).descriptors}
        frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
        frozen.close()
        final = without(travel(frozen.table), child.report)
        update_descriptors(opened, final)
        assert 20 in {each.number for each in descriptor_changes(opened.part_of(staged), final).install}
        opened.close()


def test_what_stands_for_one_open_file_is_told_anew_each_time() -> None:
    """How the descriptors were ordered the last time makes it quick, and never wrong."""
    numbers = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    order: dict[int, int] = {}

    def groups() -> set[tuple[int, ...]]:
        pidfd = open_pidfd(os.getpid())
        seen = see_open_files(os.getpid(), pidfd, frozen=False, order=order)
        close_all([pidfd, *(one.duplicate for one in seen)])
        return {one.numbers for one in seen if set(one.numbers) & set(numbers)}

    try:
        apart = {(number,) for number in numbers}
        assert groups() == apart
        assert groups() == apart
        os.dup2(numbers[3], numbers[7])
        os.dup2(numbers[15], numbers[0])
        one_twice = {(numbers[3], numbers[7]), (numbers[0], numbers[15])}
        expected = one_twice | {(number,) for at, number in enumerate(numbers) if at not in (0, 3, 7, 15)}
        assert groups() == expected
        order.update({number: -at for at, number in enumerate(numbers)})
        assert groups() == expected
    finally:
        close_all(numbers)
