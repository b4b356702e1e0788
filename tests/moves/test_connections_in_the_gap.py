"""What clients do while their server stands still, and what of a connection must not be lost by a move."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from tests.support.connected import PORT, Waiting, ask, echoing, move_to, serving, to_the_end
from tests.support.connected_server import LENGTH, numbered
from tests.support.lan import SERVICE, SERVICE6, Lan

TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT = 18, 25
SHORT = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1),
    (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 900),
]
pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]


def begun(net: Lan, kind: bytes, address: str = SERVICE, options: object = ()) -> socket.socket:
    """A connection of a kind, on which the server has set options."""
    made = net.connect(PORT, address)
    made.sendall(b"o" + json.dumps(options).encode() + b"\n" + kind)
    return made


def reset(one: socket.socket) -> None:
    """End it by a reset."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    one.close()


@pytest.mark.parametrize("fault", ["", "source-ready:fail"])
def test_what_clients_do_in_the_gap(
    fault: str, net: Lan, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The freeze lasts for seconds, longer than what is told of keepalive and user timeout."""
    monkeypatch.setenv("LM_FAULT", fault)
    with serving(net, tmp_path) as server:
        waiting, short = Waiting.begin(net), begun(net, b"e", SERVICE6, SHORT)
        ask(short, b"before")
        alone = [[(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 1)], [(socket.IPPROTO_TCP, socket.TCP_CORK, 1)]]
        full = [begun(net, b"q", SERVICE, options) for options in alone]
        asking, ending, going, resetting = (echoing(net, SERVICE) for _ in range(4))
        words = ["--bandwidth-limit", "5M", "--max-freeze", "60"]
        move = move_to(net, server.process.pid, tmp_path, strategy="stop-and-copy", serve=words)
        move.serve.event("frozen")
        asking.sendall(b"in the gap")
        ending.sendall(b"at last")
        ending.shutdown(socket.SHUT_WR)
        going.close()
        reset(resetting)
        came: list[socket.socket] = []
        coming = threading.Thread(target=lambda: came.append(echoing(net, SERVICE6)))
        coming.start()
        if fault:
            assert move.serve.process.wait(60) != 0
        else:
            move.resumed()
        assert asking.recv(100) == b"in the gap"
        assert to_the_end(ending) == b"at last"
        coming.join(60)
        for one in (*came, short, asking):
            ask(one, b"after")
        waiting.finish()
        for one in full:
            one.shutdown(socket.SHUT_WR)
            assert to_the_end(one) == numbered(0, LENGTH)
        assert len(came) == 1


def test_who_is_killed_in_the_freeze_ends_as_at_any_other_time(net: Lan, tmp_path: Path, orphans: None) -> None:
    """Its clients hear of it: connections end, and new ones are refused."""
    with serving(net, tmp_path) as server:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        words = ["--bandwidth-limit", "2M", "--max-freeze", "60"]
        move = move_to(net, server.process.pid, tmp_path, strategy="stop-and-copy", serve=words)
        move.serve.event("frozen")
        os.kill(server.process.pid, signal.SIGKILL)
        assert move.serve.process.wait(50) == 66, move.said()
        assert move.restore.process.wait(60) in (66, 68, 69, 75), move.said()
        assert [to_the_end(one) for one in idle] == [b"", b""]
        with pytest.raises(ConnectionRefusedError):
            net.connect(PORT)


def test_what_was_not_read_is_not_lost(net: Lan, tmp_path: Path, orphans: None) -> None:
    """What is read out of turn, and what is left of an ended connection: nothing moves before it is read."""
    with serving(net, tmp_path) as server, net.captured() as capture:
        urgent = net.connect(PORT)
        urgent.sendall(b"uabc")
        urgent.send(b"!", socket.MSG_OOB)
        assert urgent.recv(1) == b"!"
        urgent.sendall(b"def")
        urgent.shutdown(socket.SHUT_WR)
        ended, read = net.connect(PORT), net.connect(PORT)
        for one, kind in ((ended, b"f"), (read, b"z")):
            one.sendall(kind)
            assert one.recv(1) == b""
        ended.sendall(b"last words")
        for one in (ended, read):
            one.shutdown(socket.SHUT_WR)
        with contextlib.closing(echoing(net, SERVICE)):
            move = move_to(net, server.process.pid, tmp_path, number=1)
        assert move.serve.process.wait(60) == 67, move.said()
        assert move.restore.process.wait(60) == 67
        for sentence in ("an urgent byte that was not read", "has ended, and not everything of it was read"):
            assert sentence in move.serve.said()
        go = net.connect(PORT)
        go.sendall(b"cgo\n")
        assert go.recv(100) == b"went []" + hashlib.md5(b"last words").hexdigest().encode() + b"\n"
        assert to_the_end(urgent) == hashlib.md5(b"abcdef").hexdigest().encode()
        move = move_to(net, server.process.pid, tmp_path, number=2)
        move.resumed()
        go.sendall(b"go\n")
        assert go.recv(100) == b"went []" + hashlib.md5(b"last words").hexdigest().encode() + b"[]\n"
    assert capture.resets == []
