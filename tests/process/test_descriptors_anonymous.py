"""eventfd, timerfd, signalfd, inotify, memfd and epoll: described in a child, opened here, compared."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from pathlib import Path

import pytest
from msgspec import structs

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import Program, make_program_area, run_in_husk
from live_migration.kernel.injection.syscall_numbers import SYS_pidfd_open
from live_migration.kernel.pidfd import fetch_descriptor, open_pidfd
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.epoll import ENTRY, Epoll
from live_migration.process.descriptors.open_file import as_handed_over
from live_migration.process.descriptors.opening import (
    OpenedDescriptors,
    open_descriptors,
    seal_descriptors,
    update_descriptors,
)
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.rows import descriptor_rows
from live_migration.process.descriptors.snapshot import Snapshot, came_since, snapshot_descriptors
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.restorer.descriptor_install import Installed, install_rows, lowest_free
from live_migration.wire.blockers import Blocker
from tests.kernel.husks import stopped_husk
from tests.process.descriptor_help import moved, running, without


def test_eventfd_keeps_its_count() -> None:
    code = """
    put(os.eventfd(7, os.EFD_NONBLOCK), 20)
    put(os.eventfd(3, os.EFD_SEMAPHORE), 21)
    put(os.eventfd(0), 22)
    ready()
    os.eventfd_write(20, 5)
    ready()
    """
    with running(code) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            child.go_on()

        with moved(child, between=between) as here:
            assert os.eventfd_read(here(20)) == 12
            with pytest.raises(BlockingIOError):
                os.eventfd_read(here(20))
            assert [os.eventfd_read(here(21)) for _ in range(3)] == [1, 1, 1]
            assert not fcntl.fcntl(here(22), fcntl.F_GETFL) & os.O_NONBLOCK


TIMERS = """
sys.path.insert(0, os.environ["PYTHONPATH"])
from live_migration._lm import lib
SECOND = 1000000000
def timer(number, clock, flags, value, interval):
    put(lib.lm_timerfd_create(clock, 0), number)
    lib.lm_timerfd_set(number, flags, int(value * SECOND), int(interval * SECOND))
timer(20, time.CLOCK_MONOTONIC, 0, 100, 7)
timer(21, time.CLOCK_REALTIME, 1, time.time() + 200, 0)
timer(22, time.CLOCK_MONOTONIC, 0, 0.001, 0.05)
timer(23, time.CLOCK_MONOTONIC, 0, 0.001, 0)
timer(24, time.CLOCK_MONOTONIC, 0, 0, 0)
time.sleep(0.12)
ready()
"""


def test_timerfd_goes_on() -> None:
    state = ffi.new("lm_timerfd_state *")
    second = 10**9
    with running(TIMERS) as child, moved(child) as here:
        assert lib.lm_timerfd_get(here(20), state) == 0
        assert 80 * second < state.value < 100 * second
        assert state.interval == 7 * second
        lib.lm_timerfd_get(here(21), state)
        assert 180 * second < state.value < 200 * second
        assert int.from_bytes(os.read(here(22), 8), "little") >= 3
        os.set_blocking(here(22), True)
        assert int.from_bytes(os.read(here(22), 8), "little") >= 1
        assert int.from_bytes(os.read(here(23), 8), "little") == 1
        lib.lm_timerfd_get(here(24), state)
        assert (state.value, state.interval) == (0, 0)


def test_signalfd_and_inotify(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").write_text("")
    code = """
    sys.path.insert(0, os.environ["PYTHONPATH"])
    from live_migration._lm import lib
    put(lib.lm_signalfd(1 << (signal.SIGUSR2 - 1) | 1 << 63, os.O_NONBLOCK), 20)
    watcher = lib.lm_inotify_init(0)
    put(watcher, 21)
    for i in range(3):
        lib.lm_inotify_remove(21, lib.lm_inotify_add(21, b"one", 0x2))
    lib.lm_inotify_add(21, b"one", 0x100)
    lib.lm_inotify_add(21, b"two", 0x2)
    os.set_blocking(21, False)
    os.read(21, 10000)
    ready()
    lib.lm_inotify_remove(21, 4)
    os.read(21, 10000)
    lib.lm_inotify_add(21, b"one", 0x200)
    ready()
    """
    queued: list[list[Blocker]] = []
    with running(code, cwd=tmp_path) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            child.go_on()

        def finish(opened: OpenedDescriptors, final: DescriptorTable) -> None:
            # The process has heard of it at the source; or it is about what lm-restore does.
            (tmp_path / "two").write_text("changed, and heard of")
            seal_descriptors(opened, final)
            frozen = snapshot_descriptors(ProcessSnapshot(child.pid), frozen=True)
            queued.append(came_since(frozen, ()))
            handed = [as_handed_over(each.identity) for each in frozen.table.open_files]
            assert came_since(frozen, handed) == []
            frozen.close()

        with moved(child, between=between, finish=finish) as here:
            # An event that the source got after the freeze.
            assert "got an event" in queued[0][0].cause
            information = Path(f"/proc/self/fdinfo/{here(20)}").read_text()
            assert f"sigmask:\t{1 << (signal.SIGUSR2 - 1) | 1 << 63:016x}" in information
            watches = [
                line.split()[1:5:3]
                for line in Path(f"/proc/self/fdinfo/{here(21)}").read_text().splitlines()
                if line.startswith("inotify")
            ]
            assert sorted(watch for watch, _ in watches) == ["wd:5", "wd:6"]
            select.select([], [], [], 0)
            (tmp_path / "two").write_text("changed")
            assert int.from_bytes(os.read(here(21), 1000)[:4], "little") == 5


def test_memfd_is_made_anew_once_and_sealed() -> None:
    code = """
    put(os.memfd_create("state", os.MFD_ALLOW_SEALING), 20)
    os.write(20, b"memory" * 1000)
    put(os.open("/proc/self/fd/20", os.O_RDONLY), 21)
    ready()
    os.truncate(20, 5000)
    fcntl.fcntl(20, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    ready()
    """
    with running(code) as child:

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            for number in opened.content_wanted.values():
                os.pwrite(number, b"memory" * 1000, 0)
            child.go_on()

        with moved(child, between=between, finish=seal_descriptors) as here:
            assert os.readlink(f"/proc/self/fd/{here(20)}") == "/memfd:state (deleted)"
            assert os.pread(here(21), 10000, 0) == (b"memory" * 1000)[:5000]
            assert os.lseek(here(20), 0, os.SEEK_CUR) == 6000
            assert fcntl.fcntl(here(20), fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            with pytest.raises(PermissionError):
                os.truncate(here(20), 6000)


EPOLL = """
r, w = os.pipe()
put(r, 20); put(w, 21)
a, b = socket.socketpair()
put(a.detach(), 22); put(b.detach(), 23)
put(os.eventfd(1), 24)
poll = select.epoll()
os.dup2(poll.fileno(), 30)
poll.close(); poll = select.epoll.fromfd(30)
poll.register(20, select.EPOLLIN)
poll.register(22, select.EPOLLIN | select.EPOLLET)
poll.register(24, select.EPOLLIN | select.EPOLLONESHOT)
# registered as 25, which stands for something else now, while the pipe lives on as 20
os.dup2(20, 25)
poll.register(25, select.EPOLLHUP)
put(os.eventfd(0), 25)
ready()
"""


def test_epoll_is_registered_inside_the_process() -> None:
    with running(EPOLL) as child, stopped_husk() as pid:
        frozen = snapshot_descriptors(ProcessSnapshot(child.pid), frozen=True)
        frozen.close()
        table = without(frozen.table, child.report, 3)
        epoll = next(one.object for one in table.open_files if isinstance(one.object, Epoll))
        assert sorted((entry.target, entry.holder) for entry in epoll.entries) == [
            (20, 20),
            (22, 22),
            (24, 24),
            (25, 20),
        ]
        options = DescriptorOptions(stdio="null")
        assert descriptor_blockers(table, options) == []
        opened = open_descriptors(table, options, source_access=False)
        try:
            update_descriptors(opened, table)
            program = Program("descriptors")
            program.call("pidfd", SYS_pidfd_open, os.getpid(), 0)
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            pidfd_number = lowest_free(used)
            install_rows(
                program,
                pidfd_number,
                used | {pidfd_number},
                [
                    Installed(each.number, opened.numbers[each.open_file], each.close_on_exec)
                    for each in table.descriptors
                    if each.number > 2
                ],
            )
            descriptor_rows(program, table)
            run_in_husk(pid, make_program_area(pid, 65536), program)
        finally:
            opened.close()
        pidfd = open_pidfd(pid)
        here = {number: fetch_descriptor(pidfd, number) for number in (20, 21, 22, 23, 24, 25, 30)}
        os.close(pidfd)
        information = Path(f"/proc/{pid}/fdinfo/30").read_text()
        assert sorted(int(target) for target, _, _ in ENTRY.findall(information)) == [20, 22, 24, 25]
        with select.epoll.fromfd(here[30]) as poll:
            assert poll.poll(0) == [(24, select.EPOLLIN)]
            os.write(here[21], b"x")
            os.write(here[23], b"y")
            assert sorted(poll.poll(0)) == [(20, select.EPOLLIN), (22, select.EPOLLIN)]
            os.close(here[21])
        # Number 25 itself is the eventfd again, and is not what is watched as 25.
        os.eventfd_write(here[25], 1)
        del here[30], here[21]
        for number in here.values():
            os.close(number)


def test_what_is_taken_from_the_live_snapshot_is_what_a_frozen_one_would_read() -> None:
    """Every change that a look at a kind is spared for shows."""
    code = """
    import signal
    for number in range(20, 32):
        put(os.eventfd(number), number)
    reading, writing = os.pipe()
    put(reading, 40); put(writing, 41)
    put(os.open("/dev/null", os.O_RDONLY), 42)
    put(os.open("/dev/zero", os.O_RDONLY), 43)
    os.dup2(20, 44)
    ready()
    import fcntl
    os.eventfd_write(21, 1)
    os.eventfd_read(22)
    os.close(23); put(os.eventfd(23), 23)
    os.dup2(24, 25)
    os.close(20); put(os.eventfd(20), 20)
    os.set_blocking(26, False)
    fcntl.fcntl(27, fcntl.F_SETOWN, os.getpid())
    os.close(28); put(os.open("/dev/null", os.O_RDONLY), 28)
    os.write(41, b"queued")
    os.dup2(42, 43)
    os.set_inheritable(29, False)
    os.dup2(30, 19)
    ready()
    """

    def told(taken: Snapshot) -> tuple[dict[int, object], set[tuple[int, ...]]]:
        by_identity = taken.table.by_identity()
        numbers: dict[int, list[int]] = {}
        for one in taken.table.descriptors:
            numbers.setdefault(one.open_file, []).append(one.number)
        each: dict[int, object] = {
            d.number: (d.close_on_exec, structs.replace(by_identity[d.open_file], identity=0))
            for d in taken.table.descriptors
        }
        return each, {tuple(those) for those in numbers.values()}

    with running(code) as child:
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        child.go_on()
        with contextlib.ExitStack() as closing:
            anew = snapshot_descriptors(ProcessSnapshot(child.pid), frozen=True)
            closing.callback(anew.close)
            frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
            closing.callback(frozen.close)
        assert told(frozen) == told(anew)
        assert len(frozen.table.open_files) == len(frozen.table.by_identity())
        before = {d.number: d.open_file for d in live.table.descriptors}
        after = {d.number: d.open_file for d in frozen.table.descriptors}
        assert {number for number in before if after[number] != before[number]} >= {20, 25, 28, 43}
        assert all(after[number] == before[number] for number in (21, 22, 24, 26, 27, 29, 30, 31, 40, 41, 42))
