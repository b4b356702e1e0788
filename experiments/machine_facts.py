"""What the figures of a result depend on beside what was asked for: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

from live_migration.experiments import processors
from live_migration.experiments.results import Machine

ASKED: dict[str, tuple[str, ...]] = {"redis-server": ("--version",), "node": ("--version",)}


def machine_facts(peers: dict[str, str]) -> Machine:
    """This machine, its load now, and the versions of everything that takes part; peers: paths by name."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    versions = {}
    for name in ("live-migration",):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    for name, words in (*ASKED.items(), *((peer, ("--version",)) for peer in peers)):
        path = peers.get(name) or shutil.which(name)
        if path:
            versions[name] = _first_line([path, *words])
    return Machine(
        kernel=platform.release(),
        processor=names[0] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        python=platform.python_version(),
        versions=versions,
        wake_up_us=processors.wake_up_us(),
        load=[round(value, 2) for value in os.getloadavg()],
    )


def _first_line(words: list[str]) -> str:
    """What a program says of its version."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else ""
