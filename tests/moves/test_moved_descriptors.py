"""What becomes of connections, files and output while a process is moved, as those at the other end see it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Machine, Move, start, wait_for
from tests.support.started import begin_move

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

SERVER = """
import os, socket, socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            counted[0] += 1
            self.wfile.write(b"%d\\n" % counted[0])
counted = [0]
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64
server = Server((sys.argv[1], 0), Handler)
with open("port.new", "w") as file:
    file.write(str(server.server_address[1]))
os.rename("port.new", "port")
server.serve_forever()
"""
WRITER = """
import os, sqlite3, time
base = sqlite3.connect("base")
base.execute("create table numbers (number integer)")
base.commit()
number = 0
while True:
    base.execute("insert into numbers values (?)", (number,))
    base.commit()
    if number == 10:
        open("port", "w").write("0")
    number += 1
    time.sleep(0.002)
"""
TALKER = """
import os, time
open("port", "w").write("0")
number = 0
while not os.path.exists("enough"):
    os.write(1, b"%d\\n" % number)
    number += 1
    time.sleep(0.02)
"""


@contextmanager
def program(code: str, folder: Path, machine: Machine | None, *words: str) -> Iterator[tuple[Command, int]]:
    """A Python program in a session of its own, and the port that it listens on."""
    one = start(machine, [sys.executable, "-c", code, *words], folder, "program", start_new_session=True, cwd=folder)
    path = folder / "port"
    wait_for("the program", lambda: (path.exists() and path.read_text()) or None, 60)
    yield one, int(path.read_text())


def query(address: tuple[str, int]) -> int:
    """One question on a connection of its own."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"?\n")
        return int(connection.makefile().readline())


def completed(move: Move) -> None:
    """The migration is over, on both sides."""
    try:
        move.complete()
    except BaseException:
        print(move.said())
        raise


def test_on_one_machine_no_client_is_turned_away(tmp_path: Path, orphans: None) -> None:
    with program(SERVER, tmp_path, None, "127.0.0.1") as (server, port):
        answers: list[int] = []
        errors: list[Exception] = []
        done = threading.Event()

        def clients() -> None:
            while not done.is_set():
                try:
                    answers.append(query(("127.0.0.1", port)))
                except (OSError, ValueError) as error:
                    # ValueError: the stream has ended before there was an answer.
                    errors.append(error)
                time.sleep(0.01)

        asking = threading.Thread(target=clients)
        asking.start()
        try:
            # A connection that happens to be open at the freeze is ended; the client of that moment asks in
            # vain.
            move = begin_move(
                server.process.pid, (None, None), tmp_path, restore=["--pid", "namespace", "--tcp", "close"]
            )
            completed(move)
            before = len(answers)
            wait_for("answers after the move", lambda: len(answers) > before + 20 or None, 60)
        finally:
            done.set()
            asking.join()
    assert len(errors) <= 1, errors
    assert not any(isinstance(error, ConnectionRefusedError) for error in errors)
    assert answers == sorted(set(answers))


def test_clients_get_a_clean_end_and_come_back(
    tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    source, destination = machines
    with program(SERVER, tmp_path, source, "0.0.0.0") as (server, port):
        with client(source, port) as old:
            assert old.stdout is not None
            assert old.stdout.readline() == "connected\n"
            move = begin_move(server.process.pid, machines, tmp_path, restore=["--pid", "namespace", "--tcp", "close"])
            completed(move)
            # The end of the stream, not a reset.
            assert old.communicate(timeout=60)[0] == "ended\n"
        with client(destination, port) as new:
            assert new.stdout is not None
            assert new.stdout.readline() == "connected\n"


@pytest.mark.parametrize("failpoint", ["source-committed", "source-decided"])
def test_clients_get_a_clean_end_from_the_custodian(
    failpoint: str,
    tmp_path: Path,
    machines: tuple[Machine, Machine],
    orphans: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """lm-serve is killed right after COMMIT, before it has ended the connections of the source's copy."""
    source = machines[0]
    with program(SERVER, tmp_path, source, "0.0.0.0") as (server, port), client(source, port) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "connected\n"
        monkeypatch.setenv("LM_FAULT", f"{failpoint}:kill")
        restore = ["--pid", "namespace", "--tcp", "close"]
        move = begin_move(server.process.pid, machines, tmp_path, restore=restore)
        assert move.serve.process.wait(60) == -signal.SIGKILL, move.said()
        assert old.communicate(timeout=60)[0] == "ended\n"
        refused = f"import socket; socket.create_connection(('127.0.0.1', {port}), 10)"
        late = subprocess.run(source.command(sys.executable, "-c", refused), capture_output=True, text=True)
        assert "ConnectionRefusedError" in late.stderr
        move.restore.event("resumed")


@contextmanager
def client(machine: Machine, port: int) -> Iterator[subprocess.Popen[str]]:
    """A client on a machine, which says when it has an answer and how the connection ends."""
    code = f"""
import socket
connection = socket.create_connection(("127.0.0.1", {port}), 10)
connection.sendall(b"?\\n")
assert connection.recv(100)
print("connected", flush=True)
connection.settimeout(60)
print("ended" if connection.recv(100) == b"" else "more")
"""
    one = subprocess.Popen(machine.command(sys.executable, "-c", code), stdout=subprocess.PIPE, text=True)
    try:
        yield one
    finally:
        one.kill()
        one.communicate()


def test_established_connections_are_refused_by_name(
    tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    with program(SERVER, tmp_path, machines[0], "0.0.0.0") as (server, port), client(machines[0], port) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "connected\n"
        move = begin_move(server.process.pid, machines, tmp_path, restore=["--pid", "namespace"])
        assert move.restore.process.wait(60) == 67
        assert "its peer is on the source's host and stays there" in move.restore.said()
        assert "give lm-restore --tcp close, which closes it" in move.restore.said()
        assert move.serve.process.wait(60) == 67
        with client(machines[0], port) as another:
            assert another.stdout is not None
            assert another.stdout.readline() == "connected\n"


@pytest.mark.parametrize("strategy", ["post-copy", "stop-and-copy"])
def test_a_database_being_written(
    tmp_path: Path, machines: tuple[Machine, Machine], strategy: str, orphans: None
) -> None:
    """Its locks come and go; the process is frozen again until it holds none that cannot be moved."""
    with program(WRITER, tmp_path, machines[0]) as (writer, _):
        move = begin_move(writer.process.pid, machines, tmp_path, strategy=strategy, restore=["--pid", "namespace"])
        completed(move)
        at_first = count(tmp_path / "base")
        wait_for("more rows", lambda: count(tmp_path / "base") > at_first + 20 or None, 60)


def count(path: Path) -> int:
    """The rows of the database, which must be the numbers from 0 on, each once."""
    with sqlite3.connect(path, timeout=60) as base:
        rows, highest, different = base.execute(
            "select count(*), max(number), count(distinct number) from numbers"
        ).fetchone()
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    assert rows == highest + 1 == different
    return int(rows)


def test_output_goes_on_at_the_destination(tmp_path: Path, orphans: None) -> None:
    """A pipe at descriptor 1 stays with its reader; lm-restore's own output takes its place.

    The program writes whole lines: between two halves of one (print, with PYTHONUNBUFFERED) an event may come."""
    read_end, write_end = os.pipe()
    talker = subprocess.Popen(
        [sys.executable, "-c", TALKER], stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.DEVNULL,
        cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(write_end)
    wait_for("the program", lambda: (tmp_path / "port").exists() or None, 60)
    move = begin_move(talker.pid, (None, None), tmp_path, restore=["--pid", "namespace"])
    completed(move)
    talker.wait(60)
    wait_for("output at the destination", lambda: numbers(tmp_path / "restore.out") or None)
    (tmp_path / "enough").touch()
    assert move.restore.process.wait(60) == 0
    with os.fdopen(read_end) as old:
        before = [int(line) for line in old]
    after = numbers(tmp_path / "restore.out")
    assert before + after == list(range(len(before + after)))
    assert before


def numbers(path: Path) -> list[int]:
    """The whole lines of a file that are numbers."""
    lines = path.read_text().splitlines(keepends=True)
    return [int(line) for line in lines if line.endswith("\n") and line.strip().isdigit()]


def test_others_may_write_to_the_same_log(tmp_path: Path, orphans: None) -> None:
    """On one machine it is the very file, however its size and times have changed in the freeze."""
    path = tmp_path / "log"
    done = threading.Event()
    with path.open("ab", buffering=0) as log:
        talker = subprocess.Popen(
            [sys.executable, "-c", TALKER], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.DEVNULL,
            cwd=tmp_path, start_new_session=True,
        )  # fmt: skip

        def write_too() -> None:
            while not done.wait(0.001):
                log.write(b"another\n")

        other = threading.Thread(target=write_too)
        other.start()
        try:
            wait_for("the program", lambda: (tmp_path / "port").exists() or None, 60)
            move = begin_move(talker.pid, (None, None), tmp_path, restore=["--pid", "namespace"])
            completed(move)
            moved = numbers(path)[-1]
            wait_for("output at the destination", lambda: numbers(path)[-1] > moved or None)
            (tmp_path / "enough").touch()
            assert move.restore.process.wait(60) == 0
        finally:
            done.set()
            other.join()
    talker.wait(60)
    lines = [int(line) for line in path.read_text().splitlines() if line != "another"]
    assert lines == list(range(len(lines)))
