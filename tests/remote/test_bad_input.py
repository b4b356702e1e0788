"""What can go wrong with lm-migrate: one sentence each, the process safe, and nothing left there but the cache."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.remote.bundle import LIBRARY, LIST, PROGRAM, TOP, pack, write_list
from live_migration.wire.exit_codes import ExitCode
from tests.remote.conftest import STORES, Hosts, busy, cut, instead_of, nothing_there
from tests.remote.test_migrate import SLOW


def refused(
    hosts: Hosts, host: str, code: ExitCode, *said: str, ssh: str | None = None, words: tuple[str, ...] = ()
) -> None:
    """lm-migrate refuses to move a process there, in one line with these words; the process runs on."""
    counting = hosts.count()
    line = hosts.migrate(*words, counting.pid, host, ssh=ssh, status=code)
    assert line.count("\n") == 1, line
    assert [part for part in said if part not in line] == [], line
    assert counting.runs_here()
    counting.goes_on()
    counting.end()


@pytest.mark.parametrize(
    ("host", "options", "code", "said"),
    [
        ("no-such-host.invalid", "", ExitCode.NO_PEER, "there is no host of that name"),
        ("far", "-p 1", ExitCode.NO_PEER, "no sshd answers there"),
        ("stranger@far", "", ExitCode.NO_PERMISSION, "lets nobody in"),
        ("far", "-o UserKnownHostsFile=/dev/null", ExitCode.NO_PERMISSION, "its host key is not known here"),
        ("asked@far", "", ExitCode.NO_PERMISSION, "sudo asks for a password"),
        ("unprivileged@far", "", ExitCode.NO_PERMISSION, "not root there"),
    ],
)
def test_hosts_that_cannot_be_used(
    hosts: Hosts, ended: None, host: str, options: str, code: ExitCode, said: str
) -> None:
    refused(hosts, host, code, f"{host}: ", said, ssh=f"{hosts.far.ssh} {options}")
    for user in ("root", "home/asked", "home/unprivileged"):
        assert user == "root" or not hosts.far.path(f"/{user}/.cache").exists()


@pytest.mark.parametrize(
    ("tool", "script", "said"),
    [
        ("uname", "echo Linux aarch64", "it is Linux"),
        ("getconf", "echo glibc 2.31", "its C library is glibc 2.31, the bundle needs glibc 2."),
        ("getconf", "exit 1", "its C library is none of GNU"),
        ("df", "echo; echo /dev/vda 100 100 1024 99% /", "has room for 1.0 MiB"),
        ("tar", "echo tar: no more space >&2; exit 1", "does not take the bundle (13"),
    ],
)
def test_hosts_that_lack_something(hosts: Hosts, ended: None, tool: str, script: str, said: str) -> None:
    hosts.migrate("--clean", "far")
    with instead_of(hosts.far, tool, script):
        refused(hosts, "far", ExitCode.SYSTEM, said)
    assert not hosts.far.path("/root/.cache/live-migration").exists()


def test_a_user_whose_sudo_asks_for_nothing(hosts: Hosts, ended: None) -> None:
    counting = hosts.count()
    hosts.migrate(counting.pid, "trusted@far")
    assert not counting.runs_here()
    counting.goes_on()
    hosts.migrate("--clean", "trusted@far")


def test_another_version_there(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    """It runs by the bundle that is brought there, which here is another one's."""
    folder = tmp_path / TOP
    folder.mkdir()
    (folder / LIBRARY).write_text("2.17\n")
    (folder / PROGRAM).write_text('#!/bin/sh\necho \'{"agent": "hello", "version": "0.0.9, protocol 1"}\'\n')
    (folder / PROGRAM).chmod(0o755)
    write_list(folder)
    pack(folder, tmp_path / "bundle")
    words = ("--bundle", str(tmp_path / "bundle"))
    refused(hosts, "far", ExitCode.PROTOCOL, "live-migration 0.0.9, protocol 1 is there", words=words)


def test_a_bundle_that_is_none(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    for name in ("missing", "empty", "other"):
        path = tmp_path / name
        if name == "empty":
            path.touch()
        if name == "other":
            with tarfile.open(path, "w:gz") as content:
                content.addfile(tarfile.TarInfo(LIST), io.BytesIO())
        refused(hosts, "far", ExitCode.SYSTEM, f"{path} is none", words=("--bundle", str(path)))


def test_what_is_refused_here_or_there(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    """The process's program is not there: it is named before the freeze."""
    assert "there is no such process" in hosts.migrate(4194000, "far", status=ExitCode.NO_PROCESS)
    own = hosts.shared.parent / "own-counter"
    shutil.copy2(hosts.shared / "counter", own)
    counting = hosts.count(program=own)
    said = hosts.migrate(counting.pid, "far", status=ExitCode.REFUSED)
    assert said.startswith("lm-migrate: far: the preflight: process ")
    assert f"executable {own}: {own} is not here" in said
    assert said.count("\n") == 3
    assert counting.runs_here()
    counting.goes_on()
    nothing_there(hosts)


@pytest.mark.parametrize(
    ("where", "options", "words", "said"),
    [
        ("/root/.cache", "size=20m", (), "has room for 20.0 MiB, the bundle needs 80.0 MiB"),
        ("/root/.cache", "size=200m,nr_inodes=50", (), "No space left on device"),
        # Too few bytes, and no room for all that is to be in it.
        (STORES, "size=20m", ("--files=copy",), "No space left on device"),
        (STORES, "size=1g,nr_inodes=6", ("--files=copy",), "No space left on device"),
    ],
)
def test_no_room_there(
    hosts: Hosts, only_here: Path, where: str, options: str, words: tuple[str, ...], said: str
) -> None:
    """A file system that is full, for the bundle or for the files."""
    if not words:
        hosts.migrate("--clean", "far")
    own = only_here / "counter"
    shutil.copy2(hosts.shared / "counter", own)
    counting = hosts.count(program=own if words else None)
    hosts.far.run("mkdir", "-p", where)
    hosts.far.run("mount", "-t", "tmpfs", "-o", options, "none", where)
    try:
        line = hosts.migrate(*words, counting.pid, "far", status=ExitCode.SYSTEM)
        assert (line.count("\n"), said in line) == (1, True), line
        wait_for("the end there", lambda: not busy(hosts) or None, 60)
        assert list(hosts.far.path(where).iterdir()) == []
    finally:
        hosts.far.run("umount", "-l", where)
    assert counting.runs_here()
    counting.goes_on()
    counting.end()


def test_ssh_is_lost_while_the_bundle_is_brought(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    hosts.migrate("--clean", "far")
    counting = hosts.count()
    began = hosts.far.path("/run/began")
    with instead_of(hosts.far, "tar", 'touch /run/began; sleep 1; exec /bin/tar "$@"'):
        command = hosts.begin(tmp_path, counting.pid, "far")
        wait_for("tar", lambda: began.exists() or None)
        cut(hosts.far)
        assert command.process.wait(60) == ExitCode.NO_PEER, command.said()
        wait_for("the end there", lambda: not hosts.far.path("/root/.cache/live-migration").exists() or None)
    began.unlink()
    assert counting.runs_here()
    counting.goes_on()


def test_ssh_is_lost_before_the_freeze(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    counting = hosts.count(64)
    command = hosts.begin(tmp_path, *SLOW, counting.pid, "far")
    command.event("staged")
    cut(hosts.far)
    assert command.process.wait(60) == ExitCode.LOST_BEFORE, command.said()
    assert counting.runs_here()
    counting.goes_on()
    nothing_there(hosts)


def test_ssh_is_lost_after_the_handover(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    """The memory has a connection of its own."""
    counting = hosts.count(64)
    command = hosts.begin(tmp_path, "--bandwidth-limit=16M", "--compress=none", counting.pid, "far")
    command.event("resumed")
    cut(hosts.far)
    assert command.process.wait(60) == 0, command.said()
    assert "the move goes on" in command.said()
    assert not counting.runs_here()
    counting.goes_on()


def test_ssh_is_lost_while_memory_travels_inside_it(hosts: Hosts, ended: None, tmp_path: Path) -> None:
    """It is connected again, with the same port, and what is missing still comes."""
    counting = hosts.count(64)
    words = ("--via=ssh", "--bandwidth-limit=8M", "--compress=none")
    command = hosts.begin(tmp_path, *words, counting.pid, "far")
    command.event("resumed")
    cut(hosts.far)
    assert command.process.wait(100) == 0, command.said()
    assert "far is connected again" in command.said()
    assert not counting.runs_here()
    counting.goes_on()
