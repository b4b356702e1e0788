"""What one host tells the other about itself, first of all, so that the preflight can compare."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from wire.handshake import VERSION

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One host, at one moment.

    version         of the protocol
    machine         the architecture, as uname(2) says it
    page_size       in bytes
    kernel          the release, for messages only: what a kernel can do is tried, not guessed
    host_name       for messages
    boot_id         the same on two sides: one kernel, so one machine
    namespaces      kind -> inode of the one that lm-serve or lm-restore lives in (namespaces(7))
    cpu             what linux/cpu.py found
    vdso            a digest of the code that the kernel maps into processes (process/vdso.py)
    monotonic_ns, boottime_ns, realtime_ns   the clocks, read one right after the other
    """

    version: int
    machine: str
    page_size: int
    kernel: str
    host_name: str
    boot_id: str
    namespaces: dict[str, int]
    cpu: dict[str, Any]
    vdso: str
    monotonic_ns: int
    boottime_ns: int
    realtime_ns: int


def look_at_host(cpu: dict[str, Any], vdso: str) -> HostFacts:
    """The facts of this host; `cpu` and `vdso` are found by others. Raises OSError where /proc is missing."""
    system = os.uname()
    return HostFacts(
        version=VERSION,
        machine=system.machine,
        page_size=os.sysconf("SC_PAGESIZE"),
        kernel=system.release,
        host_name=system.nodename,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        namespaces={name: _inode_of_namespace(name) for name in NAMESPACES},
        cpu=cpu,
        vdso=vdso,
        monotonic_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        boottime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        realtime_ns=time.clock_gettime_ns(time.CLOCK_REALTIME),
    )


def _inode_of_namespace(name: str) -> int:
    """0 where the kernel was built without this kind."""
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino
    except FileNotFoundError:
        return 0


def same_machine(here: HostFacts, there: HostFacts) -> bool:
    """Do both sides run on one kernel?"""
    return here.boot_id == there.boot_id


def same_namespace(here: HostFacts, there: HostFacts, kind: str) -> bool:
    """Are both sides on one machine and in one namespace of this kind?"""
    inode = here.namespaces.get(kind, 0)
    return same_machine(here, there) and inode == there.namespaces.get(kind, 0) != 0
