"""Unix, TCP and UDP sockets: described in a child, opened here, compared and used."""

from __future__ import annotations

import ctypes
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from live_migration._lm import lib
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.blockers import descriptor_blockers, preflight_descriptors
from live_migration.process.descriptors.held_table import write_held
from live_migration.process.descriptors.holding import hold_descriptors
from live_migration.process.descriptors.inet_sockets import InetSocket
from live_migration.process.descriptors.kind import SnapshotContext
from live_migration.process.descriptors.opening import OpenedDescriptors, open_descriptors, update_descriptors
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.snapshot import (
    Snapshot,
    changed_since,
    see_and_describe,
    snapshot_descriptors,
)
from live_migration.process.descriptors.socket_options import read_options, set_all_options
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.descriptors.unix_sockets import UnixSocket
from live_migration.wire.blockers import Blocker
from tests.process.descriptor_help import Child, moved, running, travel, without

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
NULL = DescriptorOptions(stdio="null")


def sock(number: int) -> socket.socket:
    """A socket object for a descriptor, which stays open when it is closed."""
    return socket.socket(fileno=os.dup(number))


def blockers(child: Child, options: DescriptorOptions = NULL) -> list[str]:
    """What keeps a child from being moved."""
    table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
    return [str(one) for one in descriptor_blockers(table, options)]


def retire(seen: Snapshot) -> None:
    """As after COMMIT: do what is held of the descriptors."""
    file = os.memfd_create("held")
    write_held(file, seen.table.place.pid, hold_descriptors(seen.table))
    assert lib.lm_held_run(file, lib.LM_HELD_COMMIT) == 0
    os.close(file)


def test_pairs_keep_what_is_queued() -> None:
    code = """
    def pair(kind, first, second):
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        put(a.detach(), first); put(b.detach(), second)
    pair(socket.SOCK_STREAM, 20, 21)
    pair(socket.SOCK_DGRAM, 22, 23)
    pair(socket.SOCK_SEQPACKET, 24, 25)
    pair(socket.SOCK_STREAM, 26, 27)
    for i in range(50):
        os.write(20, b"piece%03d " % i)
    for number in (22, 24):
        os.write(number, b"first"); os.write(number, b"second one"); os.write(number, b"3")
    os.write(21, b"back")
    os.write(27, b"last words")
    os.close(27)
    one = socket.socket(fileno=os.dup(20))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.close()
    one = socket.socket(fileno=os.dup(24))
    one.shutdown(socket.SHUT_WR)
    one.close()
    os.set_blocking(23, False)
    ready()
    """
    with running(code) as child:
        assert blockers(child) == []
        with moved(child) as here:
            assert os.read(here(21), 10000) == b"".join(b"piece%03d " % i for i in range(50))
            assert os.read(here(20), 10000) == b"back"
            assert [os.read(here(23), 100) for _ in range(3)] == [b"first", b"second one", b"3"]
            with pytest.raises(BlockingIOError):
                os.read(here(23), 100)
            assert [os.read(here(25), 100) for _ in range(4)] == [b"first", b"second one", b"3", b""]
            assert os.read(here(26), 100) == b"last words"
            assert os.read(here(26), 100) == b""
            with pytest.raises(BrokenPipeError):
                os.write(here(24), b"x")
            with sock(here(20)) as one:
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100000
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
            os.write(here(20), b"and on")
            assert os.read(here(21), 100) == b"and on"
        # The source still has everything.
        with moved(child) as here:
            assert os.read(here(20), 10000) == b"back"


def test_pair_with_an_end_outside_is_an_blocker() -> None:
    a, b = socket.socketpair()
    with a, b, running(f"put({b.fileno()}, 20); ready()", pass_fds=[b.fileno()]) as child:
        found = [text for text in blockers(child) if text.startswith("descriptor 20")]
        b.close()
        assert any("has the other end" in text for text in found), found


def test_descriptors_under_way_are_an_blocker() -> None:
    code = """
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [0])
    ready()
    """
    with running(code) as child:
        seen = snapshot_descriptors(ProcessSnapshot(child.pid), frozen=True)
        seen.close()
        before = len(os.listdir("/proc/self/fd"))
        causes = [one.cause for one in descriptor_blockers(without(seen.table, child.report), NULL)]
        assert causes == ["descriptors are on their way in it, or an urgent byte (MSG_OOB)"]
        assert len(os.listdir("/proc/self/fd")) == before


LISTENERS = """
def listen(family, address, number, kind=socket.SOCK_STREAM):
    one = socket.socket(family, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    if kind == socket.SOCK_STREAM:
        one.listen(17)
    put(one.detach(), number)
listen(socket.AF_INET, ("127.0.0.1", 0), 20)
listen(socket.AF_INET6, ("::1", 0), 21)
listen(socket.AF_INET, ("127.0.0.1", 0), 22, socket.SOCK_DGRAM)
listen(socket.AF_UNIX, "path.sock", 23)
listen(socket.AF_UNIX, b"\\0lm-test-%d" % os.getpid(), 24)
os.chmod("path.sock", 0o640)
put(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), 25)
one = socket.socket(fileno=os.dup(20))
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40000)
one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
one.close()
ready()
"""


def check_listeners(here: Callable[[int], int]) -> None:
    """Connect to every listener and compare options."""
    for number in (20, 21, 23, 24):
        with sock(here(number)) as listener:
            client = socket.socket(listener.family)
            client.settimeout(60)
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            client.send(b"hello")
            assert accepted.recv(10) == b"hello"
            accepted.close()
            client.close()
    with sock(here(22)) as receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"datagram", receiver.getsockname())
        assert receiver.recv(100) == b"datagram"
    with sock(here(20)) as one:
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 80000
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.fixture
def short_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose path is short enough for a unix address."""
    with tempfile.TemporaryDirectory(prefix="lm") as name:
        monkeypatch.chdir(name)
        yield Path(name)
        monkeypatch.undo()


def test_listeners_are_handed_over_on_one_machine(short_path: Path) -> None:
    with running(LISTENERS, cwd=short_path) as child:
        assert blockers(child) == []
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
        assert preflight_descriptors(table, NULL) == []
        waiting: list[socket.socket] = []
        inodes: list[int] = []

        def between(opened: OpenedDescriptors, live: Snapshot) -> None:
            inodes.extend(opened.handed_over)
            tcp = next(one.object for one in live.table.open_files if one.number == 20)
            assert isinstance(tcp, InetSocket)
            assert tcp.backlog == 17
            waiting.append(socket.create_connection((str(tcp.address[0]), int(tcp.address[1]))))

        with moved(child, between=between, source_access=True) as here:
            assert len(inodes) == 5
            # A connection that waited at the source is there.
            with sock(here(20)) as listener:
                listener.settimeout(60)
                accepted, _ = listener.accept()
                accepted.close()
                waiting[0].close()
            check_listeners(here)


def test_listeners_are_made_anew(short_path: Path) -> None:
    with running(LISTENERS, cwd=short_path) as child:
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        table = travel(without(live.table, child.report))
        taken = [one.cause for one in preflight_elsewhere(table)]
        assert f"{short_path / 'path.sock'} exists here" in taken
        assert any("is taken here" in cause for cause in taken)
        assert f"@lm-test-{child.pid} cannot be bound here: Address already in use" in taken
        seen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
        # As after COMMIT: the source's listeners listen no more and the child ends.
        retire(seen)
        seen.close()
        child.process.kill()
        child.process.wait()
        (short_path / "path.sock").unlink()
        assert preflight_elsewhere(table) == []
        opened = open_descriptors(table, NULL, source_access=False)
        try:
            update_descriptors(opened, travel(without(seen.table, child.report)))
            identities = {d.number: d.open_file for d in table.descriptors}
            check_listeners(lambda number: opened.numbers[identities[number]])
            assert (short_path / "path.sock").stat().st_mode & 0o777 == 0o640
            opened.undo()
            assert not (short_path / "path.sock").exists()
        finally:
            opened.close()


def preflight_elsewhere(table: DescriptorTable) -> list[Blocker]:
    """What preflight says on another machine."""
    return preflight_descriptors(replace(table, place=replace(table.place, boot="another")), NULL)


CONNECTED = """
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
put(server.detach(), 20)
put(client.detach(), 21)
put(listener.detach(), 22)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("127.0.0.1", 9))
put(udp.detach(), 23)
put(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).detach(), 24)
os.write(21, b"not read yet")
ready()
"""


def test_established_connections_are_refused_or_closed() -> None:
    closing = DescriptorOptions(stdio="null", tcp="close")
    with running(CONNECTED) as child:
        found = blockers(child, DescriptorOptions(stdio="null", tcp="refuse"))
        assert len(found) == 2
        assert "an established TCP connection from 127.0.0.1:" in found[0]
        assert found[0].endswith("or give lm-restore --tcp keep, with its address, or --tcp close")
        assert blockers(child, closing) == []
        table = travel(without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report))
        staying = [str(one) for one in preflight_elsewhere(table)]
        assert [text for text in staying if "its peer is on the source's host and stays there" in text] == staying[:2]
        with moved(child, closing, source_access=True) as here:
            assert os.read(here(20), 100) == b""
            with pytest.raises(BrokenPipeError):
                os.write(here(21), b"x")
            with sock(here(23)) as udp:
                assert udp.getpeername() == ("127.0.0.1", 9)


def test_peers_get_a_clean_end_and_late_clients_are_refused() -> None:
    code = """
    listener = socket.create_server(("127.0.0.1", 0))
    put(listener.detach(), 20)
    ready()
    listener = socket.socket(fileno=20)
    server, _ = listener.accept()
    ready()
    """
    with running(code) as child:
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        kind = next(one.object for one in live.table.open_files if one.number == 20)
        assert isinstance(kind, InetSocket)
        where = (str(kind.address[0]), int(kind.address[1]))
        with socket.create_connection(where) as client:
            client.sendall(b"request")
            child.go_on()
            with socket.create_connection(where) as waiting:
                waiting.sendall(b"me too")
                seen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
                retire(seen)
                for one in (client, waiting):
                    one.settimeout(60)
                    assert one.recv(10) == b""
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(where)
                seen.close()
                child.process.kill()
                child.process.wait()
                # No reset came after the end.
                assert client.recv(10) == b""


def test_other_sockets_are_named() -> None:
    code = """
    put(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16).detach(), 20)
    put(socket.socket(socket.AF_PACKET, socket.SOCK_RAW).detach(), 21)
    put(os.pidfd_open(os.getppid()), 22)
    put(os.open("/proc/self/ns/net", os.O_RDONLY), 23)
    put(os.open("/proc/self/status", os.O_RDONLY), 24)
    ready()
    """
    with running(code) as child:
        found = blockers(child)
    assert [text.split("; ")[0].split(": ", 1)[1] for text in found] == [
        "a socket of AF_NETLINK, type 3, protocol 16",
        "a socket of AF_PACKET, type 3, protocol 0",
        f"a pidfd of process {os.getpid()}, which stays",
        "a net namespace of this machine",
        "it belongs to one process of the source, and opened anew it would be another's",
    ]


def test_a_process_in_another_network_namespace() -> None:
    code = """
    import ctypes
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    a, b = socket.socketpair()
    put(a.detach(), 20); put(b.detach(), 21)
    os.write(20, b"hello")
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    one.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
    one.bind(("192.0.2.7", 4321))
    one.setsockopt(socket.SOL_IP, 15, 0)
    one.listen(3)
    put(one.detach(), 22)
    ready()
    """
    with running(code) as child:
        assert blockers(child) == []
        table = without(snapshot_descriptors(ProcessSnapshot(child.pid)).table, child.report)
        pair, peer = (next(one.object for one in table.open_files if one.number == number) for number in (20, 21))
        assert isinstance(pair, UnixSocket)
        assert isinstance(peer, UnixSocket)
        assert pair.peer == peer.inode
        # Not handed over, although it is one machine: another network is another network.
        assert [str(one).split(": ", 1)[1] for one in preflight_descriptors(table, NULL)] == [
            "this host does not have the address of 192.0.2.7:4321; give the address to an interface here"
        ]


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_options_of_an_accepted_connection_fit_a_new_socket(family: socket.AddressFamily, host: str) -> None:
    """The kernel keeps there what came with the first packet, where other sockets have multicast options."""
    with socket.create_server((host, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        accepted, _ = listener.accept()
    with client, accepted, socket.socket(family, socket.SOCK_STREAM) as made:
        set_all_options(made.fileno(), read_options(accepted, SnapshotContext(os.getpid())))


def test_options_that_change_before_the_freeze_are_seen_there_and_after_it() -> None:
    """What the rehearsal has seen is set anew, taken back too; what came later is found out while the destination gets
    ready.
    """
    lo, ttl, late = socket.if_nametoindex("lo"), 77, 78
    group = socket.inet_aton("239.1.2.3") + bytes(4) + lo.to_bytes(4, "little")
    accept_all = ctypes.create_string_buffer(bytes([6, 0, 0, 0, 255, 255, 255, 255]))
    program = (1).to_bytes(8, "little") + ctypes.addressof(accept_all).to_bytes(8, "little")
    first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))

    def attach(one: socket.socket) -> None:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def detach(one: socket.socket) -> None:
        one.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, group)
        one.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def change(_: OpenedDescriptors, live: Snapshot) -> None:
        process = ProcessSnapshot(live.table.place.pid)
        detach(first)
        attach(second)
        first.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        see_and_describe(process, live, frozen=False).close()
        frozen = snapshot_descriptors(process, live, frozen=True)
        assert changed_since(frozen) == []
        frozen.close()

    attach(first)
    with first, second, running(
        f"put({first.fileno()}, 20); put({second.fileno()}, 21); ready()", pass_fds=[first.fileno(), second.fileno()]
    ) as child:
        with moved(child, between=change) as here, sock(here(20)) as moved_first, sock(here(21)) as moved_second:
            assert moved_first.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == ttl
            attach(moved_first)
            detach(moved_second)
        live = snapshot_descriptors(ProcessSnapshot(child.pid))
        first.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, late)
        frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
        found = changed_since(frozen)
        frozen.close()
        assert [each.object.split()[1] for each in found] == ["20"]
        assert "options changed" in found[0].cause


def test_an_option_that_this_kernel_lacks_matters_only_if_it_was_set() -> None:
    """A unix socket has the options of TCP as little as an old kernel has those of a new one."""
    context = SnapshotContext(os.getpid())
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one, socket.socket(socket.AF_UNIX) as other:
        set_all_options(other.fileno(), read_options(one, context))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(OSError, match="TCP_NODELAY"):
            set_all_options(other.fileno(), read_options(one, context))
