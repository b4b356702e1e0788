"""Threads that have for themselves what the threads of a process usually share: working directory and umask,
descriptors, semaphores to be undone (unshare(2), clone(2)), and namespaces (setns(2)).

A moved process gets one of each, so such a thread is a blocker. So is a process whose children are to live in another
namespace than itself, and one that changes its own after the snapshot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from live_migration._lm import ffi, lib
from live_migration.wire.blockers import Blocker

NAMESPACES = ("net", "uts", "ipc", "mnt", "cgroup", "pid", "pid_for_children", "time", "time_for_children")
"""The namespaces of a thread, by their names in /proc/PID/task/TID/ns."""
OF_THE_PROCESS = (*NAMESPACES, "user")
SHARED = (
    (lib.KCMP_FS, "working directory, root and umask"),
    (lib.KCMP_FILES, "table of descriptors"),
    (lib.KCMP_SYSVSEM, "list of semaphores to be undone"),
)
REMEDY = "let it end first, or have the program keep this in a process of its own"


@dataclass(frozen=True)
class LookAgain:
    """Stopped threads (host ids) that need a closer look: at what keeps calls from being injected, at state that
    threads share, at namespaces."""

    calls: frozenset[int]
    state: list[int]
    namespaces: list[int]


def look_at_threads(pid: int, tids: Sequence[int], administrators: Container[int]) -> LookAgain:
    """Look at all stopped threads of a process in one pass. Most processes have nothing unusual, and a thousand threads
    would take long. Only `administrators` can have namespaces of their own: setns(2) and unshare(2) need
    CAP_SYS_ADMIN."""
    found = ffi.new("unsigned char[]", [tid in administrators for tid in tids])
    lib.lm_threads_look(pid, ffi.new("int[]", tids), len(tids), found)
    flags = list(zip(tids, ffi.buffer(found)[:], strict=True))

    def those(flag: int) -> list[int]:
        return [tid for tid, unusual in flags if unusual & flag]

    return LookAgain(
        frozenset(those(lib.LM_UNUSUAL_CALLS)), those(lib.LM_UNUSUAL_STATE), those(lib.LM_UNUSUAL_NAMESPACE)
    )


def own_state_blockers(pid: int, tids: Iterable[int], administrators: Iterable[int]) -> list[Blocker]:
    """Blockers: what the threads `tids` (host ids) of process `pid` do not share with its leader, and which namespaces
    those of `administrators` have for themselves. Threads that have ended meanwhile are left out. Raises OSError if
    kcmp(2) is not allowed."""
    found = []
    for tid in tids:
        if tid == pid:
            continue
        own = [name for kind, name in SHARED if _differs(pid, tid, kind)]
        found += [_blocker(tid, name) for name in own]
    others = [tid for tid in administrators if tid != pid]
    leaders = namespaces_of(pid, NAMESPACES) if others else {}
    for tid in others:
        theirs = namespaces_of(tid, NAMESPACES)
        found += [_blocker(tid, f"{name} namespace") for name in theirs if theirs[name] != leaders.get(name)]
    return found


def for_children_blockers(pid: int, found: Mapping[str, int]) -> list[Blocker]:
    """Blockers: process `pid` with the namespaces `found` has one of another kind for its children than for itself."""
    return [
        Blocker(
            object=f"process {pid}",
            cause=f"its children are to live in another {kind} namespace than it does (unshare(2), setns(2))",
            remedy="move it before it asks for that, or run what it starts by unshare(1)",
        )
        for kind in ("pid", "time")
        if found.get(kind) != found.get(f"{kind}_for_children")
    ]


def changed_namespace_blockers(pid: int, before: Mapping[str, int]) -> list[Blocker]:
    """Blockers: namespaces of process `pid` that are not those of `before` any more."""
    now = namespaces_of(pid)
    return [
        Blocker(
            object=f"process {pid}",
            cause=f"its {kind} namespace has changed while it was being moved (unshare(2), setns(2))",
            remedy="try again",
        )
        for kind in OF_THE_PROCESS
        if before.get(kind) != now.get(kind)
    ]


def _differs(pid: int, tid: int, kind: int) -> bool:
    result = int(lib.lm_kcmp(pid, tid, kind, 0, 0))
    if result >= 0:
        return result != 0
    if result == -errno.ESRCH:
        return False
    raise OSError(-result, os.strerror(-result), f"kcmp of threads {pid} and {tid}")


def namespaces_of(tid: int, kinds: Sequence[str] = OF_THE_PROCESS) -> dict[str, int]:
    """The inodes of a thread's namespaces by their names, without those that cannot be read. One for children that no
    child has entered yet cannot (pid_namespaces(7))."""
    found = {}
    for name in kinds:
        try:
            found[name] = os.stat(f"/proc/{tid}/ns/{name}").st_ino
        except OSError:
            continue
    return found


def _blocker(tid: int, name: str) -> Blocker:
    return Blocker(object=f"thread {tid}", cause=f"it has a {name} of its own (unshare(2))", remedy=REMEDY)
