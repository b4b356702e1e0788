"""Is the source on this machine, and can its descriptors be taken over?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.pidfd import open_pidfd
from live_migration.kernel.process_snapshot import ProcessSnapshot


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the process runs, so that the destination can tell whether it is the same machine and network.

    `pid` and `start_time` (clock ticks since boot) name the process in the PID namespace `pid_namespace`; id 0 names
    none.
    """

    boot: str
    pid: int
    start_time: int
    pid_namespace: int
    network_namespace: int


@dataclass(frozen=True)
class Reach:
    """Is it one machine, one network namespace, and can the source process be reached by its id?"""

    same_machine: bool
    same_network: bool
    source: bool


def reach_of(place: Place) -> Reach:
    """How near the source is."""
    pidfd = source_in_reach(place)
    if pidfd is not None:
        os.close(pidfd)
    return Reach(is_same_machine(place), is_same_network(place), pidfd is not None)


def source_in_reach(place: Place) -> int | None:
    """A descriptor for the source process if it lives on this machine, in this PID namespace; else None. The place must
    be proven: through this descriptor the rights of this process reach any other."""
    if not is_same_machine(place) or place.pid_namespace != os.stat("/proc/self/ns/pid").st_ino or not place.pid:
        return None
    try:
        pidfd = open_pidfd(place.pid)
    except (OSError, OverflowError):
        return None
    try:
        if int(ProcessSnapshot(place.pid).stat[21]) == place.start_time:
            return pidfd
    except (OSError, ProcessGone):
        pass
    os.close(pidfd)
    return None


def is_same_machine(place: Place) -> bool:
    """Does the source run on this machine, by its own word? The boot id is made anew at every boot (random(4)), and not
    secret: nothing that the source could not do may follow from it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() == place.boot


def is_same_network(place: Place) -> bool:
    """Does the source live in this thread's network namespace?"""
    return is_same_machine(place) and place.network_namespace == os.stat("/proc/thread-self/ns/net").st_ino
