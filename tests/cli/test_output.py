"""What is printed never waits for its reader, and moves no cursor."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.cli.output import MOST_HELD, Outlet, never_waiting
from live_migration.cli.rendering import make_events
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import LocalError, Refused
from live_migration.wire.messages import Abort, Blockers, error_of, refusal_of
from live_migration.wire.plain_text import json_line, one_line, printable


@contextlib.contextmanager
def ends(kind: str) -> Iterator[tuple[int, int]]:
    """A reading and a writing end."""
    if kind == "socket":
        one, other = (end.detach() for end in socket.socketpair())
    else:
        one, other = os.pipe() if kind == "pipe" else pty.openpty()
    try:
        yield one, other
    finally:
        os.close(one)
        os.close(other)


def read_until(number: int, ending: bytes) -> bytes:
    data = b""
    while not data.endswith(ending):
        data += os.read(number, 1 << 16)
    return data


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_nobody_reads(kind: str) -> None:
    lines = [f"line {number} {'x' * 90}\n".encode() for number in range(5000)]
    with ends(kind) as (read_end, write_end):
        outlet = Outlet(write_end)
        for line in lines:
            outlet.write(line)
        assert os.get_blocking(write_end), "others use it too"
        found: list[bytes] = []
        ending = b"the end\r\n" if kind == "terminal" else b"the end\n"
        reader = threading.Timer(0.1, lambda: found.append(read_until(read_end, ending)))
        outlet.write(b"the end\n")
        reader.start()
        outlet.drain(20)
        reader.join()
    assert found[0].replace(b"\r\n", b"\n") == b"".join(lines) + b"the end\n"


def test_what_nobody_ever_reads_is_bounded() -> None:
    with ends("pipe") as (_, write_end):
        outlet = Outlet(write_end)
        for _ in range(10):
            outlet.write(bytes(MOST_HELD // 4))
        began = time.monotonic()
        outlet.drain(0.1)
        assert time.monotonic() - began < 5


def test_a_reader_that_has_gone_is_no_error() -> None:
    for kind in ("pipe", "socket"):
        with ends(kind) as (read_end, write_end):
            outlet = Outlet(write_end)
            outlet.write(b"x")
            os.close(read_end)
            outlet.write(b"y")
            outlet.drain(1)
            os.dup2(write_end, read_end)


def test_a_file_is_written_where_others_write(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"1\n")
        outlet = Outlet(file.fileno())
        outlet.write(b"2\n")
        file.write(b"3\n")
        outlet.drain(1)
    assert (tmp_path / "file").read_bytes() == b"1\n2\n3\n"


def test_streams_are_replaced_for_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with never_waiting():
        print("one", "line", "\udcff")
        print("another", end="", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert capfd.readouterr() == ("one line \\udcff\n", "another")


ODD = "\x1b[2J\x9b31m\u202e\udcff\a and\nlm-serve: a line of its own"


def test_no_control_character_of_a_peer_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever it says by itself, and whatever its files and names are called."""
    told = Abort(step=ODD, object=ODD, cause=ODD, remedy=ODD)
    found = [Blocker(ODD, ODD, ODD)]
    for as_json in (False, True):
        with make_events("lm-restore", json=as_json, verbose=2) as events:
            events.failed(error_of(told))
            events.failed(refusal_of(Blockers(found=found, step=ODD)))
            events.failed(Refused(found))
            events.failed(LocalError(step=ODD, object=ODD, cause=ODD, remedy=ODD))
            events.failed_in_words(ODD, 71, 0, [{"object": ODD}])
            events.note(ODD)
            events.emit("staged", 0, sentence=ODD)
            if not as_json:
                events.checked(0, found)
        out, err = capfd.readouterr()
        assert all(letter.isprintable() or letter == "\n" for letter in out + err)
        assert not as_json or all(json.loads(line) for line in out.splitlines())


def test_words_are_escaped() -> None:
    assert one_line("plain ä €") == "plain ä €"
    assert one_line("a\x1b[2J\n\udcffb\u202e") == "a\\x1b[2J\\n\\udcffb\\u202e"
    assert printable("a\x1bb\nc") == "a\\x1bb\nc"
    assert json_line("\x9b\U000e0001") == b'"\\u009b\\udb40\\udc01"\n'
    assert json.loads(json_line({"a": ["\x1b\udcff", 1, None], "\udc80": ("x",)})) == {
        "a": ["\x1b\\udcff", 1, None],
        "\\udc80": ["x"],
    }
