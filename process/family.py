"""What ties a process to others, or sets it apart from those that can be moved. Each is a blocker with a name.

All of it is read from outside. What is slow (the other processes of the host) belongs to the snapshot of the live
process.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.scope import HostScan
from live_migration.wire.blockers import Blocker

KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h
UNINTERRUPTIBLE_SECONDS = 2.0
ELF_MAGIC = b"\x7fELF"
ELF_CLASS_OFFSET = 4
ELF_CLASS_64 = 2
SHADOW_STACK = "shstk"
ALL_ADDRESS_BITS = (1 << 64) - 1
# Namespaces that a process has to share with lm-serve, with nsenter(1)'s option and what is different in another one.
NAMESPACES = (
    ("mnt", "mount", "its paths lead elsewhere"),
    ("ipc", "ipc", "its System V objects are others"),
    ("uts", "uts", "its host name is another"),
    ("cgroup", "cgroup", "it sees its control groups from elsewhere"),
)


def process_blockers(process: ProcessSnapshot, scan: HostScan) -> list[Blocker]:
    """The blockers of this member as a whole: it cannot be moved at all, or not with what it has now. Raises
    ProcessGone."""
    pid, stat = process.pid, process.stat
    name = f"process {pid}"
    if int(stat[8]) & KERNEL_THREAD:
        return [Blocker(object=name, cause="it is a kernel thread", remedy="choose a process of a program")]
    if stat[2] in ("Z", "X"):
        return [
            Blocker(
                object=name,
                cause="it has ended and only waits for its parent to take note",
                remedy="choose a process that runs",
            )
        ]
    if pid in ancestors():
        return [
            Blocker(
                object=name,
                cause="lm-serve was started by it, or by a process of it",
                remedy="start lm-serve from another session",
            )
        ]
    if pid == os.getpid():
        return [Blocker(object=name, cause="it is lm-serve itself", remedy="choose another process")]
    found = [
        *_tracer(process.status),
        *seccomp_blockers(process),
        *_architecture(process),
        *child_blockers(pid, scan),
        *_namespaces(process),
    ]
    if stays_in_the_kernel(process):
        # This is a blocker, since the freeze would wait for it.
        found.append(
            Blocker(
                object=name,
                cause="it waits in the kernel for a device or a file system and cannot be stopped",
                remedy="try again when the operation is over",
            )
        )
    return found


def stays_in_the_kernel(process: ProcessSnapshot) -> bool:
    """Is its first thread in an uninterruptible wait that does not end soon? File operations make many short ones.
    Raises ProcessGone."""
    end = time.monotonic() + UNINTERRUPTIBLE_SECONDS
    stat = process.stat
    while stat[2] == "D":
        if time.monotonic() > end:
            return True
        time.sleep(0.005)
        stat = ProcessSnapshot(process.pid).stat
    return False


def ancestors() -> list[int]:
    """The ids of this process's parent, its parent, and so on."""
    line = []
    pid = os.getppid()
    while pid > 0:
        line.append(pid)
        try:
            pid = int(ProcessSnapshot(pid).stat[3])
        except ProcessGone:
            break
    return line


def _tracer(status: dict[str, str]) -> list[Blocker]:
    tracer = int(status.get("TracerPid", "0"))
    if not tracer:
        return []
    return [
        Blocker(
            object="tracer",
            cause=f"process {tracer} ({ProcessSnapshot(tracer).name}) traces it",
            remedy="detach the debugger or tracer first",
        )
    ]


def seccomp_blockers(process: ProcessSnapshot) -> list[Blocker]:
    """Blockers: strict mode of any thread (seccomp(2)), which allows it next to nothing. Raises ProcessGone."""
    found = []
    for tid in process.thread_ids:
        try:
            mode = process.thread_status(tid).get("Seccomp", "0")
        except ProcessGone:
            continue
        if mode == "1":
            found.append(
                Blocker(
                    object="seccomp",
                    cause=f"thread {tid} may read, write and end, and do nothing else (strict mode)",
                    remedy="run the process without it",
                )
            )
            break
    return found


def is_32_bit(process: ProcessSnapshot) -> bool:
    """Whether the process's program is one for a 32-bit processor."""
    try:
        with open(f"/proc/{process.pid}/exe", "rb") as file:
            header = file.read(ELF_CLASS_OFFSET + 1)
    except FileNotFoundError:
        return False
    return header[:4] == ELF_MAGIC and header[ELF_CLASS_OFFSET] != ELF_CLASS_64


def _architecture(process: ProcessSnapshot) -> list[Blocker]:
    found, status = [], process.status
    if is_32_bit(process):
        found.append(
            Blocker(
                object="program",
                cause="it is a 32-bit program",
                remedy="run its 64-bit build",
            )
        )
    if SHADOW_STACK in status.get("x86_Thread_features", "").split():
        found.append(
            Blocker(
                object="shadow stack",
                cause="the process runs with a shadow stack, which cannot be given to another",
                remedy="start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            )
        )
    if int(status.get("untag_mask", hex(ALL_ADDRESS_BITS)), 16) != ALL_ADDRESS_BITS:
        found.append(
            Blocker(
                object="address tagging",
                cause="the process uses pointers with tags in them (LAM), which a moved one would lose",
                remedy="start it without (GLIBC_TUNABLES, or the sanitizer that asked for it)",
            )
        )
    return found + _protection_keys(process.pid)


def _protection_keys(pid: int) -> list[Blocker]:
    if b" ospke " not in Path("/proc/cpuinfo").read_bytes().partition(b"\n\n")[0].replace(b"\n", b" \n"):
        return []
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            if line.startswith(b"ProtectionKey:") and line.split()[1] != b"0":
                return [
                    Blocker(
                        object="protection keys",
                        cause="memory of the process stands under protection keys (pkeys(7))",
                        remedy="run the program without them",
                    )
                ]
    return []


def has_our_mounts(process: ProcessSnapshot) -> bool:
    """Do the paths of all that the process uses lead where ours do, though it lives in another mount namespace?

    A process that was moved into a PID namespace has one for its /proc alone. What has been mounted on the host since
    then matters only where the process has a file. What is below /proc is never opened for another process. Raises
    ProcessGone.
    """
    different = mounts(process) ^ mounts(ProcessSnapshot(os.getpid()))
    points = {point.rstrip(b"/") + b"/" for (_, _, point), _ in different}
    return not any((path + b"/").startswith(point) for point in points for path in paths_in_use(process))


def mounts(process: ProcessSnapshot) -> set[tuple[tuple[bytes, ...], tuple[bytes, ...]]]:
    """What is mounted where, as far as the process sees, except on /proc, and what each is mounted on: device,
    directory of the file system, mount point (proc_pid_mountinfo(5)). Raises ProcessGone.
    """
    lines = [line.split() for line in process.read("mountinfo").splitlines()]
    known = {fields[0]: tuple(fields[2:5]) for fields in lines}
    return {(tuple(fields[2:5]), known.get(fields[1], ())) for fields in lines if fields[4] != b"/proc"}


def paths_in_use(process: ProcessSnapshot) -> set[bytes]:
    """The paths of the files that the process has mapped and open, and of its directories. Raises ProcessGone."""
    found = {process.link("cwd"), process.link("root"), process.link("exe")}
    found.update(fields[5] for line in process.read("maps").splitlines() if len(fields := line.split(None, 5)) == 6)
    for number in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(ProcessGone, OSError):
            found.add(process.link(f"fd/{number}"))
    return {path for path in found if path.startswith(b"/")}


def _namespaces(process: ProcessSnapshot) -> list[Blocker]:
    others = [
        (kind, option, meaning)
        for kind, option, meaning in NAMESPACES
        if not process.in_our_namespace(kind) and not (kind == "mnt" and has_our_mounts(process))
    ]
    options = [f"--{option}" for _, option, _ in others]
    target = str(process.pid)
    if not process.in_our_namespace("pid"):
        # Its /proc, which lm-serve reads there, is that of its PID namespace, and knows it by another id.
        options.append("--pid")
        target = process.status["NSpid"].split()[-1]
    command = f"nsenter --target {process.pid} {' '.join(options)} -- lm-serve {target}"
    return [
        Blocker(
            object=f"{kind} namespace",
            cause=f"the process lives in another one than lm-serve, and {meaning}",
            remedy=f"run lm-serve inside it: {command}",
        )
        for kind, _, meaning in others
    ]


def child_blockers(pid: int, scan: HostScan) -> list[Blocker]:
    """Blockers: living and dead children of any of its threads that do not move with it. Raises ProcessGone."""
    found = []
    for child in scan.children(pid):
        other = ProcessSnapshot(child)
        try:
            state = other.stat[2]
        except ProcessGone:
            continue
        if state in ("Z", "X"):
            cause, remedy = "a child that has ended is not yet waited for", "let the process wait for it (wait(2))"
        else:
            cause, remedy = "it is a child of the process and would stay behind", "let it end first"
        found.append(Blocker(object=f"process {child} ({other.name})", cause=cause, remedy=remedy))
    return found


def sharing_blockers(process: ProcessSnapshot, scan: HostScan) -> list[Blocker]:
    """Blockers: processes that stay and share memory, descriptors or directories with this member, or that it traces.
    Raises ProcessGone."""
    shared = [
        Blocker(
            object=f"process {one.pid} ({one.holder.name})",
            cause=f"it shares its {' and '.join(what)} with the process (clone(2))",
            remedy="let it end first",
        )
        for one, what in scan.sharing(process.pid)
    ]
    traced = [
        Blocker(
            object=f"process {one.pid} ({one.holder.name})",
            cause="the process traces it",
            remedy="end the debugging or tracing first",
        )
        for one in scan.traced_by(process.thread_ids)
    ]
    return shared + traced
