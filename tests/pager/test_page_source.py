"""The pager and nothing but the pager: its pages come from memory, without a socket or a source process."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration.pager.page_source import memory_source
from live_migration.pager.pager import PagedRange, Pager, PagerState, RangeKind
from live_migration.wire.stream import Stream
from tests.pager.paging import BASE, PAGE, SESSION, Program, close_all, connected_pair, eventually, take_userfaultfd

WORD = (1 << 64) - 1


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


def word_of(page: int, word: int) -> int:
    """What paged_program has in a word of a page."""
    if page % 11 == 5 or page % 7 == 3:
        return 0
    value = (page * 0x9E3779B97F4A7C15 + (word if word % 2 else 0)) & WORD
    if word % 2:
        value ^= value >> 29
        value = value * 0xBF58476D1CE4E5B9 & WORD
        value ^= value >> 32
    return value


def content_of(pages: int) -> bytes:
    """The memory of paged_program."""
    return b"".join(word_of(page, word).to_bytes(8, "little") for page in range(pages) for word in range(PAGE // 8))


@dataclass
class Paged:
    """A process whose memory is missing, and the pager that has all of it."""

    destination: Program
    pager: Pager
    content: bytes

    def connect(self) -> None:
        """Let the pages come from memory."""
        self.pager.connect_sources(memory_source(self.content, BASE), memory_source(self.content, BASE))

    def complete(self) -> None:
        """Fetch the rest, and let go."""
        if self.pager.state is PagerState.STAGED:
            self.pager.prefetch_start()
        assert self.pager.wait(PagerState.RUNNING, 30) is PagerState.COMPLETE, self.pager.cause
        self.pager.finish()


@contextmanager
def paged(path: Path, pages: int, kind: str = "private", content: bytes | None = None) -> Iterator[Paged]:
    """A destination of so many pages, all of which are missing; the pager is not connected yet."""
    with ExitStack() as stack:
        destination = Program(path, "destination", pages, kind)
        stack.callback(destination.close)
        pager = Pager()
        stack.callback(pager.close)
        stack.callback(destination.close)
        pager.add_space(0, take_userfaultfd(destination), destination.pid)
        range_kind = RangeKind.SHARED if kind == "shared" else RangeKind.ANONYMOUS
        pager.set_ranges([PagedRange(BASE, BASE + pages * PAGE, range_kind)])
        yield Paged(destination, pager, content_of(pages) if content is None else content)


def own_sockets() -> list[str]:
    """This process's sockets."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(link) for link in links if os.path.exists(link) and "socket:" in os.readlink(link))


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_faults_are_answered_from_memory(program: Path, kind: str) -> None:
    sockets = own_sockets()
    with paged(program, 300, kind) as one:
        one.connect()
        one.pager.start()
        assert one.destination.run("check", 0, 300) == 0
        # The thread that waits for the last page runs before that is counted.
        eventually(lambda: one.pager.counters["wanted_pages"] == 0)
        counters = one.pager.counters
        assert counters["prefetched_pages"] == 0
        # A page may be touched before it has come as a neighbour of another.
        assert 0 < counters["remote_faults"] <= 300
        assert own_sockets() == sockets
        one.complete()


def test_faults_of_threads_beside_bulk(program: Path) -> None:
    with paged(program, 2000) as one:
        one.connect()
        one.pager.start()
        one.destination.send("threads", 2000, 4, 2000)
        one.complete()
        assert one.destination.answer() == 0
        assert one.destination.run("check", 0, 2000) == 0


def test_children_and_what_is_moved_get_their_pages(program: Path) -> None:
    with paged(program, 900) as one:
        one.connect()
        one.pager.start()
        assert one.destination.run("fork-twice", 0, 300) == 0
        assert one.destination.run("move", 300, 300, 0) == 0
        assert one.destination.run("dontneed", 600, 100) == 0
        assert one.destination.run("check-moved", 300, 300, 0) == 0
        assert one.destination.run("check-zero", 600, 100) == 0
        assert one.destination.run("check", 700, 200) == 0
        one.complete()


def test_what_the_source_has_not_is_zero(program: Path) -> None:
    with paged(program, 1000, content=content_of(200)) as one:
        one.connect()
        one.pager.start()
        assert one.destination.run("check-zero", 500, 100) == 0
        one.complete()
        assert one.destination.run("check", 0, 200) == 0
        assert one.destination.run("check-zero", 200, 800) == 0
        counters = one.pager.counters
        assert counters["absent_pages"] + counters["local_faults"] >= 700


def test_faults_wait_until_there_is_a_source(program: Path) -> None:
    with paged(program, 100) as one:
        one.pager.start()
        one.destination.send("check", 0, 100)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            one.pager.prefetch_start()
        one.connect()
        assert one.destination.answer() == 0
        one.complete()


def test_a_pager_goes_on_with_a_source_of_another_kind(program: Path) -> None:
    with paged(program, 1000) as one:
        fault, bulk = connected_pair(), connected_pair()
        try:
            one.pager.connect(Stream(fault[0]), Stream(bulk[0]), SESSION)
            one.pager.start()
            one.pager.prefetch_start()
            # Nobody serves there; both kinds of requests have been asked for in vain.
            one.destination.send("threads", 1000, 4, 1000)
            assert fault[1].recv(32, socket.MSG_WAITALL)
            assert bulk[1].recv(32, socket.MSG_WAITALL)
            bulk[1].shutdown(socket.SHUT_RDWR)
            assert one.pager.wait(PagerState.RUNNING, 60) is PagerState.STALLED
            one.connect()
            one.complete()
            assert one.destination.answer() == 0
            assert one.destination.run("check", 0, 1000) == 0
        finally:
            close_all([*fault, *bulk])


def test_a_source_that_nobody_takes_is_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory_source(bytes(PAGE), BASE).close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        memory_source(bytes(PAGE + 1), BASE)
