"""Room for a process: in memory, in each control group above lm-restore, and under the host's limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.kernel import cgroups
from live_migration.restorer import room

GIB = 1 << 30


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of version 2, in which this process is in /machine/job."""
    job = tmp_path / "machine" / "job"
    job.mkdir(parents=True)
    monkeypatch.setattr(cgroups, "_mounts", lambda: iter([("cgroup2", ["rw"], "/", tmp_path)]))
    monkeypatch.setattr(cgroups, "_own", lambda: [("", "/machine/job")])
    return tmp_path


def test_every_ancestor_counts(tree: Path) -> None:
    job = tree / "machine" / "job"
    for folder, most, used in ((job, "max", 5 << 20), (job.parent, str(120 << 20), 20 << 20)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon {used}\nactive_file {1 << 20}\ninactive_file {2 << 20}\n")
    (only,) = cgroups.memory_rooms(free_swap=7 << 20)
    assert only == cgroups.Room(job.parent / "memory.max", 120 << 20, (100 + 3 + 7) << 20)
    (job.parent / "memory.swap.max").write_text("0\n")
    (only,) = cgroups.memory_rooms(free_swap=7 << 20)
    assert only.left == 103 << 20
    there_is = room.Available(GIB, [only])
    assert room.memory_blockers(103 << 20, there_is) == []
    (found,) = room.memory_blockers(200 << 20, there_is)
    assert str(found) == (
        f"control group {job.parent}: memory.max allows 120 MiB, of which 103 MiB are left, and the process needs "
        "200 MiB; raise the limit, or run lm-restore in another control group"
    )


def test_threads_of_a_control_group(tree: Path) -> None:
    (tree / "machine" / "pids.max").write_text("100\n")
    (tree / "machine" / "pids.current").write_text("40\n")
    assert room.thread_blockers(60) == []
    (found,) = room.thread_blockers(61)
    assert "pids.max allows 100 threads, of which 60 are left, and the process has 61" in str(found)
    (threads, tasks, _) = room.thread_blockers(1 << 30)
    assert (threads.object, tasks.object) == ("kernel.threads-max of this host", "kernel.pid_max of this host")


def test_mappings() -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert room.mapping_blockers(most - room.OWN_MAPPINGS) == []
    (found,) = room.mapping_blockers(most)
    assert str(found).startswith(f"vm.max_map_count of this host: allows {most} mappings of a process, ")


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert room.descriptor_blockers(10, 10, may_raise=False) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000
    (found,) = room.descriptor_blockers(hard, 10, may_raise=False)
    assert found.object == "RLIMIT_NOFILE of lm-restore"
    assert room.descriptor_blockers(hard - 3, 10, may_raise=False) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    (found,) = room.descriptor_blockers(10, most, may_raise=True)
    assert str(found) == (
        f"fs.nr_open of this host: is {most}, and the process has {most} open files and descriptors up to 10; "
        "raise it: sysctl fs.nr_open=..."
    )


def test_what_is_told_of_this_process() -> None:
    """Whatever is mounted here, it is read without an error, and the nearest group comes first."""
    found = cgroups.groups("memory")
    assert all(place.is_dir() for _, place in found)
    assert [len(place.parts) for _, place in found[:2]] == sorted((len(p.parts) for _, p in found[:2]), reverse=True)
    assert room.bytes_in_memory(os.getpid()) > 1 << 20
