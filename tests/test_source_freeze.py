"""The freeze at the source: whatever fails in it, the process goes on with nothing of it left behind."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest
from linux_husks import kill_and_reap

from linux.errors import ProcessGone
from linux.maps import maps_text
from source_server import handover
from source_server.look import SourceLook, look
from source_server.page_server import PageServer
from source_server.pusher import Pusher, pushing
from wire.errors import LocalError

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def seen() -> Iterator[SourceLook]:
    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
    try:
        found, obstacles = look(process.pid)
        assert not obstacles
        yield found
    finally:
        kill_and_reap(process.pid)


def test_an_error_after_the_threads_were_asked_leaves_no_mapping(seen: SourceLook) -> None:
    before = maps_text(seen.pid)

    def fail_halfway() -> None:
        with handover.frozen(seen) as state:
            handover.ask_threads(state)
            assert maps_text(seen.pid) != before
            raise OSError(24, "no more descriptors")

    with pytest.raises(LocalError, match="no more descriptors"):
        fail_halfway()
    assert maps_text(seen.pid) == before


def test_pushes_are_done_in_order_and_an_error_of_one_ends_nothing() -> None:
    done = []

    def fail() -> None:
        raise OSError(32, "the peer is gone")

    pusher = Pusher()
    pusher.do(lambda: done.append(1))
    pusher.do(fail)
    pusher.do(lambda: done.append(2))
    assert pusher.wait(10)
    assert done == [1, 2]
    pusher.close()


def test_waiting_for_a_push_that_hangs_ends() -> None:
    release = threading.Event()
    pusher = Pusher()
    pusher.do(lambda: release.wait(10))
    assert not pusher.wait(0.01)
    release.set()
    pusher.close()


def test_an_error_hangs_up_so_that_the_push_under_way_comes_back() -> None:
    server = PageServer()
    hung_up = threading.Event()
    server.hang_up = hung_up.set  # type: ignore[method-assign]

    def fail_meanwhile() -> None:
        with server, pushing(server) as pusher:
            pusher.do(lambda: hung_up.wait(10))
            raise KeyError

    with pytest.raises(KeyError):
        fail_meanwhile()
    assert hung_up.is_set()


def test_a_process_that_has_ended_and_was_not_waited_for_has_no_layout() -> None:
    """Its name is still there, and an empty layout would be followed like any other."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessGone):
        maps_text(ended.pid)
    ended.wait()
