"""What is lost is a pause: connections, the pager itself, and peers that break the rules."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.pager.pager import PagedRange, Pager, PagerState
from live_migration.source_server.pages.client import ClientState, PageClient, PushRun
from live_migration.source_server.pages.store import PageStore
from live_migration.wire.stream import Stream
from tests.pager.paging import (
    BASE,
    PAGE,
    SESSION,
    Program,
    connect,
    connected_pair,
    eventually,
    moving,
    own_userfaultfds,
    take_userfaultfd,
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


@pytest.mark.parametrize("which", [0, 2])
def test_a_lost_connection_is_a_pause(program: Path, which: int) -> None:
    with moving(program, 30000) as move:
        move.client.limit(20_000_000)
        move.pager.prefetch_start()
        move.destination.send("threads", 30000, 4, 3000)
        time.sleep(0.2)
        move.links[which].shutdown(socket.SHUT_RDWR)
        assert move.pager.wait(PagerState.RUNNING, 60) is PagerState.STALLED
        # Bytes that meet a closed end on their way make the kernel end the connection with RST instead of FIN.
        cause = move.pager.cause.partition("connection is lost: ")[2]
        assert cause in ("closed by the source", os.strerror(errno.ECONNRESET))
        assert move.client.wait(ClientState.CONNECTED, 60) is ClientState.LOST
        time.sleep(0.1)
        assert move.destination.process.poll() is None
        move.client.limit(0)
        more = connect(move.client, move.pager, 2)
        move.complete()
        assert move.destination.answer() == 0
        assert move.destination.run("check", 0, 30000) == 0
        for link in more:
            link.close()


def test_nothing_that_is_there_comes_again(program: Path) -> None:
    """Without faults, which may overtake bulk, no page is late, however often the connections are made anew."""
    with moving(program, 20000) as move:
        move.client.limit(40_000_000)
        move.pager.prefetch_start()
        for attempt in range(2, 8):
            enough = 2000 * (attempt - 1)
            eventually(lambda enough=enough: move.pager.counters["prefetched_pages"] > enough)  # type: ignore[misc]
            if attempt % 2:
                move.links[-1].shutdown(socket.SHUT_RDWR)
            move.links += connect(move.client, move.pager, attempt)
        move.complete()
        counters = move.pager.counters
        assert counters["late_pages"] == counters["rewritten_pages"] == counters["remote_faults"] == 0
        # Sent again is only what was on its way.
        assert move.client.counters["bulk_pages"] <= 20000 + 6 * 16 * 256
        assert move.destination.run("check", 0, 20000) == 0


def test_faults_wait_for_a_connection(program: Path) -> None:
    with moving(program, 100) as move:
        move.links[0].shutdown(socket.SHUT_RDWR)
        assert move.pager.wait(PagerState.STAGED, 60) is PagerState.STALLED
        move.destination.send("check", 0, 100)
        eventually(lambda: move.pager.counters["faults"] > 0)
        more = connect(move.client, move.pager, 2)
        assert move.destination.answer() == 0
        move.complete()
        for link in more:
            link.close()


PAGER_PROCESS = """
import socket, sys, time
from live_migration.pager.pager import PagedRange, Pager
from live_migration.wire.stream import Stream
descriptor, pid, fault, bulk, base, pages, mode = map(int, sys.argv[1:])
pager = Pager()
pager.add_space(0, descriptor, pid)
pager.connect(Stream(socket.socket(fileno=fault)), Stream(socket.socket(fileno=bulk)), bytes(range(16)))
pager.set_ranges([PagedRange(base, base + pages * 4096)])
pager.start()
print(pager.keeper, flush=True)
if mode:
    pager.limit(2_000_000)
    pager.prefetch_start()
time.sleep(1000)
"""


def start_pager(
    destination: Program, pages: int, fault: socket.socket, bulk: socket.socket, mode: int
) -> tuple[subprocess.Popen[str], int]:
    """A pager in a process of its own, and its keeper."""
    descriptor = take_userfaultfd(destination)
    arguments = [descriptor, destination.pid, fault.fileno(), bulk.fileno(), BASE, pages, mode]
    process = subprocess.Popen(
        [sys.executable, "-c", PAGER_PROCESS, *map(str, arguments)],
        pass_fds=arguments[0:1] + arguments[2:4],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(descriptor)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that is only waiting to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("verb", ["check", "fork", "threads"])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_killed_pager_never_means_zeros(program: Path, verb: str, mode: int) -> None:
    pages = 20000
    source = Program(program, "source", pages)
    destination = Program(program, "destination", pages)
    os.kill(source.pid, signal.SIGSTOP)
    fault, bulk = connected_pair(), connected_pair()
    with PageStore() as store, PageClient(store) as client:
        store.add_process(0, source.pid)
        store.open(True)
        client.connect(Stream(fault[0]), Stream(bulk[0]), SESSION)
        process, keeper = start_pager(destination, pages, fault[1], bulk[1], mode)
        try:
            for link in (*fault, *bulk):
                link.close()
            destination.send(verb, *((pages, 4, 100000) if verb == "threads" else (0, pages)))
            eventually(lambda: client.counters["fault_pages"] > 20)
            process.kill()
            process.wait()
            # The keeper lets go of the connections, so that the source learns of it, and of nothing else.
            assert client.wait(ClientState.CONNECTED, 60) is ClientState.LOST
            time.sleep(0.3)
            assert is_alive(keeper)
            assert destination.process.poll() is None
            descriptors = [os.readlink(f"/proc/{keeper}/fd/{fd}") for fd in os.listdir(f"/proc/{keeper}/fd")]
            assert set(descriptors) == {"anon_inode:[userfaultfd]", "/memfd:lm-ledger (deleted)"}
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            # A child of the destination waits too.
            for child in children(destination.pid):
                os.kill(int(child), signal.SIGKILL)
            destination.close()
            source.close()
        eventually(lambda: not is_alive(keeper))


def children(pid: int) -> list[str]:
    """The process ids of a process's children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_closing_the_pager_of_a_living_process_leaves_the_keeper(program: Path) -> None:
    with moving(program, 100) as move:
        keeper = move.pager.keeper
        move.destination.send("check", 0, 100)
        move.links[0].shutdown(socket.SHUT_RDWR)
        move.pager.close()
        time.sleep(0.1)
        assert is_alive(keeper)
        os.kill(keeper, signal.SIGTERM)
        time.sleep(0.1)
        assert is_alive(keeper)
        # As this process is still there the keeper would watch it for ever.
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0x40000000)
        for descriptor in own_userfaultfds():
            os.close(descriptor)


def test_a_process_killed_before_its_pager_leaves_nothing(program: Path) -> None:
    with moving(program, 100) as move:
        keeper = move.pager.keeper
        assert move.destination.run("check", 0, 10) == 0
        move.destination.close()
        move.pager.close()
        assert not is_alive(keeper)


FRAME = struct.Struct("<BBBBIQIIII")


def frame(kind: int, address: int, pages: int, length: int, identifier: int, flags: int = 1) -> bytes:
    """A sealed frame's header."""
    made = ffi.new("struct lm_frame *")
    made.kind, made.flags, made.address, made.pages = kind, flags, address, pages
    made.length, made.id = length, identifier
    lib.lm_frame_seal(made)
    return bytes(ffi.buffer(made))


def hear(link: socket.socket) -> tuple[int, ...]:
    """The next request that is no ping, as a tuple."""
    while True:
        data = b""
        while len(data) < 32:
            data += link.recv(32 - len(data))
        request = FRAME.unpack(data)
        if request[0] != lib.LM_REQUEST_PING:
            return request


def asks(link: socket.socket, seconds: float) -> bool:
    """Whether a request that is no ping comes within that time."""
    end = time.monotonic() + seconds
    while select.select([link], [], [], max(0.0, end - time.monotonic()))[0]:
        data = link.recv(32, socket.MSG_PEEK | socket.MSG_WAITALL)
        if data[0] != lib.LM_REQUEST_PING:
            return True
        link.recv(32)
    return False


RAW, ZSTD, ZERO, ABSENT, END, FAILED = range(1, 7)


def broken_answers(address: int, identifier: int) -> list[bytes]:
    """Answers to a run that break the rules, each in its own way."""
    page = b"x" * PAGE
    good = frame(RAW, address, 1, PAGE, identifier)
    return [
        bytes(32),
        b"GET / HTTP/1.0\r\n\r\n" * 10,
        frame(0, address, 1, PAGE, identifier) + page,
        frame(99, address, 1, 0, identifier),
        frame(RAW, address, 1, PAGE - 1, identifier) + page,
        frame(RAW, address, 65, 65 * PAGE, identifier),
        frame(RAW, address, 0, 0, identifier),
        frame(RAW, address + 1, 1, PAGE, identifier) + page,
        frame(RAW, address + PAGE, 1, PAGE, identifier) + page,
        frame(RAW, 0x7F0000000000, 1, PAGE, identifier) + page,
        frame(RAW, (1 << 64) - PAGE, 1, PAGE, identifier) + page,
        frame(RAW, address, 1, PAGE, identifier + 77) + page,
        frame(RAW, address, 1, PAGE, identifier, flags=0x82) + page,
        frame(ZSTD, address, 1, 100, identifier) + b"z" * 100,
        frame(ZSTD, address, 1, PAGE + 1, identifier) + page,
        frame(ZERO, address, 1 << 31, 0, identifier),
        frame(ABSENT, address, (1 << 32) - 1, 0, identifier),
        frame(END, 0, 0, 0, identifier),
        good[:28] + bytes([good[28] ^ 1]) + good[29:] + page,
    ]


@pytest.mark.parametrize("number", range(len(broken_answers(0, 1))))
def test_a_source_that_breaks_the_rules_is_dropped(program: Path, number: int) -> None:
    with moving(program, 100) as move:
        fault, bulk = connected_pair(), connected_pair()
        move.pager.connect(Stream(fault[1]), Stream(bulk[1]), SESSION, 2)
        move.pager.prefetch_start()
        request = hear(bulk[0])
        assert request[0] == lib.LM_REQUEST_RUN
        bulk[0].sendall(broken_answers(request[5], request[8])[number])
        if number in (0, 1, 2):
            bulk[0].sendall(bytes(64))
        assert move.pager.wait(PagerState.RUNNING, 60) is PagerState.STALLED, number
        assert move.pager.cause in (
            "the bulk connection is lost: the source broke the rules of the page stream",
            "the bulk connection is lost: the source speaks another version of the page stream",
        )
        assert move.pager.counters["total_pages"] == 0
        # A better source goes on.
        more = connect(move.client, move.pager, 3)
        move.complete()
        assert move.destination.run("check", 0, 100) == 0
        for link in (*fault, *bulk, *more):
            link.close()


def test_a_neighbour_that_somebody_waits_for_and_that_does_not_come_is_asked_for(program: Path) -> None:
    """While its answer is under way nobody asks for it again."""
    with moving(program, 100) as move, Path(f"/proc/{move.source.pid}/mem").open("rb") as memory:
        fault, bulk = connected_pair(), connected_pair()
        move.pager.connect(Stream(fault[1]), Stream(bulk[1]), SESSION, 2)

        def answer(address: int, identifier: int, flags: int) -> None:
            memory.seek(address)
            fault[0].sendall(frame(RAW, address, 1, PAGE, identifier, flags) + memory.read(PAGE))

        move.destination.send("check", 0, 100)
        first = hear(fault[0])
        answer(first[5], first[8], 1)
        second = hear(fault[0])
        assert second[5:7] == (first[5] + PAGE, 2)
        answer(second[5], second[8], 0)
        eventually(lambda: move.pager.counters["remote_faults"] == 3)
        assert not asks(fault[0], 0.2)
        fault[0].sendall(frame(END, 0, 0, 0, second[8]))
        assert hear(fault[0])[5] == second[5] + PAGE
        links = connect(move.client, move.pager, 3)
        assert move.destination.answer() == 0
        move.complete()
        for link in (*fault, *bulk, *links):
            link.close()


def test_every_flipped_byte_of_a_header_is_noticed() -> None:
    header = frame(RAW, BASE, 3, 3 * PAGE, 7)
    made = ffi.new("struct lm_frame *")
    ffi.buffer(made)[:] = header
    assert lib.lm_frame_check(made) == 0
    for place in range(32):
        for bit in range(8):
            flipped = bytearray(header)
            flipped[place] ^= 1 << bit
            ffi.buffer(made)[:] = bytes(flipped)
            assert lib.lm_frame_check(made) < 0
    for place in range(32):
        for value in range(256):
            changed = bytearray(header)
            changed[place] = value
            ffi.buffer(made)[:] = bytes(changed)
            assert (lib.lm_frame_check(made) == 0) == (bytes(changed) == header)


def request(kind: int, address: int, pages: int, identifier: int, space: int = 0) -> bytes:
    """A sealed request."""
    made = ffi.new("struct lm_request *")
    made.kind, made.space, made.address, made.pages, made.id = kind, space, address, pages, identifier
    lib.lm_request_seal(made)
    return bytes(ffi.buffer(made))


@pytest.mark.parametrize(
    ("which", "data"),
    [
        (1, bytes(32)),
        (1, request(lib.LM_REQUEST_RUN, BASE, 1, 1)),  # not on the fault connection
        (1, request(lib.LM_REQUEST_FAULT, BASE, 65, 1)),
        (1, request(lib.LM_REQUEST_FAULT, BASE + 1, 1, 1)),
        (1, request(lib.LM_REQUEST_FAULT, BASE, 1, 0)),
        (1, request(lib.LM_REQUEST_FAULT, BASE, 1, 1, space=5)),
        (3, request(lib.LM_REQUEST_FAULT, BASE, 1, 1)),
        (3, request(lib.LM_REQUEST_RUN, BASE, 257, 1)),
        (3, request(lib.LM_REQUEST_RUN, 1 << 56, 1, 1)),
        (3, request(lib.LM_REQUEST_MAP, BASE, 0, 1)),
        pytest.param(3, os.urandom(32), id="noise"),
    ],
)
def test_a_destination_that_breaks_the_rules_is_dropped(program: Path, which: int, data: bytes) -> None:
    source = Program(program, "source", 10)
    pairs = (*connected_pair(), *connected_pair())
    try:
        with PageStore() as store, PageClient(store) as client:
            store.add_process(0, source.pid)
            store.open(True)
            client.connect(Stream(pairs[0]), Stream(pairs[2]), SESSION)
            pairs[which].sendall(data)
            assert client.wait(ClientState.CONNECTED, 60) is ClientState.DROPPED
            assert client.cause.startswith("a request on the " + ("fault" if which == 1 else "bulk"))
    finally:
        source.close()
        for link in pairs:
            link.close()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("which", "kind"), [(1, lib.LM_REQUEST_FAULT), (3, lib.LM_REQUEST_RUN), (3, lib.LM_REQUEST_MAP)]
)
def test_a_process_that_runs_is_not_told_of(program: Path, which: int, kind: int, again: bool) -> None:
    """Before the freeze, and after one that came to nothing, what is pushed is all that there is."""
    source = Program(program, "source", 10)
    pairs = (*connected_pair(), *connected_pair())
    more = (*connected_pair(), *connected_pair())
    try:
        with PageStore() as store, PageClient(store) as client:
            store.add_process(0, source.pid)
            if again:
                store.open(True)
                store.open(False)
            client.connect(Stream(pairs[0]), Stream(pairs[2]), SESSION)
            client.push(7, [PushRun(0, BASE, BASE + PAGE)])
            pushed = b""
            while len(pushed) < 32 or pushed[-32:] != frame(END, 0, 0, 0, 7):
                pushed += pairs[3].recv(1 << 16)
            pairs[which].sendall(request(kind, BASE, 1, 1))
            assert pairs[which].recv(1 << 16) == b""
            assert client.wait(ClientState.CONNECTED, 60) is ClientState.DROPPED
            name = "fault" if which == 1 else "bulk"
            assert client.cause == f"a request on the {name} connection comes before the freeze"
            assert client.counters["requests"] == 0
            # When it holds still.
            store.open(True)
            client.connect(Stream(more[0]), Stream(more[2]), SESSION, 2)
            more[which].sendall(request(kind, BASE, 1, 1))
            assert more[which].recv(1 << 16) != b""
    finally:
        source.close()
        for link in (*pairs, *more):
            link.close()


def test_random_bytes_never_crash_the_pager(program: Path) -> None:
    chance = random.Random(1)
    with moving(program, 64) as move:
        for attempt in range(60):
            fault, bulk = connected_pair(), connected_pair()
            move.pager.connect(Stream(fault[1]), Stream(bulk[1]), SESSION, attempt + 2)
            if attempt == 0:
                move.pager.prefetch_start()
            asked = hear(bulk[0])
            answer = bytearray(frame(RAW, asked[5], 2, 2 * PAGE, asked[8], flags=0) + os.urandom(2 * PAGE))
            answer[chance.randrange(32)] ^= 1 << chance.randrange(8)
            link = chance.choice([fault[0], bulk[0]])
            link.sendall(answer[: chance.randrange(40, len(answer))])
            link.shutdown(socket.SHUT_WR)
            assert move.pager.wait(PagerState.RUNNING, 60) is PagerState.STALLED
            for one in (*fault, *bulk):
                one.close()
        assert move.pager.counters["total_pages"] == 0


def test_a_source_that_lost_the_memory_says_so(program: Path) -> None:
    with moving(program, 1000) as move:
        assert move.destination.run("check", 0, 10) == 0
        move.source.close()
        move.destination.send("check", 500, 1)
        assert move.pager.wait(PagerState.STAGED, 60) is PagerState.FAILED
        assert move.pager.cause == "the source cannot read the memory any more: No such process"
        assert move.client.wait(ClientState.CONNECTED, 60) is ClientState.FAILED
        time.sleep(0.1)
        assert move.destination.process.poll() is None


def test_calls_out_of_order_are_errors() -> None:
    with Pager() as pager, PageStore() as store, PageClient(store) as client:
        pairs = (*connected_pair(), *connected_pair())
        assert pager.state is PagerState.STAGED
        assert client.state is ClientState.IDLE
        with pytest.raises(OSError, match="not connected"):
            pager.prefetch_start()
        with pytest.raises(OSError, match="No such process"):
            store.add_process(0, 0x3FFFFFFF)
        pager.connect(Stream(pairs[0]), Stream(pairs[2]), SESSION)
        with pytest.raises(ValueError, match="16 bytes"):
            pager.connect(Stream(pairs[0]), Stream(pairs[2]), b"short")
        for link in pairs:
            link.close()
    assert PagedRange(0, PAGE).source is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_connection_on_which_nothing_comes_is_lost(program: Path, which: int) -> None:
    """A relay that was cut keeps both connections alive. Whoever waits finds out, on each of them and at both ends."""
    with moving(program, 3000) as move:
        move.client.limit(100_000)
        fault, bulk = connected_pair(), connected_pair()
        cut = socket.socketpair()
        here, there = [Stream(fault[0]), Stream(bulk[0])], [Stream(fault[1]), Stream(bulk[1])]
        there[which] = Stream(cut[0])
        move.client.connect(here[0], here[1], SESSION, 2)
        move.pager.connect(there[0], there[1], SESSION, 2)
        move.pager.prefetch_start()
        if which == 0:
            move.destination.send("check", 0, 3000)
        assert move.pager.wait(PagerState.RUNNING, 60) is PagerState.STALLED
        assert "has said nothing for some seconds" in move.pager.cause
        assert move.client.wait(ClientState.CONNECTED, 60) is ClientState.LOST
        move.client.limit(0)
        links = connect(move.client, move.pager, 3)
        move.complete()
        assert (move.destination.answer() if which == 0 else move.destination.run("check", 0, 3000)) == 0
        for link in (*fault, *bulk, *cut, *links):
            link.close()
