"""Pushes: memory that travels before the process runs, and again where it has changed."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from live_migration._lm import ffi, lib
from live_migration.pager.pager import PagedRange, RangeKind
from live_migration.source_server.pages.client import PushRun
from live_migration.source_server.pages.store import FIRST_OBJECT
from tests.pager.paging import BASE, PAGE, Move, moving


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled paged_program."""
    path = tmp_path_factory.mktemp("paging") / "paged_program"
    source = Path(__file__).with_name("paged_program.c")
    subprocess.run(["cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", str(source), "-o", path], check=True)
    return path


def both(one: Callable[[], None], other: Callable[[], None]) -> None:
    """Run two blocking calls beside each other; what the second raises is raised, the first may lose its peer."""

    def quietly() -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            one()

    thread = threading.Thread(target=quietly)
    thread.start()
    try:
        other()
    finally:
        thread.join()


def push(move: Move, identifier: int, runs: list[PushRun], **options: bool) -> None:
    """Push from the source and receive at the destination."""
    both(lambda: move.client.push(identifier, runs, **options), lambda: move.pager.receive_push(identifier))


def poke(pid: int, page: int, data: bytes) -> None:
    """Write into a stopped program's page."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(BASE + page * PAGE)
        memory.write(data)


def peek(pid: int, page: int, length: int = 8) -> bytes:
    """Read from a program's page, which must be there."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(BASE + page * PAGE)
        return memory.read(length)


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_pushed_pages_do_not_travel_again(program: Path, kind: str) -> None:
    with moving(program, 3000, kind) as move:
        push(move, 1, [PushRun(0, BASE, BASE + 2000 * PAGE)])
        assert move.pager.counters["wanted_pages"] == 1000
        move.complete()
        assert move.destination.run("check", 0, 3000) == 0
        assert move.pager.counters["prefetched_pages"] < 1000


def test_a_second_push_brings_what_has_changed(program: Path) -> None:
    with moving(program, 2000) as move:
        whole = [PushRun(0, BASE, BASE + 2000 * PAGE, present=True)]
        push(move, 1, whole, remember=True)
        before = move.client.counters["pushed_pages"]
        poke(move.source.pid, 100, b"changed!")
        poke(move.source.pid, 5, b"new one!")  # never touched before
        poke(move.source.pid, 102, bytes(PAGE))  # now zero
        push(move, 2, whole, changed=True, remember=True)
        assert move.client.counters["pushed_pages"] == before + 3
        assert peek(move.destination.pid, 100) == b"changed!"
        assert peek(move.destination.pid, 5) == b"new one!"
        assert peek(move.destination.pid, 102, PAGE) == bytes(PAGE)
        push(move, 3, whole, changed=True)
        assert move.client.counters["pushed_pages"] == before + 3
        move.complete()
        assert move.destination.run("check", 200, 1800) == 0


def test_what_was_discarded_is_pushed_whatever_it_is(program: Path) -> None:
    with moving(program, 2000) as move:
        whole = [PushRun(0, BASE, BASE + 2000 * PAGE, present=True)]
        push(move, 1, whole, remember=True)
        before = move.client.counters["pushed_pages"]
        move.client.discard_pushed(0, [(BASE + 200 * PAGE, BASE + 210 * PAGE), (BASE - PAGE, BASE)])
        push(move, 2, whole, changed=True, remember=True)
        again = move.client.counters["pushed_pages"] - before
        assert 5 <= again <= 10, "those of them that exist"
        push(move, 3, whole, changed=True)
        assert move.client.counters["pushed_pages"] == before + again
        move.client.discard_pushed(0, [(0, 1 << 46)])
        push(move, 4, whole, changed=True)
        assert move.client.counters["pushed_pages"] == 2 * before + again


def test_a_running_process_may_have_unmapped_what_is_pushed(program: Path) -> None:
    with moving(program, 100) as move:
        before = move.client.counters["pushed_pages"]
        outside = [PushRun(0, BASE - 10 * PAGE, BASE + 100 * PAGE)]
        push(move, 1, outside, remember=True)
        assert move.client.counters["pushed_pages"] == before + 100
        with pytest.raises(OSError, match="Input/output error"):
            move.client.push(2, outside)


def test_written_ranges_take_pushes_whatever_their_protection(program: Path) -> None:
    with moving(program, 100) as move:
        end = BASE + 100 * PAGE
        move.pager.set_ranges(
            [
                PagedRange(BASE, BASE + 50 * PAGE),
                PagedRange(BASE + 50 * PAGE, end, RangeKind.ANONYMOUS),
            ]
        )
        assert move.destination.run("map", 50, 50) == 0
        assert move.destination.run("protect", 50, 25) == 0
        move.pager.set_ranges(
            [PagedRange(BASE, BASE + 50 * PAGE), PagedRange(BASE + 50 * PAGE, end, RangeKind.WRITTEN)]
        )
        push(move, 9, [PushRun(0, BASE + 50 * PAGE, end)])
        move.complete()
        assert move.destination.run("check", 0, 100) == 0


def test_objects_travel_by_offset(program: Path) -> None:
    content = os.urandom(5 * PAGE) + bytes(3 * PAGE) + os.urandom(100)
    one, other = os.memfd_create("one"), os.memfd_create("other")
    try:
        os.write(one, content)
        os.ftruncate(other, len(content))
        with moving(program, 10) as move:
            move.store.add_object(FIRST_OBJECT + 3, one)
            move.pager.add_object(FIRST_OBJECT + 3, other, len(content))
            push(move, 1, [PushRun(FIRST_OBJECT + 3, 0, 9 * PAGE)], remember=True)
            assert os.pread(other, len(content) + 1, 0) == content
            os.pwrite(one, b"later", 3)
            push(move, 2, [PushRun(FIRST_OBJECT + 3, 0, 9 * PAGE)], changed=True)
            assert os.pread(other, 8, 0) == os.pread(one, 8, 0)
            assert move.client.counters["skipped_pages"] == 8
    finally:
        os.close(one)
        os.close(other)


def test_hot_pages_overwrite_what_was_pushed(program: Path) -> None:
    with moving(program, 100) as move:
        push(move, 1, [PushRun(0, BASE, BASE + 10 * PAGE)])
        move.pager.place(BASE + 8 * PAGE, b"hot page" * 512 * 4)
        assert peek(move.destination.pid, 8) == peek(move.destination.pid, 11) == b"hot page"
        move.complete()
        assert peek(move.destination.pid, 11) == b"hot page"
        assert move.destination.run("check", 0, 8) == 0
        assert move.destination.run("check", 12, 88) == 0


def test_final_ranges_keep_what_was_placed(program: Path) -> None:
    with moving(program, 1000) as move:
        push(move, 1, [PushRun(0, BASE, BASE + 500 * PAGE, present=True)])
        before = move.pager.counters["wanted_pages"]
        assert before == 1000 - sum(page % 11 != 5 and page % 7 != 3 for page in range(500)) - sum(
            page % 11 != 5 and page % 7 == 3 for page in range(500)
        )
        pieces = [PagedRange(BASE + at * PAGE, BASE + (at + 100) * PAGE) for at in range(0, 1000, 100)]
        move.pager.set_ranges(pieces)
        # What was known to be zero is asked for once more, what has content is not.
        assert move.pager.counters["wanted_pages"] >= before
        move.complete()
        placed = sum(page % 11 != 5 and page % 7 != 3 for page in range(1000))
        assert move.pager.counters["total_pages"] == placed
        assert move.destination.run("check", 0, 1000) == 0


def test_discarded_pages_are_fetched_again(program: Path) -> None:
    with moving(program, 400) as move:
        push(move, 1, [PushRun(0, BASE, BASE + 400 * PAGE)])
        poke(move.source.pid, 100, b"fresher!")
        assert move.destination.run("dontneed", 100, 100) == 0
        move.pager.discard(BASE + 100 * PAGE, BASE + 200 * PAGE)
        move.complete()
        assert peek(move.destination.pid, 100) == b"fresher!"
        assert move.destination.run("check", 101, 299) == 0


def test_a_push_to_nowhere_is_refused(program: Path) -> None:
    with moving(program, 100) as move:
        move.pager.set_ranges([PagedRange(BASE, BASE + 50 * PAGE)])
        with pytest.raises(OSError, match="Protocol error") as caught:
            push(move, 1, [PushRun(0, BASE, BASE + 100 * PAGE)])
        assert caught.value.errno == errno.EPROTO
        assert move.pager.cause == ("the bulk connection is lost: the source broke the rules of the page stream")


def test_an_unknown_space_cannot_be_pushed(program: Path) -> None:
    with moving(program, 10) as move, pytest.raises(OSError, match="No such file") as caught:
        move.client.push(1, [PushRun(77, BASE, BASE + PAGE)])
    assert caught.value.errno == errno.ENOENT


def sent_frames(link: socket.socket, frames: list[tuple[int, int, int, int]]) -> None:
    """Frames of push 2 as (kind, space, first page, pages), and its end."""
    for kind, space, page, pages in [*frames, (int(lib.LM_FRAME_END), 0, 0, 0)]:
        frame = ffi.new("struct lm_frame *", {"kind": kind, "space": space, "pages": pages, "id": 2})
        frame.address = BASE + page * PAGE if pages else 0
        lib.lm_frame_seal(frame)
        link.sendall(bytes(ffi.buffer(frame)))


@pytest.mark.parametrize("seed", range(3))
def test_pages_that_are_taken_back_again_and_again_count_once(program: Path, seed: int) -> None:
    """A quarter of a megabyte of frames that overlap; of each page the last word counts."""
    pages, numbers = 1000, random.Random(seed)
    discard, gone = int(lib.LM_FRAME_DISCARD), int(lib.LM_FRAME_GONE)
    frames = []
    for _ in range(8000):
        first = numbers.randrange(pages - 1)
        frames.append((numbers.choice((discard, gone)), 0, first, numbers.randint(1, min(pages - first, 300))))
    last = dict.fromkeys(range(pages), 0)
    for kind, _, first, count in frames:
        last.update(dict.fromkeys(range(first, first + count), kind))
    with moving(program, pages) as move:
        # Only every second page exists.
        push(move, 1, [PushRun(0, BASE, BASE + pages * PAGE, present=True)])
        before = move.pager.counters
        both(lambda: sent_frames(move.links[2], frames), lambda: move.pager.receive_push(2))
        drops = move.pager.drops()
        assert sum(drops.lengths) == before["pushed_pages"] * PAGE
        assert len(drops.starts) <= pages
        assert list(drops.starts) == sorted(set(drops.starts))
        move.pager.dropped(in_order=True)
        assert all(last.values()), "each page was named"
        assert move.pager.counters["wanted_pages"] == sum(kind == discard for kind in last.values())
