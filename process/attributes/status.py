"""The lines of /proc/PID/status, and which of them stay the same while a process does nothing about itself."""

from __future__ import annotations

import re

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.proc import read_proc

# Counters and momentary states: their change says nothing about what the process is (proc_pid_status(5)).
CHANGING = (
    b"Vm.*", b"Rss.*", b"State", b"TracerPid", b"FDSize", b"Threads", b"SigQ", b"SigPnd", b"ShdPnd", b"SigBlk",
    b"SigIgn", b"SigCgt", b"voluntary_ctxt_switches", b"nonvoluntary_ctxt_switches", b"Mems_allowed",
    b"Mems_allowed_list", b"HugetlbPages", b"THP_enabled", b"CoreDumping", b"untag_mask",
)  # fmt: skip
LINES_THAT_CHANGE = re.compile(rb"^(?:" + b"|".join(CHANGING) + rb"):.*\n", re.MULTILINE)


def read_status(pid: int, tid: int | None = None) -> bytes:
    """The raw status of a process, or of one of its threads. Raises ProcessGone."""
    try:
        return read_proc(f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(tid or pid) from None


def resident_bytes(status: dict[str, str]) -> int:
    """Bytes of anonymous memory that a process has in memory or in swap; 0 for one without memory. Shared memory is not
    among them, for RssShmem counts files on a tmpfs, too, which do not travel."""
    return sum(int(status.get(name, "0").split()[0]) for name in ("RssAnon", "VmSwap")) * 1024


def parse_status(raw: bytes) -> dict[str, str]:
    """Its lines by name, without the surrounding space."""
    lines = {}
    for line in raw.splitlines():
        name, separator, value = line.partition(b":")
        if separator:
            lines[name.decode()] = value.strip().decode("utf-8", "surrogateescape")
    return lines


def proof(raw: bytes) -> bytes:
    """The part of a status that stays as it is unless the process's identity, rights or settings change."""
    return LINES_THAT_CHANGE.sub(b"", raw)
