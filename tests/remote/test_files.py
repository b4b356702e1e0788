"""--files copy: programs whose files exist at the source alone. The other host has neither Python nor redis."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine, wait_for
from live_migration.wire.exit_codes import ExitCode
from tests.remote.conftest import STORES, Counting, Hosts, resumed_pid, stores

STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
MODIFIED = 1_600_000_000_123_456_789
ATTRIBUTE = "user.test"
# It reads a file through a descriptor, through another name of that file, and through a mapping; it goes on importing.
SERVICE = """
import json, mmap, os, sys, time
log, data, again = open(sys.argv[1], "a"), open("data", "rb"), open("again", "rb")
mapped = mmap.mmap(data.fileno(), 0, prot=mmap.PROT_READ)
number = 0
while True:
    same = data.read(64) == b"d" * 64 and again.read(64) == b"d" * 64 and mapped[-64:] == b"e" * 64
    for one in (data, again):
        one.seek(0)
    print(number if same and os.stat("data").st_size == len(mapped) else "wrong", file=log, flush=True)
    number += 1
    time.sleep(0.002)
"""


def end_there(hosts: Hosts, pid: int) -> None:
    """The process ends, and what was brought for it goes with it."""
    hosts.far.run("kill", "-9", str(pid))
    wait_for("the end of the files", lambda: not stores(hosts) or None, 60)


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a program here, in that folder."""
    null = subprocess.DEVNULL
    return subprocess.Popen(words, cwd=folder, stdin=null, stdout=null, stderr=null, start_new_session=True)


def start_service(hosts: Hosts, folder: Path) -> Counting:
    """A Python service, in an environment of its own."""
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    app = folder / "app"
    app.mkdir(mode=0o751)
    with (app / "data").open("wb") as data:
        data.write(b"d" * 64)
        data.seek(32 << 20)
        data.write(b"e" * 64)
    os.link(app / "data", app / "again")
    os.setxattr(app / "data", ATTRIBUTE, b"value")
    os.chown(app / "data", 1234, 2345)
    os.chmod(app / "data", 0o604)
    os.utime(app / "data", ns=(MODIFIED, MODIFIED))
    os.chown(app, 1234, 0)
    hosts.counted += 1
    log = hosts.shared / f"log-{hosts.counted}"
    words = hosts.near.command(str(environment / "bin" / "python"), "-c", SERVICE, str(log))
    counting = Counting(start(words, app), log)
    counting.goes_on()
    return counting


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_python_service(hosts: Hosts, only_here: Path, strategy: str) -> None:
    counting = start_service(hosts, only_here)
    command = hosts.begin(only_here, f"--{strategy}", "--files=copy", counting.pid, "far")
    pid = resumed_pid(command)
    assert command.process.wait(60) == 0, command.said()
    counting.goes_on()
    app = f"{only_here}/app"
    seen = hosts.far.path(f"/proc/{pid}/root{app}")
    one, other = (seen / name for name in ("data", "again"))
    status = one.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 2345, 0o604)
    assert (status.st_mtime_ns, status.st_ino, status.st_nlink) == (MODIFIED, other.stat().st_ino, 2)
    assert status.st_blocks * 512 < status.st_size // 2
    assert os.getxattr(one, ATTRIBUTE) == b"value"
    assert (seen.stat().st_uid, seen.stat().st_mode & 0o7777) == (1234, 0o751)
    assert hosts.far.run("readlink", f"/proc/{pid}/cwd") == app
    # What the host has itself is its own, and all of it is seen.
    assert seen.parents[len(seen.parents) - 2].exists()
    for folder in ("/usr/bin", "/usr/lib"):
        beside = {path.name for path in hosts.far.path(f"/proc/{pid}/root{folder}").iterdir()}
        assert beside >= {path.name for path in hosts.far.path(folder).iterdir()}
    end_there(hosts, pid)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_static_program_and_back(
    hosts: Hosts, only_here: Path, strategy: str, request: pytest.FixtureRequest
) -> None:
    """Back again it needs nothing, and what was brought goes. Once it is missing from the root directory itself, and
    once the process gets a PID namespace."""
    folder = Path(tempfile.mkdtemp(dir="/" if strategy == "pre-copy" else only_here))
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    program = folder / "counter"
    shutil.copy2(hosts.shared / "counter", program)
    counting = hosts.count(program=program)
    inside = ["--pid=namespace"] if strategy == "hybrid" else []
    command = hosts.begin(only_here, f"--{strategy}", "--files=copy", "--via=ssh", *inside, counting.pid, "far")
    pid = resumed_pid(command)
    assert command.process.wait(60) == 0, command.said()
    counting.goes_on()
    assert len(stores(hosts)) == 1
    hosts.migrate("--back", "--files=copy", "far", pid)
    counting.goes_on()
    wait_for("the end of the files", lambda: not stores(hosts) or None, 60)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_redis(hosts: Hosts, only_here: Path, strategy: str) -> None:
    server = shutil.which("redis-server")
    assert server, "make setup installs it"
    for machine in (hosts.near, hosts.far.machine):
        machine.ip("link", "set", "lo", "up")
    words = [server, "--port", "7379", "--save", "", "--dir", str(only_here), "--daemonize", "no"]
    process = start(hosts.near.command(*words), only_here)
    ask = "import socket, sys; s = socket.create_connection(('127.0.0.1', 7379), 5); s.sendall(sys.argv[1].encode())"
    ask += "; s.settimeout(30); sys.stdout.write(s.recv(100).decode())"

    def said(machine: Machine, request: str) -> str:
        line = machine.command(sys.executable, "-c", ask, request)
        return subprocess.run(line, capture_output=True, text=True, timeout=60).stdout

    wait_for("redis", lambda: said(hosts.near, "SET key value\r\n") == "+OK\n" or None, 60)
    command = hosts.begin(only_here, f"--{strategy}", "--files=copy", process.pid, "far")
    pid = resumed_pid(command)
    assert command.process.wait(60) == 0, command.said()
    assert said(hosts.far.machine, "GET key\r\n") == "$5\nvalue\n"
    end_there(hosts, pid)


def test_a_file_that_differs_lies_over_the_host_s(hosts: Hosts, only_here: Path) -> None:
    program = only_here / "counter"
    shutil.copy2(hosts.shared / "counter", program)
    there = hosts.far.path(str(program))
    there.parent.mkdir(parents=True)
    there.write_text("another one")
    counting = hosts.count(program=program)
    said = hosts.migrate("--files=copy=place", counting.pid, "far", status=ExitCode.REFUSED)
    assert "nothing is overwritten" in said
    assert counting.runs_here()
    command = hosts.begin(only_here, "--files=copy", counting.pid, "far")
    pid = resumed_pid(command)
    assert command.process.wait(60) == 0, command.said()
    counting.goes_on()
    assert there.read_text() == "another one"
    seen = hosts.far.path(f"/proc/{pid}/root{program}")
    assert seen.read_bytes() == program.read_bytes()
    end_there(hosts, pid)
    assert there.read_text() == "another one"
    hosts.far.run("rm", "-r", str(only_here))


def test_what_is_missing_is_put_at_its_path(hosts: Hosts, only_here: Path) -> None:
    """If the move fails it goes again."""
    program = only_here / "bin" / "counter"
    program.parent.mkdir()
    shutil.copy2(hosts.shared / "counter", program)
    counting = hosts.count(program=program)
    hosts.migrate("--files=copy=place", "--max-memory=1M", counting.pid, "far", status=ExitCode.REFUSED)
    assert not hosts.far.path(str(only_here)).exists()
    hosts.migrate("--files=copy=place", counting.pid, "far")
    counting.goes_on()
    there = hosts.far.path(str(program))
    assert there.read_bytes() == program.read_bytes()
    assert there.stat().st_mtime_ns == program.stat().st_mtime_ns
    assert stores(hosts) == []
    hosts.far.run("rm", "-r", str(only_here))


def test_what_cannot_travel_is_named(hosts: Hosts, only_here: Path) -> None:
    """A file that is open for writing. The process runs on, and nothing is left there."""
    log = only_here / "log"
    words = hosts.near.command(str(hosts.shared / "counter"), str(log), "1")
    counting = Counting(start(words, Path("/")), log)
    counting.goes_on()
    hosts.far.run("mkdir", "-p", str(only_here))
    hosts.far.run("touch", "-d", "2020-01-01", f"{log}")
    said = hosts.migrate("--files=copy", counting.pid, "far", status=ExitCode.REFUSED)
    assert "differs there, and is open for writing" in said
    hosts.far.run("rm", "-r", str(only_here))
    for more in ([], ["--check"]):
        said = hosts.migrate("--files=copy", *more, counting.pid, "far", status=ExitCode.REFUSED)
        assert f"{log} (descriptor" in said
        assert "is missing there, and is open for writing" in said
    assert stores(hosts) == []
    counting.goes_on()
    assert counting.runs_here()


def test_check_lists_what_would_travel(hosts: Hosts, only_here: Path) -> None:
    program = only_here / "counter"
    shutil.copy2(hosts.shared / "counter", program)
    counting = hosts.count(program=program)
    said = hosts.migrate("--check", "--files=copy", counting.pid, "far")
    assert f"{program} (its executable) is missing there: " in said
    assert f"{counting.pid} can be moved\n" in said
    assert stores(hosts) == []
    assert counting.runs_here()


def test_what_the_process_writes_there_is_kept(hosts: Hosts, only_here: Path) -> None:
    """Its working directory was brought; what it makes there is not removed when it has ended, and is named."""
    program = "import os, sys, time\nopen(sys.argv[1], 'a').write('0\\n')\n"
    program += "while not os.path.exists(sys.argv[2]): time.sleep(0.01)\nopen('result', 'w').write('worth')\n"
    begun, go = (hosts.shared / f"{only_here.name}-{name}" for name in ("begun", "go"))
    line = hosts.near.command(sys.executable, "-c", program, str(begun), str(go))
    process = start(line, only_here)
    wait_for("the program", lambda: begun.exists() or None, 60)
    hosts.migrate("--files=copy", process.pid, "far")
    assert len(stores(hosts)) == 1
    go.touch()
    wait_for("its end", lambda: "keeps what" in hosts.migrate("--list", "far") or None, 60)
    (store,) = stores(hosts)
    found = list(hosts.far.path(f"{STORES}/{store}").rglob("result"))
    assert [path.read_text() for path in found] == ["worth"]
    assert not (only_here / "result").exists()
    hosts.far.run("rm", "-r", f"{STORES}/{store}")
