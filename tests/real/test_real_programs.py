"""Programs as they are: redis, node, Python, SQLite, each with its state checked after the move."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live_migration.experiments.machines import Machine, Move, begin_move, start, wait_for
from live_migration.experiments.resp import Connection, key_of, value_of
from tests.conftest import skip

REAL = Path(__file__).resolve().parent
STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
PORT = 7001
CLONE_NEWNET = 0x40000000
Machines = tuple[Machine, Machine]
pytestmark = [pytest.mark.real, pytest.mark.usefixtures("orphans")]


@contextlib.contextmanager
def inside(machine: Machine) -> Iterator[None]:
    """Sockets made meanwhile belong to that machine (setns(2) of this thread, and back)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{machine.namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(before.fileno(), CLONE_NEWNET)


def connect(machine: Machine, seconds: float = 60) -> socket.socket:
    """A connection to the program on a machine, as soon as it listens."""

    def poll() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", PORT), 60)
        except ConnectionRefusedError:
            return None

    with inside(machine):
        return wait_for("the program's port", poll, seconds)


def started(machine: Machine, words: list[str], folder: Path) -> int:
    """Start a program there; its id."""
    return start(machine, words, folder, "program", start_new_session=True).process.pid


def moved(pid: int, machines: Machines, folder: Path, strategy: str, *more: str) -> Move:
    """Move it, and wait until it runs."""
    restore = ["--pid", "namespace", "--stdio", "null", *more]
    # A few hundred MiB may well take longer than the usual five seconds on a busy machine.
    serve = [] if strategy in ("post-copy", "hybrid") else ["--max-freeze", "100"]
    move = begin_move(pid, machines, folder, strategy=strategy, serve=serve, restore=restore)
    try:
        move.resumed()
    except BaseException:
        print(move.said())
        raise
    return move


def ended(connection: socket.socket) -> bool:
    """Whether the other end of a connection has closed it, cleanly or by a reset."""
    connection.settimeout(20)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def finish(move: Move) -> None:
    """Every page is there, both sides are content."""
    try:
        move.complete()
        assert move.restore.report()["outcome"] == "complete"
    except BaseException:
        print(move.said())
        raise


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_redis(strategy: str, machines: Machines, tmp_path: Path) -> None:
    redis = shutil.which("redis-server")
    if not redis:
        skip("redis-server is not installed")
        return
    entries = 60_000
    options = ["--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"]
    pid = started(machines[0], [redis, *options, "--dir", str(tmp_path)], tmp_path)
    connect(machines[0]).close()
    with inside(machines[0]):
        old = Connection("127.0.0.1", PORT, 60)
    for first in range(0, entries, 500):
        old.query_all([(b"SET", key_of(number), value_of(number)) for number in range(first, first + 500)])
    old.query_all([(b"ZADD", b"sorted", b"%d" % number, b"member %d" % number) for number in range(1000)])
    old.query(b"PEXPIRE", key_of(0), b"600000")
    move = moved(pid, machines, tmp_path, strategy, "--tcp", "close")
    assert ended(old.socket)
    with inside(machines[1]):
        new = Connection("127.0.0.1", PORT, 60)
    for first in range(0, entries, 500):
        found = new.query(b"MGET", *(key_of(number) for number in range(first, first + 500)))
        assert found == [value_of(number) for number in range(first, first + 500)]
    assert new.query(b"ZRANK", b"sorted", b"member 777") == 777
    left = new.query(b"PTTL", key_of(0))
    assert isinstance(left, int)
    assert 0 < left <= 600000
    assert new.query(b"FLUSHALL") == b"OK"
    assert new.query(b"DBSIZE") == 0
    finish(move)
    new.socket.sendall(b"SHUTDOWN NOSAVE\r\n")
    assert move.restore.process.wait(60) == 0
    new.close()
    old.close()


def query_python(connection: socket.socket, request: str) -> dict[str, Any]:
    """One line there, one JSON object back."""
    connection.sendall(request.encode() + b"\n")
    answer: dict[str, Any] = json.loads(connection.makefile().readline())
    return answer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_python(strategy: str, machines: Machines, tmp_path: Path) -> None:
    move_python(strategy, 200_000 if strategy == "post-copy" else 50_000, machines, tmp_path)


def move_python(strategy: str, entries: int, machines: Machines, tmp_path: Path) -> None:
    """Move a server in Python that has so many entries, and check them and that its threads go on."""
    words = [sys.executable, str(REAL / "python_server.py"), str(PORT), str(entries)]
    pid = started(machines[0], words, tmp_path)
    with connect(machines[0]) as old:
        before = query_python(old, "check")
        assert before["wrong"] == 0
        move = moved(pid, machines, tmp_path, strategy, "--tcp", "close")
        assert ended(old)
    with connect(machines[1]) as new:
        after = query_python(new, "check")
        assert after["entries"] == entries
        assert after["wrong"] == 0
        assert after["next"] == before["next"] + 1
        assert query_python(new, "add")["entries"] == entries + 1

        def all_went_on() -> bool | None:
            later = query_python(new, "check")["counts"]
            return all(count > earlier for count, earlier in zip(later, after["counts"], strict=True)) or None

        wait_for("every thread going on", all_went_on, pause=0.2)
    finish(move)
    os.kill(move.resumed(), signal.SIGTERM)
    assert move.restore.process.wait(60) == 128 + signal.SIGTERM


def query_node(machine: Machine, path: str) -> dict[str, Any]:
    """One request to node's server."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    with inside(machine):
        connection.connect()
    connection.request("GET", path)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_node(strategy: str, machines: Machines, tmp_path: Path) -> None:
    node = shutil.which("node")
    if not node:
        skip("node is not installed")
        return
    entries = 50_000
    pid = started(machines[0], [node, str(REAL / "node_server.js"), str(PORT), str(entries)], tmp_path)
    connect(machines[0]).close()
    before = query_node(machines[0], "/")
    assert before["wrong"] == 0
    move = moved(pid, machines, tmp_path, strategy, "--tcp", "close")
    after = query_node(machines[1], "/add")
    assert (after["entries"], after["wrong"], after["derived"]) == (entries + 1, 0, before["derived"])
    for _ in range(5):
        assert query_node(machines[1], "/")["wrong"] == 0
    assert after["ticks"] > 0
    wait_for("a tick", lambda: query_node(machines[1], "/")["ticks"] > after["ticks"] or None)
    finish(move)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite(strategy: str, mode: str, machines: Machines, tmp_path: Path) -> None:
    words = [sys.executable, str(REAL / "sqlite_writer.py"), str(tmp_path), mode]
    pid = started(machines[0], words, tmp_path)
    wait_for("the first rows", lambda: (tmp_path / "ready").exists() or None)
    move = moved(pid, machines, tmp_path, strategy)
    # It goes on there; every hundredth row is told.
    told = tmp_path / "ready"
    before = int(told.read_text() or 0)
    wait_for("more rows", lambda: int(told.read_text() or 0) > before + 100 or None)
    (tmp_path / "stop").touch()
    assert move.restore.process.wait(60) == 0, move.said()
    written = int((tmp_path / "written").read_text())
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = database.execute("select number, content from rows order by number").fetchall()
    assert [number for number, _ in rows] == list(range(written))
    assert all(content == bytes([number % 251]) * (number % 3000) for number, content in rows)
    assert written > 150


def test_a_shell(machines: Machines, tmp_path: Path) -> None:
    """A shell in a loop that starts programs: a child is there now and then, and is waited for."""
    script = f"n=0; while [ ! -e {tmp_path}/stop ]; do n=$((n+1)); [ $n = 50 ] && : > {tmp_path}/ready; done; echo $n"
    pid = started(machines[0], ["/bin/sh", "-c", script], tmp_path)
    wait_for("the shell", lambda: (tmp_path / "ready").exists() or None)
    move = moved(pid, machines, tmp_path, "post-copy")
    (tmp_path / "stop").touch()
    assert move.restore.process.wait(60) == 0, move.said()
    assert int((tmp_path / "program.out").read_text()) > 50


def test_the_same_twice(machines: Machines, tmp_path: Path) -> None:
    """There and back again: what was moved once can be moved once more."""
    words = [sys.executable, str(REAL / "python_server.py"), str(PORT), "20000"]
    pid = started(machines[0], words, tmp_path)
    with connect(machines[0]) as first:
        assert query_python(first, "check")["wrong"] == 0
    there = moved(pid, machines, tmp_path, "post-copy", "--tcp", "close")
    there.complete()
    with connect(machines[1]) as second:
        assert query_python(second, "add")["entries"] == 20001
    back = begin_move(
        pid,
        (machines[1], machines[0]),
        tmp_path,
        restore=["--pid", "namespace", "--stdio", "null", "--tcp", "close"],
        number=2,
        inside=there.resumed(),
    )
    try:
        back.resumed()
        with connect(machines[0]) as third:
            checked = query_python(third, "check")
        assert (checked["entries"], checked["wrong"]) == (20001, 0)
        # Not lm-serve's exit status: it runs in the PID namespace that ends with the process.
        back.restore.event("complete")
    except BaseException:
        print(back.said())
        raise


def test_the_commands_leave_no_process(machines: Machines, tmp_path: Path) -> None:
    """With --detach both commands end, and only the process is left, with process 1 of its namespace."""
    pid = started(machines[0], ["/bin/sleep", "1000"], tmp_path)
    move = moved(pid, machines, tmp_path, "post-copy", "--detach")
    assert move.restore.process.wait(60) == 0
    assert move.serve.process.wait(60) == 0
    there = move.resumed()
    assert Path(f"/proc/{there}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed, "a command of this migration still runs"
    os.kill(there, signal.SIGKILL)
