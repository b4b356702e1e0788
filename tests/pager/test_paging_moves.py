"""Memory that arrives after the process: every page right, whatever the process does meanwhile."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from tests.pager.paging import Move, eventually, moving, own_userfaultfds


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_faults_alone_bring_every_page(program: Path, kind: str) -> None:
    with moving(program, 300, kind) as move:
        assert move.destination.run("check", 0, 300) == 0
        # The thread that waits for the last page runs before that is counted.
        eventually(lambda: move.pager.counters["wanted_pages"] == 0)
        # How many faults come before a neighbour that is under way is a matter of time; what is asked for is not.
        assert move.pager.counters["remote_faults"] <= 300
        assert move.client.counters["requests"] < 40
        move.complete()


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_bulk_alone_brings_every_page(program: Path, kind: str) -> None:
    with moving(program, 20000, kind) as move:
        move.complete()
        assert move.destination.run("check", 0, 20000) == 0
        assert move.pager.counters["faults"] == 0


def test_random_faults_of_threads_beside_bulk(program: Path) -> None:
    with moving(program, 40000) as move:
        move.destination.send("threads", 40000, 8, 2000)
        move.complete()
        assert move.destination.answer() == 0
        assert move.destination.run("check", 0, 40000) == 0


def test_the_kernel_may_fault(program: Path) -> None:
    with moving(program, 400) as move:
        assert move.destination.run("pipe", 0, 200) == 0
        assert move.destination.run("into", 200, 200) == 0
        move.complete()


@pytest.mark.parametrize("fault_pages", [1, 2, 16, 64])
def test_neighbours_come_with_faults_in_a_row(program: Path, fault_pages: int) -> None:
    with moving(program, 4000) as move:
        move.pager.fault_pages(fault_pages)
        assert move.destination.run("check", 0, 2000) == 0
        # The answer to a window may be overtaken by the fault on its second page.
        assert 2000 // fault_pages <= move.pager.counters["remote_faults"] <= 2000
        move.destination.send("threads", 4000, 4, 2000)
        move.complete()
        assert move.destination.answer() == 0
        assert move.destination.run("check", 0, 4000) == 0


@pytest.mark.parametrize("verb", ["fork", "fork-twice"])
def test_children_get_their_missing_pages(program: Path, verb: str) -> None:
    with moving(program, 3000) as move:
        assert move.destination.run("check", 0, 500) == 0
        assert move.destination.run(verb, 0, 1500) == 0
        move.destination.send(verb, 1500, 1500)
        move.complete()
        assert move.destination.answer() == 0
        assert move.pager.counters["forks"] == (4 if verb == "fork-twice" else 2)


def test_shared_memory_stays_shared_with_children(program: Path) -> None:
    with moving(program, 2000, "shared") as move:
        move.destination.send("fork", 0, 0)
        assert move.destination.answer() == 0
        move.destination.send("threads", 2000, 2, 3000)
        move.complete()
        assert move.destination.answer() == 0
        assert move.destination.run("check", 0, 2000) == 0


def test_discarded_pages_are_zero(program: Path) -> None:
    with moving(program, 1000) as move:
        move.pager.fault_pages(1)
        assert move.destination.run("check", 0, 100) == 0
        assert move.destination.run("dontneed", 50, 100) == 0
        assert move.destination.run("check-zero", 50, 100) == 0
        move.complete()
        assert move.destination.run("check-zero", 50, 100) == 0
        assert move.destination.run("check", 0, 50) == 0
        assert move.destination.run("check", 150, 850) == 0
        assert move.pager.counters["discarded_pages"] == 50


def test_shared_memory_keeps_what_is_not_needed_now(program: Path) -> None:
    with moving(program, 500, "shared") as move:
        assert move.destination.run("check", 0, 100) == 0
        assert move.destination.run("dontneed", 50, 100) == 0
        assert move.destination.run("check", 0, 500) == 0
        move.complete()


def test_freed_pages_are_zero_or_as_they_were(program: Path) -> None:
    with moving(program, 200) as move:
        assert move.destination.run("check", 0, 100) == 0
        assert move.destination.run("free", 0, 100) == 0
        move.destination.run("pageout", 0, 100)
        assert move.destination.run("get", 20, 0) in (0, (20 * 0x9E3779B97F4A7C15) & 0xFF)
        move.complete()
        assert move.destination.run("check", 100, 100) == 0


def test_unmapped_pages_are_discarded(program: Path) -> None:
    with moving(program, 1000) as move:
        assert move.destination.run("unmap", 100, 300) == 0
        assert move.destination.run("map", 150, 100) == 0
        assert move.destination.run("check-zero", 150, 100) == 0
        eventually(lambda: move.pager.counters["wanted_pages"] == 700)
        move.complete()
        assert move.destination.run("check-zero", 150, 100) == 0
        assert move.destination.run("check", 0, 100) == 0
        assert move.destination.run("check", 400, 600) == 0


@pytest.mark.parametrize("verb", ["move", "move-keep"])
def test_moved_pages_come_to_their_new_place(program: Path, verb: str) -> None:
    with moving(program, 2000) as move:
        assert move.destination.run("check", 300, 50) == 0
        assert move.destination.run(verb, 250, 500, 0) == 0
        assert move.destination.run("check-moved", 250, 250, 0) == 0
        if verb == "move-keep":
            assert move.destination.run("check-zero", 250, 500) == 0
            # Unmapping what the move has left behind must not touch what was moved.
            assert move.destination.run("unmap", 250, 500) == 0
        assert move.destination.run("move", 1000, 100, 200) == 0  # onto a part of what was moved
        assert move.destination.run("check-moved", 1000, 100, 200) == 0
        move.complete()
        assert move.destination.run("check-moved", 250, 200, 0) == 0
        assert move.destination.run("check-moved", 550, 200, 300) == 0
        assert move.destination.run("check", 0, 250) == 0


def test_moving_there_and_back_while_bulk_runs(program: Path) -> None:
    with moving(program, 30000) as move:
        move.pager.prefetch_start()
        for _ in range(200):
            assert move.destination.run("move", 5000, 20000, 0) == 0
            assert move.destination.run("move-back", 5000, 20000, 0) == 0
        move.complete()
        assert move.destination.run("check", 0, 30000) == 0


def test_a_mapping_in_pieces(program: Path) -> None:
    with moving(program, 5000) as move:
        for first in range(0, 5000, 50):
            assert move.destination.run("protect", first, 13) == 0
        move.complete()
        assert move.destination.run("check", 0, 5000) == 0


class Model:
    """What every page at both places has to hold: the number of a page of the source, ZERO, or nothing."""

    ZERO, NOTHING = -1, -2

    def __init__(self, pages: int) -> None:
        self.here = list(range(pages))
        self.there = [Model.NOTHING] * pages

    def pieces(self, place: list[int], first: int, count: int) -> list[tuple[int, int, int]]:
        """The stretch as (page, what is there, how many in a row)."""
        found: list[tuple[int, int, int]] = []
        for page in range(first, first + count):
            what = place[page]
            if found:
                start, begin, length = found[-1]
                if (what < 0 and what == begin) or (begin >= 0 and what == begin + length):
                    found[-1] = (start, begin, length + 1)
                    continue
            found.append((page, what, 1))
        return found


def check_model(move: Move, model: Model, first: int, count: int) -> None:
    """Check a stretch of both places."""
    for page, what, length in model.pieces(model.here, first, count):
        if what >= 0:
            assert move.destination.run("check-at", what, length, page) == 0
        elif what == Model.ZERO:
            assert move.destination.run("check-zero", page, length) == 0
    for page, what, length in model.pieces(model.there, first, count):
        if what >= 0:
            assert move.destination.run("check-moved", what, length, page) == 0


@pytest.mark.parametrize("seed", range(6))
def test_everything_at_once_at_random(program: Path, seed: int) -> None:
    pages, chance = 6000, random.Random(seed)
    model = Model(pages)
    with moving(program, pages) as move:
        move.pager.fault_pages(chance.choice([1, 16, 64]))
        move.client.limit(chance.choice([5_000_000, 20_000_000, 0]))
        move.pager.prefetch_start()
        for _ in range(150):
            first = chance.randrange(pages - 600)
            count = chance.randrange(1, 600)
            stretch = slice(first, first + count)
            action = chance.choice(["dontneed", "map", "move", "move-back", "check", "fork"])
            if action == "dontneed" and Model.NOTHING not in model.here[stretch]:
                assert move.destination.run("dontneed", first, count) == 0
                model.here[stretch] = [Model.ZERO] * count
            elif action == "map":
                assert move.destination.run("map", first, count) == 0
                model.here[stretch] = [Model.ZERO] * count
            elif action == "move" and len(model.pieces(model.here, first, count)) == 1 and model.here[first] >= 0:
                assert move.destination.run("move", first, count, first) == 0
                model.there[stretch] = model.here[stretch]
                model.here[stretch] = [Model.NOTHING] * count
            elif action == "move-back" and len(model.pieces(model.there, first, count)) == 1:
                if model.there[first] >= 0:
                    assert move.destination.run("move-back", first, count, first) == 0
                    model.here[stretch] = model.there[stretch]
                    model.there[stretch] = [Model.NOTHING] * count
            elif action == "fork" and model.here[stretch] == list(range(first, first + count)):
                assert move.destination.run("fork", first, count) == 0
            else:
                check_model(move, model, first, count)
        move.client.limit(0)
        move.complete()
        check_model(move, model, 0, pages)


@pytest.mark.parametrize("verb", ["lock", "lock-onfault"])
def test_locking_fetches_or_waits(program: Path, verb: str) -> None:
    with moving(program, 1000) as move:
        assert move.destination.run(verb, 100, 300) == 0
        assert move.destination.run("check", 0, 500) == 0
        move.complete()
        assert move.destination.run("check", 0, 1000) == 0


def test_changes_while_bulk_runs_leave_nothing_old(program: Path) -> None:
    with moving(program, 60000) as move:
        move.pager.prefetch_start()
        for first in range(0, 60000, 600):
            assert move.destination.run("dontneed", first, 300) == 0
        for first in range(0, 60000, 600):
            assert move.destination.run("check-zero", first, 300) == 0
            assert move.destination.run("check", first + 300, 300) == 0
        move.complete()


def test_the_end_of_the_program_completes(program: Path) -> None:
    with moving(program, 5000) as move:
        assert move.destination.run("check", 0, 10) == 0
        move.destination.close()
        move.complete()


def test_another_program_needs_no_pages(program: Path) -> None:
    with moving(program, 5000) as move:
        move.destination.send("exec")
        assert move.destination.process.wait(60) == 0
        move.complete()


def test_nothing_stays_in_the_process(program: Path) -> None:
    with moving(program, 500) as move:
        keeper = move.pager.keeper
        eventually(lambda: Path(f"/proc/{keeper}/comm").read_text() == "lm-keeper\n")
        move.complete()
        assert not Path(f"/proc/{keeper}").exists()
        assert " um" not in Path(f"/proc/{move.destination.pid}/smaps").read_text()
        assert own_userfaultfds() == []


def test_a_terabyte_that_was_only_reserved(program: Path) -> None:
    pages = 1 << 28
    with moving(program, pages, role="sparse") as move:
        assert move.destination.run("check", pages - 50, 50) == 0
        assert move.destination.run("check-zero", 1000000, 50) == 0
        move.complete()
        assert move.destination.run("check", 0, 100) == 0
        assert move.destination.run("check", pages - 100, 100) == 0
        assert move.client.counters["requests"] < 1000


def test_what_was_never_touched_is_answered_here(program: Path) -> None:
    with moving(program, 100000, role="sparse") as move:
        move.client.limit(100_000)
        move.pager.prefetch_start()
        eventually(lambda: move.pager.counters["absent_pages"] >= 99800)
        assert move.destination.run("check-zero", 50000, 1000) == 0
        assert move.pager.counters["remote_faults"] == 0
        assert move.pager.counters["local_faults"] <= 1000 // 16 + 1  # sixteen at once
        move.client.limit(0)
        move.complete()
        assert move.pager.counters["absent_pages"] == 99800 + 200 // 11
