"""lm-migrate between two hosts, of which one has never heard of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.cli.test_watching import parsed, value
from tests.remote.conftest import Hosts, busy, nothing_there, resumed_pid
from tests.support import laws

STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
SLOW = ("--pre-copy", "--bandwidth-limit=2M", "--compress=none", "--max-downtime=1")
"""Rounds that take long: the process has random memory enough for many seconds."""


def test_the_first_time_and_again(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    hosts.migrate("--clean", "far")
    for name, most in (("first", 30), ("again", 20)):
        counting = hosts.count(256)
        folder = tmp_path / name
        folder.mkdir()
        entered = time.time()
        figures = folder / "move.prom"
        command = hosts.begin(folder, counting.pid, "far", "--status-fd=2", f"--metrics={figures}")
        resumed = float(command.event("resumed")["time"]) - entered
        assert command.process.wait(60) == 0, command.said()
        print(f"{name}: from Enter to the resume {resumed:.2f} s, 256 MiB")
        assert resumed < most
        assert not counting.runs_here()
        counting.goes_on()
        assert command.report()["side"] == "destination"
        assert command.report()["outcome"] == "complete"
        stages = [line.partition(" ")[0] for line in command.said().splitlines() if " pid=" in line]
        assert stages == ["staged", "frozen", "resumed", "complete"]
        found = parsed(figures)
        assert {one.labels["side"] for one in found["fault_seconds"].samples} == {"source", "destination"}
        assert value(found, "stage", stage="complete") == 1
    assert [words for words in hosts.far.processes() if "lm-" in words or "/lm " in words] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_there_and_back(hosts: Hosts, tmp_path: Path, ended: None, strategy: str) -> None:
    """There directly, back inside ssh."""
    counting = hosts.count()
    command = hosts.begin(tmp_path, f"--{strategy}", "--via=direct", counting.pid, "far")
    pid = resumed_pid(command)
    assert command.process.wait(60) == 0, command.said()
    assert not counting.runs_here()
    counting.goes_on()
    assert f"process {pid} (counter) came from" in hosts.migrate("--list", "far")
    said = hosts.migrate("--back", "--via=ssh", f"--{strategy}", "-v", "far", pid)
    assert "travels inside ssh" in said
    assert not hosts.far.path(f"/proc/{pid}").exists()
    counting.goes_on()
    assert f"process {pid} (counter)" not in hosts.migrate("--list", "far")
    assert "(counter) came from far" in hosts.migrate("--list")


def test_where_no_port_is_reached_it_goes_inside_ssh(hosts: Hosts, ended: None) -> None:
    counting = hosts.count()
    said = hosts.migrate("--listen=127.0.0.1:0", "--via=direct", counting.pid, "far", status=ExitCode.NO_PEER)
    assert "far: it does not reach 127.0.0.1:" in said
    counting.goes_on()
    assert counting.runs_here()
    said = hosts.migrate("--listen=127.0.0.1:0", "-v", counting.pid, "far")
    assert "travels inside ssh" in said
    assert not counting.runs_here()
    counting.goes_on()


def test_ctrl_c_before_the_freeze(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    counting = hosts.count(64)
    command = hosts.begin(tmp_path, *SLOW, counting.pid, "far")
    command.event("staged")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(60) == ExitCode.INTERRUPTED, command.said()
    assert counting.runs_here()
    counting.goes_on()
    nothing_there(hosts)


def test_ctrl_c_after_the_handover(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    counting = hosts.count(64)
    command = hosts.begin(tmp_path, "--bandwidth-limit=16M", "--compress=none", counting.pid, "far")
    command.event("resumed")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(60) == 0, command.said()
    assert "cannot be called back" in command.said()
    counting.goes_on()


def test_lm_migrate_is_killed(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    counting = hosts.count(64)
    command = hosts.begin(tmp_path, *SLOW, counting.pid, "far")
    command.event("staged")
    command.process.kill()
    command.process.wait()
    wait_for("the end there", lambda: not busy(hosts) or None, 60)
    assert counting.runs_here()
    counting.goes_on()


def test_two_at_once(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    counting = hosts.count(64)
    first = hosts.begin(tmp_path, *SLOW, counting.pid, "far")
    first.event("staged")
    said = hosts.migrate(counting.pid, "far", status=ExitCode.REFUSED)
    assert said.count("\n") == 1
    assert "another lm-migrate is moving it" in said
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == ExitCode.TERMINATED, first.said()
    counting.goes_on()


def test_check(hosts: Hosts, ended: None) -> None:
    counting = hosts.count()
    assert hosts.migrate("--check", counting.pid, "far") == f"{counting.pid} can be moved\n"
    counting.goes_on()


def test_the_cache_is_compared_before_each_use(hosts: Hosts, ended: None) -> None:
    hosts.migrate("--list", "far")
    cache = hosts.far.path("/root/.cache/live-migration")
    (folder,) = cache.iterdir()
    library = next(folder.rglob("libzstd*"))
    library.write_bytes(library.read_bytes()[:-1] + b"?")
    (folder / "more").write_text("")
    hosts.migrate("--list", "far")
    (folder,) = cache.iterdir()
    assert not (folder / "more").exists()
    assert not library.read_bytes().endswith(b"?")
    assert "is gone from far" in hosts.migrate("--clean", "far")
    assert not cache.exists()


def test_from_python(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    """In a process of its own, in the network of this host."""
    counting = hosts.count()
    program = (
        "import live_migration, sys\n"
        "seen = []\n"
        f"report = live_migration.migrate({counting.pid}, 'far', ssh={hosts.far.ssh!r}, strategy='pre-copy',\n"
        "                                 on_event=lambda event: seen.append(event.name))\n"
        "print(report.side, report.outcome, report.strategy, 'resumed' in seen, 'staged' in seen)\n"
        "try:\n"
        f"    live_migration.migrate({counting.pid}, 'far', ssh='ssh -p 1 -F {hosts.far.config}')\n"
        "except live_migration.MigrationFailed as error:\n"
        "    print(error.code)\n"
    )
    done = subprocess.run(
        hosts.near.command(sys.executable, "-c", program), cwd=laws.ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["destination complete pre-copy True True", str(int(ExitCode.REFUSED))], (
        done.stdout + done.stderr
    )
    counting.goes_on()


def test_the_example_that_drains_a_host(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    """As docs/migrate.md has it, but for its hosts: the first one cannot be reached, and a process has a child."""
    part = (laws.ROOT / "docs" / "migrate.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    program = "\n".join(line[4:] for line in part.splitlines() if line.startswith("    ") or not line)
    for said, here in (
        ('["root@one.example", "root@two.example"]', '["root@no-such-host.invalid", "far"]'),
        ('["/srv", "/usr"]', '["/"]'),
    ):
        assert said in program
        program = program.replace(said, here)
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {hosts.far.config} "$@"\n')
    ssh.chmod(0o755)
    counting = hosts.count()
    with subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True) as parent:
        try:
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
            wait_for("its child", lambda: children.read_text() or None, 60)
            line = hosts.near.command(sys.executable, "-c", program, str(parent.pid), str(counting.pid))
            environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
            done = subprocess.run(
                line, cwd=laws.ROOT, env=environment, capture_output=True, text=True, timeout=240, check=True
            )
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{parent.pid} stays:"
    assert any("there is no host of that name" in line for line in lines), lines
    assert lines[-1].startswith(f"{counting.pid} runs at far as "), lines
    assert not counting.runs_here()
    counting.goes_on()


def test_from_the_bundle(hosts: Hosts, tmp_path: Path, ended: None) -> None:
    """Here, too, nothing is needed: unpacked, it brings itself along."""
    (archive,) = (laws.ROOT / "dist").glob("live-migration-*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
    program = str(tmp_path / "live-migration" / "lm-migrate")
    hosts.migrate("--clean", "far")
    counting = hosts.count()
    empty = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for words in ([str(counting.pid), "far"], ["--list", "far"], ["--list"]):
        line = hosts.near.command("env", "-i", *(f"{name}={value}" for name, value in empty.items()), program)
        done = subprocess.run([*line, "--ssh", hosts.far.ssh, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not counting.runs_here()
    counting.goes_on()


def test_at_a_terminal(hosts: Hosts, ended: None) -> None:
    """Ctrl-C reaches lm-migrate alone: neither its ssh nor what it has started. The first move is undone by it, the
    second one, which it comes too late for, goes on."""
    late = ("--bandwidth-limit=16M", "--compress=none")
    for words, until, status in ((SLOW, "everything is prepared", 130), (late, "runs at the destination", 0)):
        counting = hosts.count(64)
        master, terminal = os.openpty()
        line = hosts.words(*words, counting.pid, "far")
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *line], cwd=laws.ROOT, stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        shown = read_until(master, until)
        os.write(master, b"\x03")
        shown += read_until(master, None)
        assert process.wait(60) == status, shown
        assert ("cannot be called back" in shown) == (status == 0), shown
        assert counting.runs_here() == (status != 0)
        counting.goes_on()
        os.close(master)


def read_until(terminal: int, words: str | None) -> str:
    """What is shown at a terminal until these words come, or until nobody has it open any more."""
    shown = ""
    while words is None or words not in shown:
        try:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, shown
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            break
    return shown
