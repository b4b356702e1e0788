"""Memory that a command shares with its custodian, which others may find: whoever decides by hand (--decide)."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode

NAME = "lm-custodian"
# In memory: the disk would be waited for in the freeze, and after a reboot the process is gone as well.
FOLDER = Path("/dev/shm")
SOURCE_MEMORY, HUSK_MEMORY = "lm-custody-of-the-source", "lm-custody-of-a-husk"
HELD_FILE = "lm-held-at-the-source"


def shared_memory(name: str, size: int) -> mmap.mmap:
    """Zeroed memory that children share, and that is found by its name. Raises OSError."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class LastingMemory:
    """Memory in a file that outlives all who share it, the file, and its path; None where it has none."""

    page: mmap.mmap
    descriptor: int
    path: Path | None


def lasting_memory(name: str, size: int, pid: int) -> LastingMemory:
    """Zeroed, for process `pid`. Raises OSError."""
    descriptor, path = lasting_file(name, pid)
    os.ftruncate(descriptor, size)
    return LastingMemory(mmap.mmap(descriptor, size), descriptor, path)


def open_lasting_memory(name: str, pid: int) -> LastingMemory | None:
    """Such memory that was left; None if there is none. Raises OSError."""
    found = open_lasting(name, pid)
    return LastingMemory(mmap.mmap(found[0], 0), *found) if found else None


def lasting_file(name: str, pid: int) -> tuple[int, Path | None]:
    """An empty file for process `pid` that outlives all who have it open, and its path; None if it has none, and does
    not outlive them. Raises OSError."""
    path = FOLDER / f"{name}-{pid}-{started(pid)}"
    try:
        # Only somebody who was here before can have left it.
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o600), path
    except OSError:
        return os.memfd_create(name, os.MFD_CLOEXEC), None


def open_lasting(name: str, pid: int) -> tuple[int, Path] | None:
    """Such a file that was left, and its path; None if there is none. Raises OSError."""
    for found, path in find_files(name):
        if found == pid:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), path
    return None


def find_files(name: str) -> Iterator[tuple[int, Path]]:
    """Every file of this name that is ours and whose process lives, with the process; the others are removed."""
    for path in sorted(FOLDER.glob(f"{name}-*-*")):
        pid, begin = (int(word) if word.isdigit() else 0 for word in path.name.removeprefix(f"{name}-").split("-", 1))
        with contextlib.suppress(OSError):
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                continue
            if pid and started(pid) == begin:
                yield pid, path
            else:
                path.unlink()


def started(pid: int) -> int:
    """When a process started (proc_pid_stat(5)); 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape").rpartition(")")[2].split()[19])
    except OSError:
        return 0


def find_custodians(name: str, proc: Path = Path("/proc")) -> Iterator[tuple[int, mmap.mmap]]:
    """Every custodian that has memory of this name, and the memory. Raises LocalError (NO_PERMISSION)."""
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (process / "comm").read_text(errors="surrogateescape").strip() != NAME:
                continue
            try:
                for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
                    if f"/memfd:{name} " in line or f"{FOLDER}/{name}-" in line:
                        descriptor = os.open(process / "map_files" / _unpadded(line.split()[0]), os.O_RDWR)
                        try:
                            yield int(process.name), mmap.mmap(descriptor, 0)
                        finally:
                            os.close(descriptor)
            except PermissionError as error:
                raise _not_allowed(int(process.name), error) from None


def _unpadded(addresses: str) -> str:
    """The name of a mapping in /proc/PID/map_files, which has no leading zeros (proc_pid_map_files(5))."""
    return "-".join(f"{int(address, 16):x}" for address in addresses.split("-"))


def _not_allowed(pid: int, error: OSError) -> LocalError:
    return LocalError(
        step="deciding by hand",
        object=f"custodian {pid}",
        cause=f"its memory cannot be opened ({error.strerror})",
        remedy="run this as root",
        code=ExitCode.NO_PERMISSION,
    )


def cannot_decide(pid: int, cause: str, remedy: str) -> LocalError:
    """The refusal of --decide."""
    return LocalError(
        step="deciding by hand", object=f"process {pid}", cause=cause, remedy=remedy, code=ExitCode.REFUSED
    )
