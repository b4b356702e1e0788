"""What the processor offers to programs: its features, and the size of the vector state that a signal frame holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _lm import lib

# Features that change while a host runs or that programs cannot use.
IRRELEVANT = frozenset({"hypervisor", "constant_tsc", "nonstop_tsc", "tsc_reliable", "aperfmperf", "arat", "rep_good"})


def describe() -> dict[str, Any]:
    """The features as the kernel names them (/proc/cpuinfo), and the bytes of the whole xsave image."""
    flags: list[str] = []
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = sorted(frozenset(line.partition(":")[2].split()) - IRRELEVANT)
            break
    return {"features": flags, "xsave_size": int(lib.lm_arch_xstate_room())}


def lacking(source: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What the source's processor has and this one lacks, each as it is named in a sentence."""
    found = [str(name) for name in source.get("features", []) if name not in here.get("features", [])]
    if source.get("xsave_size") != here.get("xsave_size"):
        found.append(f"the layout of the vector state ({source.get('xsave_size')} bytes)")
    return found
