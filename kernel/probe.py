"""What this host lets us do, found by trying, and what helps where it does not.

A Lack has the three parts of a blocker: object, cause and remedy. What a newer kernel merely does faster is
no lack.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from live_migration._lm import lib
from live_migration.kernel.errors import ProcessGone

_UNPRIVILEGED_USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")
_CAP_SYS_PTRACE = 19
_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
# The errors for those who have no permission, and for what the kernel was built without.
_NOT_ALLOWED = (errno.EPERM, errno.EACCES)
_NOT_THERE = (errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOENT)


@dataclass(frozen=True)
class Lack:
    """Something that this host does not let us do."""

    object: str
    cause: str
    remedy: str


def tracing(pid: int) -> Lack | None:
    """What forbids tracing a process. Opening /proc/PID/mem takes the same right as ptrace does (ptrace(2)).

    Raises ProcessGone.
    """
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid) from None
    except PermissionError as error:
        remedy = "run as root or as its owner with CAP_SYS_PTRACE"
        scope = _number(_PTRACE_SCOPE)
        if scope:
            remedy += f"; sysctl kernel.yama.ptrace_scope=0 (it is {scope}) lets an owner trace without"
        return Lack(f"process {pid}", f"may not be traced ({error.strerror})", remedy)
    return None


def userfaultfd() -> Lack | None:
    """What forbids a userfaultfd that waits for faults of the kernel, too, and tells of forks and remaps."""
    error = -int(lib.lm_probe_userfaultfd())
    if error:
        device = -int(lib.lm_probe_userfaultfd_device())
        if error in _NOT_THERE and device in _NOT_THERE:
            cause = f"this kernel has none ({os.strerror(error)})"
            return Lack("userfaultfd", cause, "boot a kernel with CONFIG_USERFAULTFD")
        if device:
            return Lack("userfaultfd", f"may not be used ({os.strerror(error)})", _userfaultfd_remedy())
    error = -int(lib.lm_probe_userfaultfd_events())
    if error in _NOT_ALLOWED:
        return Lack("userfaultfd", f"may not tell of forks ({os.strerror(error)})", "give lm-restore CAP_SYS_PTRACE")
    if error:
        return Lack(
            "userfaultfd",
            f"this kernel's does not tell of fork, mremap, madvise and munmap ({os.strerror(error)})",
            "boot Linux 4.11 or newer",
        )
    return None


def chosen_ids() -> Lack | None:
    """What forbids starting a process with an id of our choice (clone3(2), set_tid)."""
    return _lack(
        lib.lm_probe_chosen_id,
        "process ids",
        "choosing them",
        "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        "Linux 5.5 or newer",
    )


def pid_namespaces() -> Lack | None:
    """What forbids a PID namespace with a /proc of its own."""
    return _lack(
        lib.lm_probe_pid_namespace, "PID namespaces", "making one", "CAP_SYS_ADMIN", "a kernel with CONFIG_PID_NS"
    )


def time_namespaces() -> Lack | None:
    """What forbids a time namespace, in which clocks go on from the values of another host."""
    return _lack(
        lib.lm_probe_time_namespace, "time namespaces", "making one", "CAP_SYS_ADMIN", "a kernel with CONFIG_TIME_NS"
    )


def fetching_descriptors() -> Lack | None:
    """What forbids taking descriptors from a process that we may trace (pidfd_getfd(2))."""
    return _lack(
        lib.lm_probe_descriptor_fetching,
        "pidfd_getfd",
        "taking a process's descriptors",
        "CAP_SYS_PTRACE",
        "Linux 5.6 or newer",
    )


def comparing() -> Lack | None:
    """What forbids telling whether two processes share an object (kcmp(2))."""
    return _lack(
        lib.lm_probe_comparing,
        "kcmp",
        "comparing what processes hold",
        "CAP_SYS_PTRACE",
        "a kernel with CONFIG_KCMP",
    )


def destination_lacks(*, keep_ids: bool = False, namespace: bool = False, clocks: bool = False) -> list[Lack]:
    """All that stands in the way of restoring any process here; with its ids, in a PID namespace, with its
    clocks."""
    probes: list[Callable[[], Lack | None]] = [userfaultfd, fetching_descriptors]
    probes += [chosen_ids] if keep_ids else []
    probes += [pid_namespaces] if namespace else []
    probes += [time_namespaces] if clocks else []
    return [lack for probe in probes if (lack := probe()) is not None]


def source_lacks(pid: int) -> list[Lack]:
    """All that stands in the way of reading and stopping a process. Raises ProcessGone."""
    found = [tracing(pid), fetching_descriptors(), comparing()]
    return [lack for lack in found if lack is not None]


def _userfaultfd_remedy() -> str:
    if _has_capability(_CAP_SYS_PTRACE):
        return "let lm-restore read and write /dev/userfaultfd: a filter (seccomp(2)) forbids it the system call"
    remedy = "give lm-restore CAP_SYS_PTRACE"
    if _number(_UNPRIVILEGED_USERFAULTFD) == 0:
        remedy += (
            "; sysctl vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd alone are not enough, since"
            " following a process that forks needs the capability"
        )
    return remedy


def _has_capability(number: int) -> bool:
    text = Path("/proc/self/status").read_text()
    effective = next(line for line in text.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)


def _lack(probe: Callable[[], int], name: str, doing: str, capability: str, kernel: str) -> Lack | None:
    error = -int(probe())
    if error == 0:
        return None
    if error in _NOT_THERE:
        return Lack(name, f"this kernel has no way of {doing} ({os.strerror(error)})", f"boot {kernel}")
    if error in _NOT_ALLOWED:
        return Lack(name, f"{doing} is not allowed ({os.strerror(error)})", f"run with {capability}")
    return Lack(name, f"{doing} failed ({os.strerror(error)})", "look at the limits of this host and its user")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
