"""What an operator lets the holder of a ticket bring, and what there is room for; all else is refused."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.source_server.serve
from live_migration.experiments.machines import wait_for
from live_migration.kernel import cgroups
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.migration import Migration, migration_of
from live_migration.process.threads.threads import Thread
from live_migration.wire.exit_codes import ExitCode
from tests.conftest import skip
from tests.support import laws

replace = msgspec.structs.replace
GROUP_BYTES = 64 << 20
USR = [f"--allow-path={path}" for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> Iterator[laws.Subject]:
    """A process that runs on, untouched."""
    subject = laws.start_subject(program, tmp_path / "subject")
    yield subject
    laws.assert_untouched(subject)


def refused(subject: laws.Subject, *words: str, group: Path | None = None) -> str:
    """What lm-restore says that has been started with these options, in this control group, and refuses."""
    folder = subject.folder
    ticket = folder / "ticket"
    serve = laws.fork_command(
        live_migration.cli.serve.main, [str(subject.pid), "--ticket-file", str(ticket)], folder / "serve.txt"
    )
    wait_for("the ticket", lambda: ticket.exists() or None, 60)

    def restore(arguments: Sequence[str]) -> int:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        return live_migration.cli.restore.main(arguments)

    arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null", *words]
    commands = [laws.fork_command(restore, arguments, folder / "restore.txt"), serve]
    subject.children |= set(commands)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in commands]
    said = (folder / "restore.txt").read_text()
    print(said, (folder / "serve.txt").read_text())
    assert codes == [ExitCode.REFUSED, ExitCode.REFUSED]
    return said


def test_a_user_who_is_not_allowed(subject: laws.Subject) -> None:
    assert "--allow-uid: the process is of user 0; allow it: --allow-uid 0" in refused(subject, "--allow-uid=nobody")


def test_paths_that_are_not_allowed(subject: laws.Subject) -> None:
    said = refused(subject, *USR)
    folder = os.path.realpath(subject.folder)
    for path in (f"{folder}/log", os.readlink(f"/proc/{subject.pid}/exe")):
        assert f"  {path}: is not under any --allow-path; allow it, or point elsewhere with --map-path OLD=NEW" in said
    assert "/lib" not in said


def test_a_symbolic_link_leads_nowhere_else(subject: laws.Subject, tmp_path: Path) -> None:
    """The program's own folder is a link that leads out of the allowed one."""
    (tmp_path / "allowed").mkdir()
    link = tmp_path / "allowed" / "subject"
    link.symlink_to(subject.folder)
    words = [*USR, f"--allow-path={link.parent}", f"--map-path={os.path.realpath(subject.folder)}={link}"]
    assert f"{os.path.realpath(subject.folder)}/log: is not under any --allow-path" in refused(subject, *words)


def test_more_memory_than_is_allowed(subject: laws.Subject) -> None:
    assert "--max-memory: allows 64.0 KiB, the process has " in refused(subject, "--max-memory=64K")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 30 MiB below another one with 12 MiB, of whichever version has the memory controller."""
    for version, place in cgroups.groups("memory")[::-1]:
        limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
        outer = place / f"lm-test-{secrets.token_hex(4)}"
        inner = outer / "inner"
        try:
            outer.mkdir()
            if version == 2:
                (place / "cgroup.subtree_control").write_text("+memory")
                (outer / "cgroup.subtree_control").write_text("+memory")
            inner.mkdir()
            (outer / limit).write_text(str(GROUP_BYTES))
            (inner / limit).write_text(str(4 * GROUP_BYTES))
        except OSError:
            continue
        else:
            yield inner
            return
        finally:
            for folder in (inner, outer):
                if folder.is_dir():
                    wait_for("its end", functools.partial(remove, folder), 60)
    skip("no control group with the memory controller can be made here")


def remove(folder: Path) -> bool | None:
    """Remove a control group; None as long as something ends in it."""
    try:
        folder.rmdir()
    except OSError:
        return None
    return True


def test_a_control_group_that_is_too_small(program: Path, tmp_path: Path, group: Path, orphans: None) -> None:
    """It is not the group itself that has no room, but the one above it."""
    subject = laws.start_subject(program, tmp_path / "subject", cold=GROUP_BYTES // 4096)
    said = refused(subject, group=group)
    assert f"control group {group.parent}: memory." in said
    assert "allows 64.0 MiB, of which " in said
    laws.assert_untouched(subject)


def test_what_is_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    (inside / "link").symlink_to(outside / "file")
    (outside / "back").symlink_to(inside)
    options = DescriptorOptions(allowed_paths=(str(inside),), path_map=(("/old", str(inside)),))
    for allowed in (inside, inside / "new" / "one", outside / "back" / "x", "/dev/null", "/", "/old/x"):
        assert options.map_path(str(allowed))
    for other in (outside, inside / "link", f"{inside}/../outside/x", f"{inside}side", "/old/../etc", "/etc/shadow"):
        with pytest.raises(PermissionError, match="it is not under any --allow-path"):
            options.map_path(str(other))
    assert DescriptorOptions().map_path("/etc/shadow") == "/etc/shadow"


def with_credentials(told: Migration, **changed: object) -> Migration:
    """The members with other credentials in all threads."""
    return with_threads(told, lambda one: replace(one, credentials=replace(one.credentials, **changed)))


def with_threads(told: Migration, change: Callable[[Thread], Thread]) -> Migration:
    (member,) = told.members
    task = replace(member.task, threads=tuple(change(one) for one in member.task.threads))
    return replace(told, members=[replace(member, task=task)])


NOBODY = {"user_ids": (65534,) * 4, "group_ids": (65534,) * 4, "groups": (), "permitted": 0, "effective": 0}


def test_credentials_that_are_not_allowed_when_it_is_frozen(
    subject: laws.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that shows a harmless process, and another one in the freeze."""

    def altered(*parts: object, **numbers: int) -> Migration:
        told = migration_of(*parts, **numbers)  # type: ignore[arg-type]
        (member,) = told.members
        harmless = replace(member.task.credentials, **{**NOBODY, "inheritable": 0, "ambient": 0})
        task = replace(member.task, credentials=harmless)
        told = replace(told, members=[replace(member, task=task)])
        return told if told.frozen else with_credentials(told, **NOBODY, inheritable=0, ambient=0)

    monkeypatch.setattr(live_migration.source_server.serve, "migration_of", altered)
    said = refused(subject, "--allow-uid=nobody")
    assert "the frozen process: process" in said
    assert "--allow-uid: the process is of user 0" in said


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"groups": (0,)}, "the process is in group 0, in which user 65534 is not on this host"),
        ({"effective": 1 << 21, "permitted": 1 << 21}, "the process has CAP_SYS_ADMIN, which user 65534 does not get"),
        ({"user_ids": (65534, 65534, 0, 65534)}, "the process is of user 0"),
    ],
)
def test_a_user_with_more_than_is_his(
    subject: laws.Subject, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], cause: str
) -> None:
    def altered(*parts: object, **numbers: int) -> Migration:
        told = migration_of(*parts, **numbers)  # type: ignore[arg-type]
        return with_credentials(told, **{**NOBODY, "inheritable": 0, "ambient": 0, **changed})

    monkeypatch.setattr(live_migration.source_server.serve, "migration_of", altered)
    assert f"--allow-uid: {cause}" in refused(subject, "--allow-uid=nobody")
