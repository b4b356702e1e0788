"""Which processes were moved to this host: a small file for each, in /run, as long as the process lives."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import msgspec

FOLDER = Path("/run/live-migration/moved")


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A process that was moved here.

    pid         as this host knows it
    birth       its start time (proc_pid_stat(5), field 22): ids are used again
    source      the host that it came from, and source_pid its id there
    time        when it resumed, seconds since 1970
    """

    pid: int
    birth: int
    source: str
    source_pid: int
    time: float


def record(pid: int, source: str, source_pid: int) -> None:
    """The process `pid` has been moved here. Where nothing can be written, --list does without."""
    with contextlib.suppress(OSError):
        one = Moved(pid=pid, birth=_birth(pid), source=source, source_pid=source_pid, time=time.time())
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = FOLDER / f".{pid}.{os.getpid()}"
        new.write_bytes(msgspec.json.encode(one))
        os.rename(new, FOLDER / str(pid))


def listed() -> list[str]:
    """A sentence for each process that was moved here and lives. What is left of others is removed."""
    sentences = []
    for path in sorted(FOLDER.glob("[0-9]*")):
        try:
            one = msgspec.json.decode(path.read_bytes(), type=Moved)
            alive = _birth(one.pid) == one.birth
            name = Path(f"/proc/{one.pid}/comm").read_text(errors="replace").strip() if alive else ""
            state = "pulls pages" if alive and pulls_pages(one.pid) else "is complete"
        except (OSError, ValueError, msgspec.DecodeError):
            alive = False
        if not alive:
            path.unlink(missing_ok=True)
            continue
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.time))
        sentences.append(f"process {one.pid} ({name}) came from {one.source}, {one.source_pid} there, {since}; {state}")
    return sentences


def pulls_pages(pid: int) -> bool:
    """Are pages of its memory still missing? Then a mapping is registered with a userfaultfd ("um", proc_pid_smaps(5)).
    Raises OSError."""
    with open(f"/proc/{pid}/smaps", "rb") as file:
        return any(line.startswith(b"VmFlags:") and b"um" in line.split() for line in file)


def _birth(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
