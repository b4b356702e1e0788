"""Limits and the settings around them: rlimits, umask, working and root directory, personality, oom and core
settings.

A limit that cannot be raised on the destination (CAP_SYS_RESOURCE) is set as high as it goes, with a warning: the
process ran without reaching it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from live_migration._lm import ffi
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Data, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.wire.blockers import Blocker

_NAMES = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"
LIMITS = tuple(_NAMES.split())
INFINITY = (1 << 64) - 1
DELETED = " (deleted)"
USUAL_CORE_FILTER = 0x33
UMASK = re.compile(rb"^Umask:\s*(\d+)$", re.MULTILINE)


class RemovedDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """A directory to which no path leads any more."""

    mode: int
    uid: int
    gid: int


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A process's rlimits as (soft, hard) in the kernel's order, and the settings of its environment.

    `root` is "/" unless the process has called chroot(2). Paths are bytes as the kernel tells them. `removed`: the
    working directory has been removed since the process changed to it.
    """

    limits: tuple[tuple[int, int], ...]
    umask: int = 0o022
    working_directory: bytes = b"/"
    removed: RemovedDirectory | None = None
    root: bytes = b"/"
    personality: int = 0
    oom_score_adjustment: int = 0
    core_filter: int = USUAL_CORE_FILTER


def snapshot_limits(process: ProcessSnapshot) -> Limits:
    """Everything in this file from outside. Raises ProcessGone, PermissionError."""
    directory, removed = snapshot_directory(process)
    return Limits(
        limits=parse_limits(process.read("limits").decode()),
        umask=int(process.status.get("Umask", "022"), 8),
        working_directory=directory,
        removed=removed,
        root=process.link("root"),
        personality=int(process.read("personality"), 16),
        oom_score_adjustment=int(process.read("oom_score_adj")),
        core_filter=core_filter_of(process),
    )


def snapshot_directory(process: ProcessSnapshot) -> tuple[bytes, RemovedDirectory | None]:
    """The path of the working directory, and the directory itself if it has been removed. Raises ProcessGone."""
    path = process.link("cwd")
    if not path.endswith(DELETED.encode()):
        return path, None
    try:
        found = os.stat(f"/proc/{process.pid}/cwd")
    except FileNotFoundError:
        raise ProcessGone(process.pid) from None
    if found.st_nlink:
        return path, None
    mode = stat.S_IMODE(found.st_mode)
    return path.removesuffix(DELETED.encode()), RemovedDirectory(mode=mode, uid=found.st_uid, gid=found.st_gid)


def reread(process: ProcessSnapshot, known: Limits) -> Limits:
    """What a frozen process may have changed since `known`, cheaply: directories, umask, and what it, or anybody else,
    has written to its files of /proc. The process itself tells its limits.
    """
    mask = UMASK.search(process.status_text)
    directory, removed = snapshot_directory(process)
    return msgspec.structs.replace(
        known,
        umask=int(mask[1], 8) if mask else 0o22,
        working_directory=directory,
        removed=removed,
        root=process.link("root"),
        oom_score_adjustment=int(process.read("oom_score_adj")),
        core_filter=core_filter_of(process),
    )


def core_filter_of(process: ProcessSnapshot) -> int:
    """What a core dump of the process would hold (core(5)); the usual for one without memory."""
    text = process.read("coredump_filter").strip()
    return int(text, 16) if text else USUAL_CORE_FILTER


def parse_limits(text: str) -> tuple[tuple[int, int], ...]:
    """The (soft, hard) pairs of /proc/PID/limits; its columns stand at 26 and 47 (fs/proc/base.c)."""

    def value(word: str) -> int:
        return INFINITY if word.strip() == "unlimited" else int(word)

    lines = text.splitlines()[1:]
    if len(lines) != len(LIMITS):
        raise ValueError(f"{len(lines)} limits, expected {len(LIMITS)}")
    return tuple((value(line[26:47]), value(line[47:68])) for line in lines)


def query_limits(program: Program, place: Data) -> None:
    """Rows that query all limits; `place` takes 16 pairs of 8 bytes."""
    for index, name in enumerate(LIMITS):
        label = f"prlimit64 of RLIMIT_{name}"
        program.call(label, numbers.SYS_prlimit64, 0, index, 0, place + index * 16, check=False)


def reply_limits(replies: bytes) -> tuple[tuple[int, int], ...]:
    """The (soft, hard) pairs that `query_limits` brought."""
    words = memoryview(replies).cast("Q")
    return tuple((words[index], words[index + 1]) for index in range(0, len(words), 2))


def present_limits(pid: int = 0) -> tuple[tuple[int, int], ...]:
    """The limits of one of our own processes, in the kernel's order."""
    pairs = [resource.prlimit(pid, index) for index in range(len(LIMITS))]
    return tuple((soft & INFINITY, hard & INFINITY) for soft, hard in pairs)


def reachable(
    wanted: tuple[tuple[int, int], ...], present: tuple[tuple[int, int], ...], may_raise: bool
) -> tuple[tuple[int, int], ...]:
    """The limits nearest to the wanted ones that a process with `present` can set, with or without the right to raise
    them.
    """
    if may_raise:
        return wanted
    return tuple(
        (min(soft, hard, ceiling), min(hard, ceiling))
        for (soft, hard), (_, ceiling) in zip(wanted, present, strict=True)
    )


def limit_warnings(wanted: tuple[tuple[int, int], ...], given: tuple[tuple[int, int], ...]) -> list[str]:
    """A sentence for every limit that stays lower than it was."""

    def text(value: int) -> str:
        return "unlimited" if value == INFINITY else str(value)

    return [
        f"RLIMIT_{name}: {text(got[0])} (hard {text(got[1])}) instead of {text(want[0])} (hard {text(want[1])});"
        " CAP_SYS_RESOURCE would raise it"
        for name, want, got in zip(LIMITS, wanted, given, strict=True)
        if want != got
    ]


def limits_blockers(process: ProcessSnapshot, limits: Limits) -> list[Blocker]:
    """Blockers: a working directory or root that no path leads to any more, for it was removed, unmounted, or something
    was mounted over it."""
    wanted = [("root", "root directory", limits.root)]
    if limits.removed is None:
        wanted.append(("cwd", "working directory", limits.working_directory))
    return [
        Blocker(
            object=name,
            cause=f"{os.fsdecode(path)} does not lead to it: it has been removed, unmounted or hidden by a mount, or "
            "lies outside of what lm-serve can see",
            remedy="let the process change to a directory that exists",
        )
        for link, name, path in wanted
        if not path.startswith(b"/") or not _leads_to(process.pid, link, path)
    ]


def _leads_to(pid: int, link: str, path: bytes) -> bool:
    """Does `path`, as the process sees it or as this process does, lead where /proc/PID/LINK does? Also if that has
    changed meanwhile: where it leads in the freeze is looked up there."""
    for place in (path, os.fsencode(f"/proc/{pid}/root") + path):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(place), os.stat(f"/proc/{pid}/{link}")):
                return True
    try:
        return os.readlink(os.fsencode(f"/proc/{pid}/{link}")) != path
    except FileNotFoundError:
        return True


def memory_limit_blockers(process: ProcessSnapshot, length: int) -> list[Blocker]:
    """The limit that lets the process map no `length` bytes more (mmap(2), ENOMEM), be it one of bytes or the number of
    mappings; none if it is none of these. Raises ProcessGone, OSError."""
    limits = parse_limits(process.read("limits").decode())
    soft = {name: ours for name, (ours, _) in zip(LIMITS, limits, strict=True)}
    found = []
    for name, field, what in (("AS", "VmSize", "mapped"), ("DATA", "VmData", "written to")):
        used = int(process.status[field].split()[0]) * 1024
        if soft[name] != INFINITY and used + length > soft[name]:
            found.append(
                Blocker(
                    object=f"RLIMIT_{name}",
                    cause=f"{used} of the {soft[name]} bytes that may be {what} are in use, and the move needs "
                    f"{length} more for a moment",
                    remedy=f"raise it: prlimit --pid {process.pid} --{name.lower()}=...",
                )
            )
    mappings, most = process.read("maps").count(b"\n"), int(Path("/proc/sys/vm/max_map_count").read_text())
    if mappings >= most:
        found.append(
            Blocker(
                object="vm.max_map_count",
                cause=f"the process has {mappings} mappings, of {most} that it may have, and the move needs one more "
                "for a moment",
                remedy="raise it: sysctl vm.max_map_count=...",
            )
        )
    return found


def room_for_descriptor(process: ProcessSnapshot) -> bool:
    """May the process open another descriptor (RLIMIT_NOFILE)? Raises ProcessGone, PermissionError."""
    soft, _ = parse_limits(process.read("limits").decode())[LIMITS.index("NOFILE")]
    try:
        taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
    except FileNotFoundError:
        raise ProcessGone(process.pid) from None
    return any(number not in taken for number in range(min(soft, len(taken) + 1)))


def directories(limits: Limits) -> tuple[bytes, bytes, RemovedDirectory | None]:
    """The working directory and the root, and whether the first has been removed."""
    return limits.working_directory, limits.root, limits.removed


def preflight_limits(limits: Limits, map_path: Callable[[bytes], bytes]) -> list[Blocker]:
    """Blockers on the destination: directories that are missing. `map_path` translates a path of the source."""
    blockers = []
    wanted = [("root directory", limits.root)]
    if limits.removed is None:
        wanted.append(("working directory", limits.working_directory))
    else:
        wanted.append(("directory of the removed working directory", os.path.dirname(limits.working_directory)))
    for name, path in wanted:
        mapped = map_path(path)
        if not os.path.isdir(mapped):
            blockers.append(
                Blocker(
                    object=f"{name} {os.fsdecode(mapped)}",
                    cause="there is no such directory here",
                    remedy=f"create it, or name another with --map-path {os.fsdecode(path)}=...",
                )
            )
    return blockers


def restore_directories(program: Program, limits: Limits, map_path: Callable[[bytes], bytes]) -> None:
    """Rows that change to the working directory, then to the root; run them while the husk may still
    chroot(2).
    """
    if limits.removed is None:
        program.call("chdir", numbers.SYS_chdir, program.string(map_path(limits.working_directory)))
    else:
        removed_rows(program, map_path(limits.working_directory), limits.removed)
    if limits.root != b"/":
        program.call("chroot", numbers.SYS_chroot, program.string(map_path(limits.root)))
    program.call("umask", numbers.SYS_umask, limits.umask)


def removed_rows(program: Program, path: bytes, directory: RemovedDirectory) -> None:
    """Rows that change to a directory that is removed then."""
    if os.path.lexists(path):
        # Somebody has made another one there.
        path += b".removed-%d-%s" % (os.getpid(), secrets.token_hex(4).encode())
    place, here = program.string(path), program.string(b".")
    program.call("mkdir of the removed working directory", numbers.SYS_mkdir, place, 0o700)
    program.call("chdir to the removed working directory", numbers.SYS_chdir, place)
    program.call("chown", numbers.SYS_chown, here, directory.uid, directory.gid, check=False)
    program.call("chmod", numbers.SYS_chmod, here, directory.mode)
    program.call("rmdir of the removed working directory", numbers.SYS_rmdir, place)


def restore_limits(program: Program, wanted: tuple[tuple[int, int], ...], present: tuple[tuple[int, int], ...]) -> None:
    """Rows that set the limits which differ from `present`; call with what is `reachable`, after all is laid
    out.
    """
    for index, (name, want, have) in enumerate(zip(LIMITS, wanted, present, strict=True)):
        if want != have:
            place = program.data(bytes(ffi.buffer(ffi.new("uint64_t[2]", list(want)))))
            program.call(f"prlimit64 of RLIMIT_{name}", numbers.SYS_prlimit64, 0, index, place, 0)


def restore_outside(pid: int, limits: Limits, staged: Limits | None = None) -> list[str]:
    """Set in the husk `pid`, by its /proc files, what no call of its own can, unless it is as `staged`; returns
    sentences on what could not be set.
    """
    warnings: list[str] = []
    if staged is not None and (staged.core_filter, staged.oom_score_adjustment) == (
        limits.core_filter,
        limits.oom_score_adjustment,
    ):
        return warnings
    Path(f"/proc/{pid}/coredump_filter").write_text(f"{limits.core_filter:#x}")
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(limits.oom_score_adjustment))
    except PermissionError:
        warnings.append(
            f"oom_score_adj: not lowered to {limits.oom_score_adjustment}; CAP_SYS_RESOURCE would allow it"
        )
    return warnings
