"""Processes of ours for the tests of kernel/: a husk, seized and stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from live_migration.kernel.tracing import tracee

HUSK = Path(__file__).resolve().parents[2] / "restorer" / "bin" / "husk"


def wait_until(condition: object, seconds: float = 60.0) -> None:
    """Poll a callable until it is true; AssertionError when it does not come true."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def without_preload() -> dict[str, str]:
    """The environment for a program that is to be looked at: a preloaded sanitizer is for the C side of the commands,
    and would make pages and mappings in the program behind its back."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@contextmanager
def stopped_husk() -> Iterator[int]:
    """A fresh husk, seized and stopped; killed and reaped at the end."""
    pid = os.posix_spawn(HUSK, [str(HUSK)], {})
    try:
        wait_until(lambda: os.readlink(f"/proc/{pid}/exe") == str(HUSK))
        tracee.seize(pid, tracee.TRACESYSGOOD | tracee.EXITKILL)
        tracee.stop(pid)
        yield pid
    finally:
        kill_and_reap(pid)


def kill_and_reap(pid: int) -> None:
    """End a child whatever it is doing. Traced threads of it are reaped, too."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    while True:
        try:
            found, status = os.waitpid(-1, 0x40000000)
        except ChildProcessError:
            return
        if found == pid and not os.WIFSTOPPED(status):
            return
