"""The unit for a process that comes from another host, and the limits of control groups as systemd writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from live_migration.wire.exit_codes import ExitCode

ROOT = Path(__file__).resolve().parents[2]
UNIT = "lm-restore@.service"
GROUPS = {
    "/": {"memory.max": "1"},
    "/web.slice": {"memory.max": "1073741824", "pids.max": "50", "cpu.max": "25000 100000", "cpuset.cpus": "0"},
    "/web.slice/a b.service": {
        "memory.max": "max", "memory.high": "max", "memory.swap.max": "0", "pids.max": "100", "cpu.max": "max 100000",
        "cpu.weight": "200", "cpuset.cpus": "0-1",
    },
}  # fmt: skip
PROPERTIES = [
    "MemoryMax=1073741824", "MemorySwapMax=0", "TasksMax=50", "CPUQuota=25%", "CPUWeight=200", "AllowedCPUs=0-1",
]  # fmt: skip


def verified(unit: Path) -> str:
    """What systemd has against a unit."""
    line = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    return done.stderr


@pytest.fixture
def limits(tmp_path: Path) -> dict[str, str]:
    """Control groups, and a process in the lowest one."""
    for group, files in GROUPS.items():
        folder = tmp_path / f"cgroup{group}"
        folder.mkdir(parents=True)
        # Groups at the root have no limits of their own.
        for name, content in files.items() if group != "/" else ():
            (folder / name).write_text(f"{content}\n")
    (tmp_path / "proc" / "12").mkdir(parents=True)
    (tmp_path / "proc" / "12" / "cgroup").write_text(f"1:name=systemd:/x\n0::{[*GROUPS][-1]}\n")
    return os.environ | {"CGROUP_ROOT": str(tmp_path / "cgroup"), "PROC_ROOT": str(tmp_path / "proc")}


def test_the_limits_of_a_process(limits: dict[str, str], tmp_path: Path) -> None:
    def printed(*words: str) -> str:
        line = ["sh", str(ROOT / "systemd" / "lm-limits"), *words]
        return subprocess.run(line, env=limits, capture_output=True, text=True, check=True, timeout=60).stdout

    assert printed("12").splitlines() == [f"--property={one}" for one in PROPERTIES]
    assert printed("--unit", "Slice", "12").splitlines() == ["[Slice]", *PROPERTIES]
    (tmp_path / "moved.slice").write_text(printed("--unit", "Slice", "12"))
    assert verified(tmp_path / "moved.slice") == ""
    failed = subprocess.run(
        ["sh", str(ROOT / "systemd" / "lm-limits"), "12"], env=limits | {"CGROUP_ROOT": "/nowhere"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "process 12 is in no cgroup v2 below /nowhere" in failed.stderr


def test_the_unit(limits: dict[str, str], tmp_path: Path) -> None:
    """The command that it starts is there, with these options; its limits come from a file."""
    text = (ROOT / "systemd" / UNIT).read_text()
    command = Path(sys.executable).with_name("lm-restore")
    (tmp_path / UNIT).write_text(text.replace("/usr/bin/lm-restore", str(command)))
    more = tmp_path / f"{UNIT}.d"
    more.mkdir()
    line = ["sh", str(ROOT / "systemd" / "lm-limits"), "--unit", "Service", "12"]
    with (more / "limits.conf").open("wb") as file:
        subprocess.run(line, env=limits, check=True, stdout=file, timeout=60)
    instance = tmp_path / UNIT.replace("@", "@web")
    assert verified(instance) == ""
    (more / "limits.conf").write_text("[Service]\nMemoryMaxx=1\n")
    assert "Unknown key" in verified(instance)
    (words,) = [line.partition("=")[2].split() for line in text.splitlines() if line.startswith("ExecStart=")]
    ticket = tmp_path / "ticket"
    ticket.write_text("lm://127.0.0.1:9/" + "A" * 43)
    ticket.chmod(0o600)
    done = subprocess.run(
        [str(command), *words[1:-1], f"@{ticket}"], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert "--help lists the options" not in done.stderr
    assert done.returncode == ExitCode.NO_PEER, done.stderr
