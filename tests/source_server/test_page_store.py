"""One store, any number of clients: each gets the same pages, at its own pace, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.kernel.memory.pagemap import present_runs
from live_migration.source_server.pages.client import COMPRESS_NONE, ClientState, PageClient, PushRun
from live_migration.source_server.pages.store import FIRST_OBJECT, PageStore
from live_migration.wire.stream import Stream
from tests.pager.paging import PAGE, SESSION, connected_pair

PAGES = 96
HEADER = lib.LM_HEADER_SIZE
# ptrace(2), process_mrelease(2)
PTRACE_CONT, PTRACE_SEIZE, PTRACE_O_TRACEEXIT, PTRACE_EVENT_EXIT = 7, 0x4206, 0x40, 6
SYS_PROCESS_MRELEASE = 448


@dataclass
class Peer:
    """A destination by hand: it sends requests, and keeps the frames that come."""

    fault: socket.socket
    bulk: socket.socket
    client: PageClient
    identifiers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    absent: set[int] = field(default_factory=set)

    def request(self, link: socket.socket, kind: int, space: int, address: int, pages: int) -> dict[int, bytes]:
        """The content of each page that an answer brings, by its address."""
        identifier = next(self.identifiers)
        request = ffi.new("struct lm_request *")
        request.kind, request.space, request.address = kind, space, address
        request.pages, request.id = pages, identifier
        lib.lm_request_seal(request)
        link.sendall(bytes(ffi.buffer(request)))
        return self.frames(link, identifier)

    def frames(self, link: socket.socket, identifier: int) -> dict[int, bytes]:
        """The pages of all frames up to the last one, all of which bear the identifier."""
        found: dict[int, bytes] = {}
        while True:
            frame = ffi.new("struct lm_frame *")
            ffi.buffer(frame)[:] = read_exactly(link, HEADER)
            assert lib.lm_frame_check(frame) == 0
            if frame.kind == lib.LM_FRAME_PONG:
                continue
            assert frame.id == identifier
            content = bytes(frame.pages * PAGE)
            if frame.kind == lib.LM_FRAME_RAW:
                content = read_exactly(link, frame.length)
            if frame.kind == lib.LM_FRAME_ABSENT:
                self.absent |= {frame.address + page * PAGE for page in range(frame.pages)}
            for page in range(frame.pages):
                found[frame.address + page * PAGE] = content[page * PAGE : (page + 1) * PAGE]
            if frame.flags & lib.LM_FRAME_LAST:
                return found


def read_exactly(link: socket.socket, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        assert more, "the connection ended"
        data += more
    return data


def connect(client: PageClient, stack: ExitStack, attempt: int = 1) -> Peer:
    """Another destination for the client."""
    fault, bulk = connected_pair(), connected_pair()
    for link in (*fault, *bulk):
        stack.callback(link.close)
    client.compress(COMPRESS_NONE)
    client.connect(Stream(fault[0]), Stream(bulk[0]), SESSION, attempt)
    return Peer(fault[1], bulk[1], client)


@dataclass
class Served:
    """A store with this process's own memory as space 0 and a file as an object, and what is in both."""

    store: PageStore
    address: int
    memory: bytes
    content: bytes
    peers: list[Peer]
    stack: ExitStack

    def pages(self, link: str, peer: Peer, rng: random.Random) -> None:
        """Ask for pages of both spaces, one by one and in runs, and compare them."""
        kind, most = (lib.LM_REQUEST_FAULT, 8) if link == "fault" else (lib.LM_REQUEST_RUN, PAGES)
        for _ in range(60):
            first = rng.randrange(PAGES)
            count = rng.randint(1, min(most, PAGES - first))
            space, base, content = rng.choice([(0, self.address, self.memory), (FIRST_OBJECT, 0, self.content)])
            got = peer.request(getattr(peer, link), kind, space, base + first * PAGE, count)
            assert set(got) == {base + page * PAGE for page in range(first, first + count)}
            for address, page in got.items():
                offset = address - base
                assert page == content[offset : offset + PAGE], (link, hex(address))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Two clients of one store, each with its destination."""
    rng = random.Random(5)
    memory = bytearray(rng.randbytes((PAGES + 1) * PAGE))
    start = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
    address = -(-start // PAGE) * PAGE
    content = rng.randbytes(PAGES * PAGE - 100)
    (tmp_path / "object").write_bytes(content)
    with ExitStack() as stack:
        store = stack.enter_context(PageStore())
        store.add_process(0, os.getpid())
        descriptor = os.open(tmp_path / "object", os.O_RDONLY)
        store.add_object(FIRST_OBJECT, descriptor)
        os.close(descriptor)
        store.open(True)
        peers = [connect(stack.enter_context(PageClient(store)), stack) for _ in range(2)]
        # The view keeps the memory where it is.
        view = memoryview(memory)[address - start : address - start + PAGES * PAGE]
        yield Served(store, address, bytes(view), content.ljust(PAGES * PAGE, b"\0"), peers, stack)


def test_two_clients_get_the_same_pages_at_once(served: Served) -> None:
    failures: list[BaseException] = []

    def work(link: str, peer: Peer, seed: int) -> None:
        try:
            served.pages(link, peer, random.Random(seed))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(link, peer, number))
        for number, peer in enumerate(served.peers)
        for link in ("fault", "bulk")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert [peer.client.counters["fault_pages"] for peer in served.peers] == [60, 60]
    assert not any(peer.absent for peer in served.peers)


def test_the_end_of_one_client_is_nothing_to_the_other(served: Served) -> None:
    first, second = served.peers
    first.bulk.sendall(bytes(HEADER))
    assert first.client.wait(ClientState.CONNECTED, 60) is ClientState.DROPPED
    served.pages("fault", second, random.Random(1))
    first.client.close()
    served.pages("bulk", second, random.Random(2))
    assert second.client.state is ClientState.CONNECTED


def test_each_client_remembers_what_it_was_sent_itself(served: Served) -> None:
    first, second = served.peers
    whole = [PushRun(0, served.address, served.address + PAGES * PAGE)]

    def push(peer: Peer, identifier: int) -> dict[int, bytes]:
        options = {"remember": True, "changed": True}
        thread = threading.Thread(target=peer.client.push, args=(identifier, whole), kwargs=options)
        thread.start()
        got = peer.frames(peer.bulk, identifier)
        thread.join(60)
        return got

    every = {served.address + page * PAGE for page in range(PAGES)}
    assert set(push(first, 1)) == every
    assert set(push(first, 2)) == set()
    assert set(push(second, 1)) == every


def test_a_client_goes_on_with_its_next_connections(served: Served) -> None:
    peer = served.peers[0]
    peer.fault.close()
    assert peer.client.wait(ClientState.CONNECTED, 60) is ClientState.LOST
    again = connect(peer.client, served.stack, 2)
    assert peer.client.state is ClientState.CONNECTED
    served.pages("fault", again, random.Random(3))
    served.pages("bulk", again, random.Random(4))


def test_a_store_that_is_not_open_answers_no_client(served: Served) -> None:
    served.store.open(False)
    for peer, kind, link in zip(
        served.peers, (lib.LM_REQUEST_FAULT, lib.LM_REQUEST_RUN), ("fault", "bulk"), strict=True
    ):
        with pytest.raises((AssertionError, ConnectionError)):
            peer.request(getattr(peer, link), kind, 0, served.address, 1)
        assert peer.client.wait(ClientState.CONNECTED, 60) is ClientState.DROPPED
        assert peer.client.cause == f"a request on the {link} connection comes before the freeze"


@pytest.mark.parametrize("kind", [lib.LM_REQUEST_FAULT, lib.LM_REQUEST_RUN, lib.LM_REQUEST_MAP])
def test_the_memory_of_a_process_that_was_killed_is_not_zero(kind: int, served: Served) -> None:
    """Whoever asks learns that it cannot be read. Absent pages would be zeros to the moved process."""
    child = os.fork()
    if not child:
        signal.pause()
    served.store.add_process(1, child)
    peer = served.peers[0]
    link = peer.fault if kind == lib.LM_REQUEST_FAULT else peer.bulk
    peer.request(link, kind, 1, served.address, 8)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cannot_be_read(served, kind)


def cannot_be_read(served: Served, kind: int) -> None:
    """The first peer is not answered, and no page is told to be absent."""
    peer = served.peers[0]
    peer.absent.clear()
    link = peer.fault if kind == lib.LM_REQUEST_FAULT else peer.bulk
    with contextlib.suppress(AssertionError, ConnectionError):
        assert not peer.request(link, kind, 1, served.address, 8)
    assert not peer.absent
    assert peer.client.wait(ClientState.CONNECTED, 60) is ClientState.FAILED
    assert "cannot be read" in peer.client.cause


@pytest.mark.parametrize("kind", [lib.LM_REQUEST_FAULT, lib.LM_REQUEST_RUN, lib.LM_REQUEST_MAP])
def test_memory_that_the_kernel_takes_early_is_not_zero(kind: int, served: Served) -> None:
    """A killed process whose end takes a while: its memory goes before it does, page by page (the OOM reaper)."""
    child = os.fork()
    if not child:
        signal.pause()
    libc = ctypes.CDLL(None, use_errno=True)
    served.store.add_process(1, child)
    peer = served.peers[0]
    peer.request(peer.fault if kind == lib.LM_REQUEST_FAULT else peer.bulk, kind, 1, served.address, 8)
    assert libc.ptrace(PTRACE_SEIZE, child, None, PTRACE_O_TRACEEXIT) == 0
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status >> 8 == signal.SIGTRAP | PTRACE_EVENT_EXIT << 8
    process = os.pidfd_open(child)
    assert libc.syscall(SYS_PROCESS_MRELEASE, process, 0) == 0
    os.close(process)
    assert present_runs(child, [(served.address, served.address + 8 * PAGE)]) == []
    cannot_be_read(served, kind)
    libc.ptrace(PTRACE_CONT, child, None, None)
    assert os.waitpid(child, 0) == (child, signal.SIGKILL)
