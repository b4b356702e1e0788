"""What was brought for a process (store.py) lies over the host's files, for that process alone.

That is a mount namespace. Whoever enters it sees them, and so do its children: lm-restore, the process that it makes,
and that one's own children. The namespace ends with the last of them, and then the store is removed. What the process
itself has made or changed in it is never removed: the store is kept then, and `lm-migrate --list` names it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import sys
import time
from pathlib import Path

import msgspec

from live_migration._lm import lib
from live_migration.remote.store import FOLDER, MIRRORS, OVER, PLAN, Plan, made_in

AGAIN_SECONDS = 1.0


def enter(folder: Path) -> None:
    """From here on this process sees what is in the store over the host's files. Raises OSError."""
    plan = msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan)
    _done(lib.lm_own_mounts(), "/")
    # A directory before those below it.
    for number, directory, names in sorted(plan.mirrors, key=lambda one: one[1]):
        mirror = str(folder / MIRRORS / str(number))
        beneath = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            shown = mirror if directory == "/" else directory
            _bind(mirror, shown)
            for name in names:
                _show(f"/proc/self/fd/{beneath}/{name}", os.path.join(shown, name))
        finally:
            os.close(beneath)
        if directory == "/":
            _done(lib.lm_new_root(mirror.encode()), directory)
    for number, path in plan.over:
        _bind(str(folder / OVER / str(number)), path)


def join(pid: int) -> None:
    """From here on this process sees what process `pid` sees, for which files were laid over the host's. Raises
    OSError."""
    descriptor = os.pidfd_open(pid)
    try:
        _done(lib.lm_join_mounts(descriptor), f"process {pid}")
    finally:
        os.close(descriptor)


def is_laid(pid: int) -> bool:
    """Does the process see files of a store over the host's?"""
    with contextlib.suppress(OSError):
        return f"{FOLDER}/" in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
    return False


def _show(path: str, place: str) -> None:
    """Show a thing of the host at its place. If it has gone meanwhile, the place goes as well."""
    try:
        _bind(path, place)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            os.rmdir(place) if os.path.isdir(place) else os.unlink(place)


def _bind(path: str, place: str) -> None:
    _done(lib.lm_bind(os.fsencode(path), os.fsencode(place)), place)


def _done(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)


def users_of(folder: Path) -> list[int]:
    """The processes that see what is in a store (proc_pid_mountinfo(5))."""
    seen: dict[str, bool] = {}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace not in seen:
                seen[namespace] = f"/{folder.name}/" in Path(f"/proc/{name}/mountinfo").read_text(errors="replace")
            if seen[namespace]:
                found.append(int(name))
    return found


def remove(folder: Path) -> bool:
    """Remove a store whose process has ended, unless that has left something in it; whether it is gone. The caller
    knows that nobody sees it, this process included: what is shown in it would be removed as well."""
    with contextlib.suppress(FileNotFoundError):
        try:
            plan = msgspec.json.decode((folder / PLAN).read_bytes(), type=Plan)
        except msgspec.DecodeError:
            return False
        if any(plan.made.get(path) != found for path, found in made_in(folder).items()):
            return False
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def sweep() -> list[str]:
    """Remove the stores that nobody uses; a sentence for each one in which a process has left something."""
    sentences = []
    for folder in sorted(FOLDER.glob("[0-9a-f]*")):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not users_of(folder) and not remove(folder):
                    sentences.append(f"{folder} keeps what a process that has ended has written beside its files")
            except BlockingIOError:
                continue
            finally:
                os.close(lock)
    return sentences


def wait_and_remove(folder: Path) -> None:
    """Wait until nobody sees a store any more, and remove it."""
    while users := users_of(folder):
        watched = []
        for pid in users:
            with contextlib.suppress(OSError):
                watched.append(os.pidfd_open(pid))
        # All of them: what they have started meanwhile is found next.
        for descriptor in watched:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
            os.close(descriptor)
        if not watched:
            time.sleep(AGAIN_SECONDS)
    remove(folder)


def main() -> int:
    """Wait for the end of whoever uses the store that is named, with the lock and the namespace that were inherited."""
    os.chdir("/")
    wait_and_remove(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
