"""The lines of /proc/PID/status: which of them stay the same while a process does nothing about itself."""

from __future__ import annotations

import re

from live_migration.kernel.proc import read_proc

# Counters and momentary states: their change says nothing about what the process is (proc_pid_status(5)).
CHANGING = (
    b"Vm.*", b"Rss.*", b"State", b"TracerPid", b"FDSize", b"Threads", b"SigQ", b"SigPnd", b"ShdPnd", b"SigBlk",
    b"SigIgn", b"SigCgt", b"voluntary_ctxt_switches", b"nonvoluntary_ctxt_switches", b"Mems_allowed",
    b"Mems_allowed_list", b"HugetlbPages", b"THP_enabled", b"CoreDumping", b"untag_mask",
)  # fmt: skip
LOCKED = re.compile(rb"^VmLck:\s*(\d+) kB$", re.MULTILINE)
LINES_THAT_CHANGE = re.compile(rb"^(?:" + b"|".join(CHANGING) + rb"):.*\n", re.MULTILINE)


def resident_bytes(status: dict[str, str]) -> int:
    """Bytes of anonymous memory that a process has in memory or in swap; 0 for one without memory. Shared memory does
    not count (`shared_bytes`)."""
    return sum(int(status.get(name, "0").split()[0]) for name in ("RssAnon", "VmSwap")) * 1024


def shared_bytes(status: dict[str, str], most: int) -> int:
    """Bytes of shared memory that it has in memory, at most so many: RssShmem includes files on a tmpfs, which do not
    travel."""
    return min(int(status.get("RssShmem", "0").split()[0]) * 1024, most)


def locked_in_status(raw: bytes) -> int:
    """Bytes of mappings that are locked (mlock(2))."""
    found = LOCKED.search(raw)
    return int(found[1]) * 1024 if found else 0


def proof(raw: bytes) -> bytes:
    """The part of a status that stays as it is unless the process's identity, rights or settings change."""
    return LINES_THAT_CHANGE.sub(b"", raw)


def merges_all(pid: int) -> bool:
    """Is all memory of the process to be merged (PR_SET_MEMORY_MERGE)? False where the kernel does not tell (before
    Linux 6.15)."""
    try:
        return b"ksm_merge_any: yes" in read_proc(f"/proc/{pid}/ksm_stat")
    except OSError:
        return False
