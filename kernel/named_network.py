"""Network namespaces with a name, as ip-netns(8) makes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from live_migration._lm import lib

FOLDER = Path("/run/netns")
OWN = "/proc/thread-self/ns/net"


def open_named(name: str) -> int:
    """A descriptor of the network namespace with that name. Raises OSError: there is none, or it may not be entered."""
    network = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with inside(network):
            return network
    except BaseException:
        os.close(network)
        raise


@contextlib.contextmanager
def inside(network: int) -> Iterator[None]:
    """Within, what this thread makes is in that network namespace; -1: in its own. Raises OSError."""
    if network < 0:
        yield
        return
    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(network)
        try:
            yield
        finally:
            enter(own)
    finally:
        os.close(own)


def enter(network: int) -> None:
    """setns(2). Raises OSError."""
    failed = lib.lm_enter_network(network)
    if failed:
        raise OSError(-failed, os.strerror(-failed), "entering a network namespace")
