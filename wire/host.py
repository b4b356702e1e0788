"""What each host tells the other about itself, first of all, so that the preflight can compare."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

CpuFacts = Mapping[str, int | list[str | list[int]]]


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One host, at one moment.

    machine         the architecture, as uname(2) says it
    page_size       in bytes
    boot_id         the same on two sides: one kernel, so one machine
    cpu             what kernel/arch/x86_64/cpu.py found
    vdso            a digest of the code that the kernel maps into processes (process/memory/vdso.py)
    """

    machine: str
    page_size: int
    boot_id: str
    cpu: dict[str, int | list[str | list[int]]]
    vdso: str


def snapshot_host(cpu: CpuFacts, vdso: str) -> HostFacts:
    """The facts of this host; the caller finds `cpu` and `vdso`. Raises OSError if /proc is missing."""
    return HostFacts(
        machine=os.uname().machine,
        page_size=os.sysconf("SC_PAGESIZE"),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        cpu=dict(cpu),
        vdso=vdso,
    )
