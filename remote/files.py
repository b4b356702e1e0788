"""--files copy: what the destination lacks of a process's files travels there, while the process runs.

Each file is named by the SHA-256 of its bytes; what the destination has already does not travel. It goes through the
agents' lines, packed by zstd. remote/needed.py is the source's side, remote/store.py the destination's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from live_migration.remote.line import Line
from live_migration.remote.needed import Content, Needed, Part
from live_migration.remote.store import Lacking
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import LocalError, Refused
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.report import show_bytes

LONG_SECONDS = 3600.0
"""So long a file may take to be read, and its SHA-256 to be made."""
COPIES = ("copy", "copy=place")
STEP = "copying files"


@dataclass(frozen=True)
class Travelling:
    """A file or directory that the destination lacks, with what is in it."""

    needed: Needed
    content: Content
    missing: bool

    def __str__(self) -> str:
        one = self.needed
        amount = "a directory, without what is in it" if one.directory else show_bytes(self.content.amount)
        how = "is missing there" if self.missing else "differs there"
        return f"{one.path} ({one.why or 'leads to others'}) {how}: {amount}"


def compare(source: Line, destination: Line, pid: int, files: str) -> tuple[list[Travelling], list[Blocker]]:
    """What of the process's files the destination lacks, and why some of that cannot be brought. Raises LocalError."""
    needed = _as(_ask(source, "uses", pid=pid)["needed"], list[Needed])
    answer = _ask(destination, "compare", needed=needed, place=files == "copy=place")
    lacking, blockers = _as(answer["lacking"], list[Lacking]), _as(answer["blockers"], list[Blocker])
    known = {one.path: one for one in needed}
    travelling = []
    for one in lacking:
        content = _as(_ask(source, "content", path=one.path)["content"], Content)
        travelling.append(Travelling(known[one.path], content, one.missing))
    return travelling, blockers


def bring(source: Line, destination: Line, pid: int, files: str, events: Events) -> bool:
    """Bring what the destination lacks, and make it ready there for lm-restore; whether it lacks anything.

    Raises LocalError, and Refused for what cannot be brought."""
    travelling, blockers = compare(source, destination, pid, files)
    if blockers:
        raise Refused(blockers, object=f"process {pid}")
    if not travelling:
        return False
    amount = sum(one.content.amount for one in travelling)
    _ask(destination, "store", bytes=amount, place=files == "copy=place")
    came = sum(_bring(source, destination, one) for one in travelling)
    _ask(destination, "lay")
    tell(travelling, events, 1)
    events.note(f"{len(travelling)} files and directories are brought, {show_bytes(came)} has travelled")
    return True


def tell(travelling: Sequence[Travelling], events: Events, level: int) -> None:
    """Say what travels."""
    for one in travelling:
        events.note(str(one), level)


def _bring(source: Line, destination: Line, one: Travelling) -> int:
    """Bring one; how many bytes have travelled. Raises LocalError."""
    path = one.needed.path
    if not _ask(destination, "expect", needed=one.needed, content=one.content)["travels"]:
        return 0
    came = offset = 0
    while offset >= 0:
        part = _as(_ask(source, "part", path=path, offset=offset)["part"], Part)
        came += len(part.packed)
        # No answer is waited for, which would cost a round trip each.
        if part.packed:
            destination.tell("take", path=path, part=part)
        offset = part.next
    if not _ask(destination, "taken", path=path)["whole"]:
        raise _error(path, "it has changed while it was copied", "try again", ExitCode.FILES)
    return came


def _ask(line: Line, what: str, **details: Any) -> dict[str, Any]:
    """Ask an agent, which may take long. Raises LocalError."""
    line.tell(what, **details)
    answer = line.wait_for(what, seconds=LONG_SECONDS)
    if answer.get("error"):
        where = line.host or "this host"
        raise _error(where, str(answer["error"]), "make room there, or copy the files by hand", ExitCode.SYSTEM)
    return answer


def _error(what: str, cause: str, remedy: str, code: ExitCode) -> LocalError:
    return LocalError(step=STEP, object=what, cause=cause, remedy=remedy, code=code)


def _as(content: Any, kind: Any) -> Any:
    """What came as JSON, as what it is. Raises ValueError."""
    return msgspec.json.decode(msgspec.json.encode(content), type=kind)
