"""Established TCP connections move with the process and its address, and their clients notice nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.experiments.machines import Command, Machine, Move, descendants, wait_for
from live_migration.kernel import packet_rules
from live_migration.kernel.pidfd import fetch_descriptor
from tests.support.connected import PORT, TAKING, Stream, Waiting, ask, echoing, move_to, serving, to_the_end
from tests.support.lan import SERVICE, SERVICE6, Lan
from tests.support.started import begin_move, start

TCP_REPAIR = 19
pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]


def moved(move: Move) -> int:
    """Wait until the process runs at the destination, and everything is there; its id."""
    try:
        pid = move.resumed()
        move.restore.event("complete")
    except BaseException:
        print(move.said())
        raise
    return pid


@pytest.mark.parametrize("strategy", ["post-copy", "hybrid", "pre-copy", "stop-and-copy"])
def test_connections_of_every_kind(strategy: str, net: Lan, tmp_path: Path, orphans: None) -> None:
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6) * 3]
        waiting = Waiting.begin(net)
        streams = [Stream(net.connect(PORT, address)).start() for address in (SERVICE, SERVICE6)]
        move = move_to(net, server.process.pid, tmp_path, strategy=strategy)
        moved(move)
        for number, one in enumerate(idle):
            ask(one, b"after %d" % number)
        waiting.finish()
        for stream in streams:
            stream.finish()
    assert capture.seen > 100
    assert capture.resets == []


def socket_states(pid: int) -> list[tuple[int, ...]]:
    """Number, SO_REUSEADDR, SO_KEEPALIVE and TCP_REPAIR of each TCP socket of a process."""
    pidfd, found = os.pidfd_open(pid), []
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            with socket.socket(fileno=fetch_descriptor(pidfd, int(name))) as one:
                options = ((socket.SOL_SOCKET, socket.SO_REUSEADDR), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                values = [one.getsockopt(*option) for option in options]
                found.append((int(name), *values, one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR)))
    os.close(pidfd)
    return found


@dataclass
class Clients:
    """A server, a client over each version of IP that says nothing, one that waits and one that never stops."""

    server: Command
    idle: list[socket.socket]
    waiting: Waiting
    stream: Stream

    def go_on(self, text: bytes) -> None:
        """Nobody has noticed anything."""
        for one in self.idle:
            ask(one, text)
        self.waiting.finish()
        self.stream.finish()


@contextlib.contextmanager
def served(net: Lan, folder: Path) -> Iterator[Clients]:
    """Clients whose connections are not reset, whatever happens."""
    with serving(net, folder) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        waiting = Waiting.begin(net)
        yield Clients(server, idle, waiting, Stream(net.connect(PORT)).start())
    assert capture.resets == []


@pytest.mark.parametrize("fault", ["source-ready:kill", "source-parked:fail", "destination-restored:kill"])
def test_what_is_not_moved_goes_on(
    fault: str, net: Lan, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(net, tmp_path) as clients:
        pid = clients.server.process.pid
        before = socket_states(pid)
        monkeypatch.setenv("LM_FAULT", fault)
        move = move_to(net, pid, tmp_path)
        assert move.serve.process.wait(60) != 0
        assert move.restore.process.wait(60) != 0
        clients.go_on(b"still here")
        with contextlib.closing(echoing(net, SERVICE)):
            kept = {state[0]: state for state in socket_states(pid)}
        assert [kept[state[0]] for state in before if state[0] in kept] == [s for s in before if s[0] in kept]


@pytest.mark.parametrize("fault", ["source-committed:kill", "source-decided:kill"])
def test_what_is_decided_goes_on_at_the_destination(
    fault: str, net: Lan, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop-and-copy, since nobody serves pages any more."""
    with served(net, tmp_path) as clients:
        monkeypatch.setenv("LM_FAULT", fault)
        move_to(net, clients.server.process.pid, tmp_path, strategy="stop-and-copy")
        wait_for("the address", lambda: SERVICE in addresses(net.destination) or None)
        clients.go_on(b"over there")
        with contextlib.closing(echoing(net, SERVICE)):
            pass
        assert addresses(net.source) & {SERVICE, SERVICE6} == set()
        assert addresses(net.destination) >= {SERVICE, SERVICE6}


@pytest.mark.parametrize("committed", [True, False])
def test_whoever_takes_the_source_up_again_knows_what_was_held(
    committed: bool, net: Lan, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-serve and its custodian are killed with the connections in repair."""
    with serving(net, tmp_path) as server:
        idle, pid = [echoing(net, address) for address in (SERVICE, SERVICE6)], server.process.pid
        monkeypatch.setenv("LM_FAULT", "source-committed:hang" if committed else "source-parked:hang")
        move = move_to(net, pid, tmp_path, strategy="stop-and-copy")
        if committed:
            move.restore.event("resumed")
        else:
            wait_for("the repair", lambda: all(state[3] for state in socket_states(pid)[-2:]) or None)
        serve = move.serve.process.pid
        for victim in (*descendants(serve), serve):
            os.kill(victim, signal.SIGKILL)
        move.serve.process.wait(60)
        monkeypatch.delenv("LM_FAULT")
        words = [sys.executable, "-m", "live_migration.cli.serve", "--reattach", str(pid)]
        again = start(net.source, words, tmp_path, "again")
        assert again.process.wait(60) == 0, again.said()
        for one in idle:
            ask(one, b"here or there")
        assert (SERVICE in addresses(net.source)) is not committed
        assert not list(Path("/dev/shm").glob(f"lm-*-{pid}-*"))


def test_connections_are_carried_on_by_the_custodian(
    net: Lan, tmp_path: Path, orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-restore's worker is killed when COMMIT has come. Whoever pages is gone with it, so that the process may have
    to wait; but its connections stand, and take what comes."""
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        monkeypatch.setenv("LM_FAULT", "destination-committed:kill")
        move_to(net, server.process.pid, tmp_path)
        wait_for("the address", lambda: SERVICE in addresses(net.destination) or None)
        for one in idle:
            one.sendall(b"somebody takes it")
        wait_for("acknowledgements", lambda: not any(map(unacknowledged, idle)) or None)
        assert addresses(net.source) & {SERVICE, SERVICE6} == set()
    assert capture.resets == []


def unacknowledged(one: socket.socket) -> int:
    """How many bytes the peer has not acknowledged."""
    found: int = lib.lm_unsent(one.fileno())
    return found


def addresses(machine: Machine) -> set[str]:
    """The addresses that it has."""
    words = ["ip", "-n", machine.namespace, "-o", "address"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True)
    return {line.split()[3].partition("/")[0] for line in listed.stdout.splitlines()}


def test_there_and_back_on_one_connection(net: Lan, tmp_path: Path, orphans: None) -> None:
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        stream = Stream(net.connect(PORT)).start()
        places, inside = [net.source, net.destination], None
        for number in range(4):
            move = move_to(
                net, server.process.pid, tmp_path, (places[0], places[1]), number=number, inside=inside
            )
            inside = moved(move)
            for one in idle:
                ask(one, b"move %d" % number)
            places.reverse()
        stream.finish()
    assert capture.resets == []


def refused(move: Move, *sentences: str) -> None:
    """Both sides end, and these are among the blockers."""
    assert move.restore.process.wait(60) == 67, move.said()
    assert move.serve.process.wait(60) == 67, move.said()
    for sentence in sentences:
        assert sentence in move.serve.said(), move.said()


def test_what_cannot_follow_is_refused_by_name(net: Lan, tmp_path: Path, orphans: None) -> None:
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = echoing(net, SERVICE)
        machines, words = (net.source, net.destination), ["--pid", "namespace", "--stdio", "null"]
        pid = server.process.pid
        refused(
            begin_move(pid, machines, tmp_path, restore=words, number=1),
            f"from [::ffff:{SERVICE}]:{PORT} to [::ffff:{net.client.address}]:",
            f"this host does not have its address; give lm-restore --take-address {SERVICE}/LENGTH@INTERFACE, or give",
        )
        refused(
            begin_move(pid, machines, tmp_path, restore=[*words, "--take-address", f"{SERVICE}/24@none0"], number=2),
            "this host has no such interface",
        )
        refused(
            begin_move(pid, machines, tmp_path, restore=[*words, "--take-address", "10.98.0.77/24@lan"], number=3),
            "the source does not have it",
        )
        with net.at(net.source):
            other = socket.create_server((SERVICE, 7009))
        taking = [*words, "--take-address", f"{SERVICE}/24@lan", "--take-address", f"{net.source.address}/24@lan"]
        refused(
            begin_move(pid, machines, tmp_path, restore=taking, number=4),
            "another process uses it (TCP port 7009, socket",
            "the migration itself uses it",
        )
        other.close()
        with net.at(net.source):
            other = socket.create_server(("0.0.0.0", PORT), reuse_port=True)
        refused(
            begin_move(pid, machines, tmp_path, restore=[*words, *TAKING], number=5),
            f"port {PORT}: another process listens there too (socket ",
        )
        other.close()
        ask(idle, b"still here")
    assert capture.resets == []


def test_a_host_without_nftables_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_rules, "NETFILTER", 31)
    with packet_rules.open_rules("none").kernel as nowhere:
        assert nowhere.family == socket.AF_UNIX
        with pytest.raises(OSError, match="not connected"):
            packet_rules.PacketRules(nowhere, "none").prepare()


def test_in_one_network_namespace_connections_are_handed_over(net: Lan, tmp_path: Path, orphans: None) -> None:
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        stream, waiting = Stream(net.connect(PORT)).start(), Waiting.begin(net)
        words = ["--pid", "namespace", "--stdio", "null"]
        moved(begin_move(server.process.pid, (net.source, net.source), tmp_path, restore=words))
        for one in idle:
            ask(one, b"here again")
        stream.finish()
        waiting.finish()
    assert capture.resets == []


def test_into_a_network_namespace_with_a_name(net: Lan, tmp_path: Path, orphans: None) -> None:
    """lm-restore itself runs elsewhere, and connects from there."""
    with serving(net, tmp_path) as server, net.captured() as capture:
        idle = [echoing(net, address) for address in (SERVICE, SERVICE6)]
        name = net.destination.namespace
        words = ["--pid", "namespace", "--stdio", "null", "--netns", name, *TAKING]
        pid = moved(begin_move(server.process.pid, (net.source, net.client), tmp_path, restore=words))
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{name}").st_ino
        for one in idle:
            ask(one, b"inside")
        with contextlib.closing(echoing(net, SERVICE)):
            assert addresses(net.destination) >= {SERVICE, SERVICE6}
    assert capture.resets == []


def test_what_comes_in_the_gap_need_not_be_sent_again(net: Lan, tmp_path: Path, orphans: None) -> None:
    """A client that had to send something again would wait for 10 s."""
    net.client.ip("route", "replace", "10.98.0.0/24", "dev", "lan", "src", net.client.address, "rto_min", "10s")
    ended = threading.Event()
    failed: list[BaseException] = []

    def guarded(what: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                what()
        except BaseException as error:
            failed.append(error)

    def come_and_go() -> None:
        one = echoing(net, SERVICE)
        one.shutdown(socket.SHUT_WR)
        assert to_the_end(one) == b""
        one.close()
        time.sleep(0.01)

    with serving(net, tmp_path) as server, net.captured() as capture:
        clients = [echoing(net, SERVICE) for _ in range(4)]
        for one in clients:
            one.settimeout(60)
        asked = [threading.Thread(target=guarded, args=(lambda one=one: ask(one, b"x" * 100),)) for one in clients]
        threads = [*asked, threading.Thread(target=guarded, args=(come_and_go,))]
        for thread in threads:
            thread.start()
        moved(move_to(net, server.process.pid, tmp_path))
        before = capture.seen
        wait_for("more answers", lambda: capture.seen > before + 200 or None)
        ended.set()
        for thread in threads:
            thread.join(60)
    assert failed == []
    assert len(capture.beginnings) > 5
    assert max(capture.beginnings.values()) == 1
    assert capture.resets == []
