"""An lm-serve that describes what no honest one does: lm-restore refuses by name, hangs nowhere and leaves nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.restorer.migrate
import live_migration.source_server.serve
import live_migration.wire.same_host
from live_migration.experiments.machines import wait_for
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.reach import Place
from live_migration.process.descriptors.snapshot import snapshot_descriptors
from live_migration.process.descriptors.table import Descriptor
from live_migration.process.memory.mappings import AddressSpace, MappingKind
from live_migration.process.migration import Migration, migration_of
from live_migration.wire.exit_codes import ExitCode
from tests.support import laws

replace = msgspec.structs.replace
Alter = Callable[[Migration], Migration]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> Iterator[laws.Subject]:
    """A process that runs on, untouched, whatever is told of it."""
    subject = laws.start_subject(program, tmp_path / "subject")
    yield subject
    laws.assert_untouched(subject)


def refused(
    subject: laws.Subject, monkeypatch: pytest.MonkeyPatch, alter: Alter, *words: str
) -> tuple[list[int], str, str]:
    """Move it with the live description altered: what lm-restore and lm-serve end with, and what each has said."""

    def altered(*parts: object, **numbers: int) -> Migration:
        told = migration_of(*parts, **numbers)  # type: ignore[arg-type]
        return told if told.frozen else alter(told)

    monkeypatch.setattr(live_migration.source_server.serve, "migration_of", altered)
    folder = subject.folder
    ticket = folder / "ticket"
    serve = laws.fork_command(
        live_migration.cli.serve.main, [str(subject.pid), "--ticket-file", str(ticket)], folder / "serve.txt"
    )
    wait_for("the ticket", lambda: ticket.exists() or None, 60)
    arguments = [f"@{ticket}", "--pid", "namespace", "--detach", "--stdio", "null", *words]
    restore = laws.fork_command(live_migration.cli.restore.main, arguments, folder / "restore.txt")
    subject.children |= {serve, restore}
    codes = [os.waitstatus_to_exitcode(wait(pid)) for pid in (restore, serve)]
    said = [(folder / f"{name}.txt").read_text() for name in ("restore", "serve")]
    print(*said)
    return codes, said[0], said[1]


def wait(pid: int) -> int:
    """The status of a command, which ends soon."""

    def poll() -> int | None:
        found, status = os.waitpid(pid, os.WNOHANG)
        return status + 1 if found else None

    return wait_for("its end", poll, 60) - 1


def with_file_mapping(migration: Migration, path: Path) -> Migration:
    """The last mapping of a file is said to be of this one, which no list of mapped files has."""
    (member,) = migration.members
    mappings = list(member.memory.mappings)
    place = max(index for index, one in enumerate(mappings) if one.kind is MappingKind.PRIVATE_FILE)
    mappings[place] = replace(mappings[place], path=str(path))
    return replace(migration, members=[replace(member, memory=replace(member.memory, mappings=mappings))])


def test_a_mapping_of_a_fifo_that_was_not_checked(
    subject: laws.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    codes, said, _ = refused(subject, monkeypatch, lambda told: with_file_mapping(told, fifo))
    assert codes == [ExitCode.REFUSED, ExitCode.REFUSED]
    assert f"{fifo}: its file is not among the mapped files" in said


def test_an_executable_that_is_a_fifo(
    subject: laws.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o755)

    def alter(told: Migration) -> Migration:
        return replace(told, members=[replace(told.members[0], executable=str(fifo))])

    codes, said, _ = refused(subject, monkeypatch, alter)
    assert codes == [ExitCode.REFUSED, ExitCode.REFUSED]
    assert f"executable {fifo}: {fifo} is not here or may not be executed" in said


@pytest.mark.parametrize("what", ["mapping", "executable"])
def test_a_fifo_that_was_a_file_when_it_was_checked(
    what: str, subject: laws.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the preflight and the husk anybody may exchange what a path leads to."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o755)
    monkeypatch.setattr(live_migration.restorer.migrate, "preflight", lambda *_: [])

    def alter(told: Migration) -> Migration:
        if what == "mapping":
            return with_file_mapping(told, fifo)
        return replace(told, members=[replace(told.members[0], executable=str(fifo))])

    codes, said, _ = refused(subject, monkeypatch, alter)
    assert codes[0] == ExitCode.SYSTEM
    assert "it is not a regular file here" in said


def test_a_socket_of_a_process_that_is_not_moved(
    subject: laws.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source on another host that knows this one's boot id, and names a process here: no descriptor of that is
    taken."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        place, theirs = snapshot_of(listener)

        def alter(told: Migration) -> Migration:
            return replace(told, members=[replace(told.members[0], place=place)])

        monkeypatch.setattr(live_migration.wire.same_host, "_read", lambda _: b"")
        codes, said, _ = refused(subject, monkeypatch, lambda told: alter(with_open_file(told, theirs)))
    assert codes == [ExitCode.REFUSED, ExitCode.REFUSED]
    assert f"{path} exists here" in said


def snapshot_of(listener: socket.socket) -> tuple[Place, OpenFile[Any]]:
    """One of this process's sockets as lm-serve would describe it, and where this process runs."""
    named = snapshot_descriptors(ProcessSnapshot(os.getpid()))
    (found,) = (one for one in named.table.open_files if one.number == listener.fileno())
    return named.table.place, found


def with_open_file(told: Migration, one: OpenFile[Any]) -> Migration:
    """A descriptor more."""
    (member,) = told.members
    identity = max(one.identity for one in told.open_files) + 1
    added = Descriptor(number=one.number, open_file=identity, close_on_exec=True)
    member = replace(member, descriptors=[*member.descriptors, added])
    taken = replace(one, identity=identity, holders=[], peer_holders=[])
    return replace(told, members=[member], open_files=[*told.open_files, taken])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"executable": "/bin/true\0x"}, "embedded null byte"),
        ({"descriptors": [Descriptor(number=1 << 40, open_file=1 << 40, close_on_exec=True)]}, "not described"),
        ({"memory": AddressSpace(mappings=[])}, ""),
    ],
)
def test_what_cannot_be_leaves_nothing_behind(
    subject: laws.Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    cause: str,
) -> None:
    """Found when the husk is being filled, and sockets are bound already."""
    before, made = tmp_path / "before", tmp_path / "made"
    monkeypatch.setattr(live_migration.wire.same_host, "_read", lambda _: b"")
    monkeypatch.setattr(live_migration.restorer.migrate, "preflight", lambda *_: [])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(before))
        listener.listen()
        _, theirs = snapshot_of(listener)
        theirs = replace(theirs, object=replace(theirs.object, address=os.fsencode(made)))

        def alter(told: Migration) -> Migration:
            told = with_open_file(told, theirs)
            return replace(told, members=[replace(told.members[0], **change)])

        codes, said, _ = refused(subject, monkeypatch, alter)
    assert codes[0] in (ExitCode.SYSTEM, ExitCode.PROTOCOL)
    assert codes[1] not in (ExitCode.BUG, ExitCode.OK)
    assert cause in said
    assert "Traceback" not in said
    assert not os.path.lexists(made)
