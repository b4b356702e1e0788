"""A pager that is killed at any moment, and its keeper too: another one goes on from the ledger, with right memory."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from live_migration.pager.keeper import Keeper, TakenOver, find_keepers, recover
from live_migration.pager.pager import Pager, PagerState
from live_migration.source_server.pages.client import ClientState, PageClient
from live_migration.source_server.pages.store import PageStore
from live_migration.wire.stream import Stream
from tests.pager.paging import SESSION, Program, close_all, connect, connected_pair, eventually
from tests.pager.test_paging_losses import children, is_alive, program, start_pager

__all__ = ["program"]
PAGES = 20000


@dataclass
class Lost:
    """A pager in a process of its own, which can be killed, and what is needed to go on."""

    destination: Program
    client: PageClient
    worker: int
    keeper: int
    undo: ExitStack
    attempts: int = 1
    links: list[object] = field(default_factory=list)

    def kill(self) -> Keeper:
        """Kill the worker; its keeper."""
        os.kill(self.worker, signal.SIGKILL)
        assert self.client.wait(ClientState.CONNECTED, 60) is ClientState.LOST
        found: list[Keeper] = []

        def is_found() -> bool:
            found[:] = [one for one in find_keepers() if one.moved == self.destination.pid and not one.lives]
            return bool(found)

        eventually(is_found)
        (keeper,) = found
        return keeper

    def go_on(self, keeper: Keeper) -> Pager:
        """Another pager, connected."""
        pager = Pager()
        self.undo.callback(pager.close)
        self.undo.callback(self.destination.close)
        recover(pager, keeper)
        self.attempts += 1
        self.undo.callback(close_all, connect(self.client, pager, self.attempts))
        return pager


@contextmanager
def losing(path: Path, mode: int) -> Iterator[Lost]:
    """A source, a destination whose memory is missing, and a pager to be killed; mode 1: it fetches slowly."""
    with ExitStack() as undo:
        source = Program(path, "source", PAGES)
        undo.callback(source.close)
        destination = Program(path, "destination", PAGES)
        undo.callback(destination.close)
        os.kill(source.pid, signal.SIGSTOP)
        store = undo.enter_context(PageStore())
        store.add_process(0, source.pid)
        store.open(True)
        client = undo.enter_context(PageClient(store))
        fault, bulk = connected_pair(), connected_pair()
        client.connect(Stream(fault[0]), Stream(bulk[0]), SESSION)
        process, keeper = start_pager(destination, PAGES, fault[1], bulk[1], mode)
        assert process.stdout is not None
        undo.callback(process.stdout.close)
        undo.callback(process.wait)
        undo.callback(process.kill)
        close_all([*fault, *bulk])
        yield Lost(destination, client, process.pid, keeper, undo)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in children(destination.pid):
                os.kill(int(child), signal.SIGKILL)


def finish(pager: Pager) -> None:
    """Fetch the rest, and let go."""
    deadline = time.monotonic() + 60
    while (state := pager.state) is not PagerState.COMPLETE:
        assert state is PagerState.RUNNING, pager.cause
        assert time.monotonic() < deadline, pager.counters
        pager.wait(state, 1)
    pager.finish()


@pytest.mark.parametrize("verb", ["check", "fork", "threads", "fork-twice"])
@pytest.mark.parametrize("mode", [0, 1])
def test_another_pager_goes_on(program: Path, verb: str, mode: int) -> None:
    """Killed while faults are under way, a child is born, or pages are placed by both threads."""
    with losing(program, mode) as lost:
        lost.destination.send(verb, *((PAGES, 4, 100000) if verb == "threads" else (0, PAGES)))
        eventually(lambda: lost.client.counters["fault_pages"] > 20)
        keeper = lost.kill()
        assert keeper.pid == lost.keeper
        pager = lost.go_on(keeper)
        assert lost.destination.answer() == 0
        finish(pager)
        assert lost.destination.run("check", 0, PAGES) == 0
        eventually(lambda: not is_alive(keeper.pid))


def test_nothing_is_lost_however_often_they_are_killed(program: Path) -> None:
    """First the keeper, which is replaced, then the worker; again and again."""
    chance = random.Random(7)
    with losing(program, 1) as lost:
        lost.destination.send("threads", PAGES, 4, 3000)
        time.sleep(chance.random() / 4)
        os.kill(lost.keeper, signal.SIGKILL)
        eventually(lambda: any(one.pid != lost.keeper and one.moved == lost.destination.pid for one in find_keepers()))
        keeper = lost.kill()
        assert keeper.pid != lost.keeper
        pager = lost.go_on(keeper)
        assert lost.destination.answer() == 0
        finish(pager)
        assert lost.destination.run("check", 0, PAGES) == 0


def test_what_changes_while_nobody_is_there_is_followed(program: Path) -> None:
    """The keeper reads what the process does to its mappings; nothing waits but for a page."""
    with losing(program, 0) as lost:
        assert lost.destination.run("check", 0, 10) == 0
        keeper = lost.kill()
        assert lost.destination.run("dontneed", 100, 100) == 0
        assert lost.destination.run("unmap", 300, 100) == 0
        assert lost.destination.run("move", 500, 100) == 0
        lost.destination.send("check", 1000, 10)
        pager = lost.go_on(keeper)
        assert lost.destination.answer() == 0
        assert lost.destination.run("check-zero", 100, 100) == 0
        assert lost.destination.run("check-moved", 500, 100) == 0
        finish(pager)
        assert lost.destination.run("check", 0, 100) == 0
        assert lost.destination.run("check", 600, PAGES - 600) == 0


def test_only_one_goes_on(program: Path) -> None:
    with losing(program, 0) as lost:
        keeper = lost.kill()
        lost.go_on(keeper)
        with pytest.raises((TakenOver, FileNotFoundError)), Pager() as second:
            recover(second, keeper)


def test_one_that_fails_has_changed_nothing(program: Path) -> None:
    """It has taken everything, and ends before it counts."""
    with losing(program, 0) as lost:
        keeper = lost.kill()
        child = os.fork()
        if child == 0:
            pager = Pager()
            pager.start = lambda: os._exit(0)  # type: ignore[method-assign]
            recover(pager, keeper)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        pager = lost.go_on(keeper)
        finish(pager)
        assert lost.destination.run("check", 0, PAGES) == 0


def test_a_source_that_is_gone_for_good_is_done_without(program: Path) -> None:
    """What has come is right, and stays; whoever touches another page gets SIGBUS, and no zeros."""
    with losing(program, 0) as lost:
        assert lost.destination.run("check", 0, 10) == 0
        pager = Pager()
        lost.undo.callback(pager.close)
        lost.undo.callback(lost.destination.close)
        recover(pager, lost.kill())
        pager.poison()
        assert pager.state is PagerState.COMPLETE
        pager.finish()
        assert lost.destination.run("check", 0, 10) == 0
        lost.destination.send("check", PAGES - 1, 1)
        assert lost.destination.process.wait(60) == -signal.SIGBUS
