"""The second observer: what /proc/PID says of the process before its move and after it, file by file."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# What may differ, by the name of a file of /proc/PID, or of a field in it, each with the reason.
MAY_DIFFER = {
    "arch_status": "since when AVX-512 was last used",
    "autogroup": "numbered by the kernel, with the nice value of the session's group, which is the destination's",
    "auxv": "AT_SYSINFO_EHDR and AT_RANDOM are compared by the process",
    "clear_refs": "is only written to",
    "cwd": "is read by the process itself",
    "fd": "is read by the process itself",
    "fdinfo": "is read by the process itself",
    "io": "counters of what was read and written",
    "ksm_merging_pages": "pages come in anew and are merged later",
    "ksm_stat": "pages come in anew and are merged later",
    "latency": "is empty on kernels without CONFIG_LATENCYTOP",
    "map_files": "is what smaps says",
    "maps": "is what smaps says",
    "mem": "is memory, which the process reads itself",
    "mountinfo": "the destination's own mounts",
    "mounts": "the destination's own mounts",
    "mountstats": "the destination's own mounts",
    "net": "the destination's own network",
    "ns": "network, PID and time namespaces are the destination's",
    "numa_maps": "where pages lie",
    "oom_score": "how much memory is in use",
    "pagemap": "where pages lie",
    "patch_state": "of live patches of the kernel",
    "root": "is read by the process itself",
    "sched": "counters, and the slice is read by the process itself",
    "schedstat": "counters",
    "smaps": "is read by the process itself",
    "smaps_rollup": "how much memory is in use",
    "stack": "where in the kernel it waits",
    "statm": "how much memory is in use",
    "timers": "is read by the process itself, which the order means nothing to",
    "syscall": "where it waits",
    "task": "every thread's files are read on their own",
    "timens_offsets": "where the destination's clocks stand elsewhere",
    "wchan": "where in the kernel it waits",
    "children": "has none",
    "status Pid": "the id in the host's namespace",
    "status Tgid": "the id in the host's namespace",
    "status PPid": "lm-restore's",
    "status Ngid": "of NUMA balancing",
    "status NStgid": "ends with the id that the process has itself, which it reads",
    "status NSpid": "ends with the id that the process has itself, which it reads",
    "status NSpgid": "ends with the id that the process has itself, which it reads",
    "status NSsid": "ends with the id that the process has itself, which it reads",
    "status State": "whether it waits at the moment",
    "status FDSize": "the room of the table, not what is in it",
    "status VmPeak": "the largest size that it ever had",
    "status VmHWM": "the most memory that it ever had",
    "status VmRSS": "how much memory is in use",
    "status RssAnon": "how much memory is in use",
    "status RssFile": "how much memory is in use",
    "status RssShmem": "how much memory is in use",
    "status VmPTE": "how much memory is in use",
    "status VmSwap": "how much memory is in use",
    "status VmLck": "is read by the process itself, mapping by mapping",
    "status SigQ": "all processes of the user count",
    "status voluntary_ctxt_switches": "counter",
    "status nonvoluntary_ctxt_switches": "counter",
    "status THP_enabled": "is read by the process itself",
    "status TracerPid": "lm-serve may still be there",
    "stat 3": "whether it waits at the moment",
    "stat 4": "lm-restore's id",
    "stat 5": "the process group's id in the host's namespace",
    "stat 6": "the session's id in the host's namespace",
    "stat 9": "flags of the kernel's own (PF_*)",
    "stat 10": "counter of page faults",
    "stat 11": "counter of page faults",
    "stat 12": "counter of page faults",
    "stat 13": "counter of page faults",
    "stat 14": "processor time begins anew",
    "stat 15": "processor time begins anew",
    "stat 16": "processor time begins anew",
    "stat 17": "processor time begins anew",
    "stat 22": "when it was started",
    "stat 24": "how much memory is in use",
    "stat 29": "the stack pointer, where it waits",
    "stat 30": "the instruction pointer, where it waits",
    "stat 35": "where in the kernel it waits",
    "stat 39": "the processor that it ran on last",
    "stat 42": "time that it waited for devices",
}


def look(pid: int) -> dict[str, str]:
    """Every file of /proc/PID and /proc/PID/task/TID that may not differ, and each field of stat and status. Threads
    are named by their order, since their ids are others on the host."""
    found = {"names of files": " ".join(sorted(os.listdir(f"/proc/{pid}")))}
    look_at(Path(f"/proc/{pid}"), "", found)
    tids = sorted((int(name) for name in os.listdir(f"/proc/{pid}/task")), key=own_id)
    for number, tid in enumerate(tids):
        look_at(Path(f"/proc/{pid}/task/{tid}"), f"thread {number} ", found)
    return found


def own_id(tid: int) -> int:
    """The id of a thread as the process itself sees it: among those of a host, the order may be another one."""
    words = re.search(r"^NSpid:(.*)$", Path(f"/proc/{tid}/status").read_text(), re.MULTILINE)
    return int(words[1].split()[-1]) if words else tid


def look_at(folder: Path, prefix: str, found: dict[str, str]) -> None:
    """Read one folder's files."""
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name in MAY_DIFFER:
            continue
        if name == "attr":
            for file in sorted(path.iterdir()):
                with contextlib.suppress(OSError):
                    found[f"{prefix}attr/{file.name}"] = file.read_text(errors="replace")
            continue
        try:
            text = os.readlink(path) if path.is_symlink() else path.read_text(errors="replace")
        except OSError as error:
            text = f"{error.strerror}"
        if name == "stat":
            # The name may hold anything (proc_pid_stat(5)); it is what comm says.
            fields = ["", "", *text.rpartition(")")[2].split()]
            found.update({f"{prefix}stat {at}": field for at, field in enumerate(fields, 1) if at > 2})
        elif name == "status":
            for line in text.splitlines():
                key, _, value = line.partition(":")
                found[f"{prefix}status {key}"] = value.strip()
        else:
            found[prefix + name] = text


def may_differ(key: str) -> bool:
    """Is it among what may differ, for the process or for a thread?"""
    return re.sub(r"^thread \d+ ", "", key) in MAY_DIFFER


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is not as it was, a line for each."""
    return [
        f"{key}: {before.get(key)!r} became {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if not may_differ(key) and before.get(key) != after.get(key)
    ]
