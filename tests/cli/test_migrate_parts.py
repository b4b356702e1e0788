"""lm-migrate's parts that need no other host: the agent of this one, the bundle, and what ssh and a host have said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.machines import descendants, wait_for
from live_migration.remote import bundle, line, moved
from live_migration.remote.agent import version
from live_migration.remote.migration import MigrateOptions, claim
from live_migration.remote.ssh import Ssh, connection
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode


@pytest.fixture
def sleeper(orphans: None) -> Iterator[int]:
    """A process that could be moved."""
    words = ["sleep", "1000"]
    null = subprocess.DEVNULL
    process = subprocess.Popen(words, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True)
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


@pytest.fixture
def agent() -> Iterator[line.Line]:
    """A line to an agent of this host."""
    one = line.to_this_host()
    yield one
    if not one.process.stdin or not one.process.stdin.closed:
        one.hang_up()


def test_an_agent_whose_line_ends_ends_lm_serve(agent: line.Line, sleeper: int) -> None:
    assert agent.wait_for("hello")["version"] == version()
    agent.tell("start", command="lm-serve", words=["--", str(sleeper)])
    while "listening" not in [message.get("event") for message in agent.read()]:
        assert not agent.lost
    assert len(descendants(agent.process.pid)) >= 1
    agent.hang_up()
    assert agent.process.poll() == 0
    assert not Path(f"/proc/{agent.process.pid}").exists()


def test_an_agent_reports_how_a_command_has_ended(agent: line.Line) -> None:
    agent.tell("start", command="lm-restore", words=["-"], ticket="no ticket")
    ended = agent.wait_for("ended", seconds=60)
    assert ended["status"] == ExitCode.BAD_TICKET
    assert ended["report"] is None
    agent.tell("start", command="lm-restore", words=["--no-such-option"])
    ended = agent.wait_for("ended", seconds=60)
    assert ended["status"] == ExitCode.USAGE
    assert "--no-such-option" in ended["said"]


def test_one_lm_migrate_at_a_time_has_a_process(agent: line.Line, sleeper: int) -> None:
    options = MigrateOptions(pid=sleeper, host="there")
    claim(agent, options)
    other = line.to_this_host()
    with pytest.raises(LocalError, match="another lm-migrate is moving it"):
        claim(other, options)
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    claim(other, options)
    other.hang_up()


def test_what_was_moved_here(sleeper: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "FOLDER", tmp_path / "moved")
    moved.record(sleeper, "there", 12)
    (sentence,) = moved.listed()
    assert sentence.startswith(f"process {sleeper} (sleep) came from there, 12 there, ")
    assert sentence.endswith("; is complete")
    # Another process has got the id since, or somebody has written nonsense: no more is known of it.
    path = tmp_path / "moved" / str(sleeper)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"birth": 1}))
    (tmp_path / "moved" / "13").write_text("{")
    assert moved.listed() == []
    assert list((tmp_path / "moved").iterdir()) == []


def test_a_bundle_is_known_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "within").mkdir(parents=True)
    (folder / bundle.LIBRARY).write_text("2.31\n")
    (folder / "within" / "file").write_text("one")
    digests = []
    for content in ("one", "two"):
        (folder / "within" / "file").write_text(content)
        bundle.write_list(folder)
        bundle.pack(folder, tmp_path / content)
        found = bundle.read_bundle(tmp_path / content)
        assert (found.place, found.library) == (tmp_path / content, "2.31")
        digests.append(found.digest)
        done = subprocess.run(["sha256sum", "-c", "--status", bundle.LIST], cwd=folder)
        assert done.returncode == 0
    assert digests[0] != digests[1]


def test_what_a_host_says_is_found_among_what_its_shell_prints(tmp_path: Path) -> None:
    """Whatever there is of a host's answers, nothing of it moves a cursor."""
    fake = tmp_path / "ssh"
    here = os.uname()
    said = f"Welcome!\nlm-begin\nsystem {here.sysname} {here.machine}\nlibc glibc 2.1\x1b[2J\nroot yes\nlm-end\nbye\n"
    (tmp_path / "said").write_text(said)
    fake.write_text(f'#!/bin/sh\ncase "$*" in *-G*) echo connecttimeout 3 ;; *) cat {tmp_path}/said ;; esac\n')
    fake.chmod(0o755)
    (tmp_path / "bundle").mkdir()
    found = bundle.Bundle(tmp_path / "bundle", "0" * 64, "2.36")
    with connection("there", [str(fake)]) as ssh, pytest.raises(LocalError) as refused:
        bundle.bring(ssh, found)
    assert "its C library is glibc 2.1\\x1b[2J, the bundle needs glibc 2.36" in str(refused.value)
    (tmp_path / "said").write_text("This account is not available.\n")
    with connection("there", [str(fake)]) as ssh, pytest.raises(LocalError, match="its shell does not run commands"):
        bundle.bring(ssh, found)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ssh: Could not resolve hostname a: Name or service not known", ExitCode.NO_PEER),
        ("ssh: connect to host a port 22: Connection timed out", ExitCode.NO_PEER),
        ("a@b: Permission denied (publickey).\nlost", ExitCode.NO_PERMISSION),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", ExitCode.NO_PERMISSION),
        ("something\nnew\x1b[2J", ExitCode.NO_PEER),
        ("", ExitCode.NO_PEER),
    ],
)
def test_what_ssh_says_becomes_one_sentence(said: str, code: ExitCode) -> None:
    error = Ssh("there", ("ssh",), Path("/nowhere")).error(said)
    assert error.code == code
    assert str(error).isprintable()


def test_an_agent_is_not_waited_for_without_end(agent: line.Line) -> None:
    with pytest.raises(LocalError, match="the connection to it has ended"):
        agent.wait_for("nothing of the kind", seconds=0.5)
    wait_for("the agent", lambda: agent.process.poll() is None or None)
