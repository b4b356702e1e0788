"""For tests of threads that get home by themselves: a tracer that can die, and what a remote syscall needs."""

from __future__ import annotations

import os
from collections.abc import Callable

from live_migration.kernel.injection.sigreturn_path import Gadgets, find_gadgets, place_frame
from live_migration.kernel.memory.maps import maps


def in_a_child(work: Callable[[], None], said: int) -> int:
    """Start a tracer that does the work until it is killed; it says on `said` that it begins, and what went wrong."""
    child = os.fork()
    if child:
        return child
    try:
        os.write(said, b"+")
        work()
    except BaseException as error:
        os.write(said, f"{error!r}".encode())
    finally:
        os._exit(1)


def gadgets_of(pid: int) -> Gadgets:
    found = find_gadgets(pid, maps(pid))
    assert found is not None
    return found


def stack_of(pid: int) -> tuple[int, int]:
    return next((one.start, one.end) for one in maps(pid) if one.path == "[stack]")


def frame_on_stack(pid: int, gadgets: Gadgets) -> int:
    place = place_frame(pid, gadgets, stack_of(pid))
    assert place is not None
    return place
