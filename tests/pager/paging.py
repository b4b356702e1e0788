"""Two processes and the page path between them, for the paging tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from live_migration.kernel import pidfd
from live_migration.pager.pager import PagedRange, Pager, PagerState, RangeKind
from live_migration.source_server.pages.client import PageClient
from live_migration.source_server.pages.store import PageStore
from live_migration.wire.stream import Stream

PAGE = 4096
BASE = 0x200000000000
ELSEWHERE = 0x210000000000
SESSION = bytes(range(16))


class Program:
    """A running paged_program; closing it kills it."""

    def __init__(self, path: Path, role: str, pages: int, kind: str = "private") -> None:
        self.process = subprocess.Popen(
            [path, role, str(pages), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.pages = pages
        self.greeting = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"the program ended with {self.process.wait(60)}"
        return line

    def send(self, verb: str, *arguments: int) -> None:
        """Give a command without waiting for it."""
        assert self.process.stdin is not None
        print(verb, *arguments, file=self.process.stdin, flush=True)

    def answer(self) -> int:
        """The answer to the oldest command that has none."""
        return int(self._line())

    def run(self, verb: str, *arguments: int) -> int:
        """Give a command, return its answer."""
        self.send(verb, *arguments)
        return self.answer()

    def close(self) -> None:
        """Kill it and close its pipes."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@dataclass
class Move:
    """A source, a destination whose memory is missing, and the page path between them."""

    source: Program
    destination: Program
    store: PageStore
    client: PageClient
    pager: Pager
    links: list[socket.socket]

    def complete(self, timeout: float = 60) -> None:
        """Fetch the rest, and let go."""
        if self.pager.state is PagerState.STAGED:
            self.pager.prefetch_start()
        deadline = time.monotonic() + timeout
        while (state := self.pager.state) is not PagerState.COMPLETE:
            assert state is PagerState.RUNNING, self.pager.cause
            assert time.monotonic() < deadline, self.pager.counters
            self.pager.wait(state, 1)
        self.pager.finish()


def close_all(links: list[socket.socket]) -> None:
    """Close the links, those too that a test has added."""
    for link in links:
        link.close()


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


def take_userfaultfd(program: Program) -> int:
    """A duplicate of the descriptor the program made; the program's own is closed."""
    number = int(program.greeting)
    with ExitStack() as stack:
        handle = pidfd.open_pidfd(program.pid)
        stack.callback(os.close, handle)
        taken = pidfd.fetch_descriptor(handle, number)
    assert program.run("close", number) == 0
    return taken


def connect(client: PageClient, pager: Pager, attempt: int = 1) -> list[socket.socket]:
    """Join both by two connections; the tests' own ends of which are returned."""
    fault, bulk = connected_pair(), connected_pair()
    client.connect(Stream(fault[0]), Stream(bulk[0]), SESSION, attempt)
    pager.connect(Stream(fault[1]), Stream(bulk[1]), SESSION, attempt)
    return [*fault, *bulk]


@contextmanager
def moving(path: Path, pages: int, kind: str = "private", role: str = "source") -> Iterator[Move]:
    """A source of so many pages and a destination that is missing them all."""
    with ExitStack() as stack:
        source = Program(path, role, pages, kind)
        stack.callback(source.close)
        destination = Program(path, "destination", pages, kind)
        stack.callback(destination.close)
        os.kill(source.pid, signal.SIGSTOP)
        store = stack.enter_context(PageStore())
        store.add_process(0, source.pid)
        store.open(True)
        client = stack.enter_context(PageClient(store))
        pager = Pager()
        # The program goes first, so that closing the pager finds nobody who needs a keeper.
        stack.callback(pager.close)
        stack.callback(destination.close)
        pager.add_space(0, take_userfaultfd(destination), destination.pid)
        links = connect(client, pager)
        stack.callback(close_all, links)
        range_kind = RangeKind.SHARED if kind == "shared" else RangeKind.ANONYMOUS
        pager.set_ranges([PagedRange(BASE, BASE + pages * PAGE, range_kind)])
        pager.start()
        yield Move(source, destination, store, client, pager, links)


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def own_userfaultfds() -> list[int]:
    """This process's descriptors that are userfaultfds."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[userfaultfd]":
                found.append(int(name))
        except FileNotFoundError:
            continue
    return found
