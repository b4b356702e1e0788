"""lm-serve --decide: whom the custodians of this host wait for, and an end to that for a destination that is gone for
good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.wire.custodians import HELD_FILE, SOURCE_MEMORY, cannot_decide, find_custodians, find_files
from live_migration.wire.session import SourceRecord

ORPHAN = "process {pid}: neither its lm-serve nor its custodian lives; lm-serve --reattach {pid} goes on"
ENDED = (
    "process {pid} runs on here, as was decided, and nobody waits for the destination any more; should it come back, "
    "it keeps its stopped copy until somebody ends that there (lm-restore --decide drop PID)"
)


@dataclass(frozen=True)
class Waiting:
    """A process of which a custodian here still waits for the destination. `state`: what it shares with lm-serve."""

    custodian: int
    state: Any

    @property
    def pid(self) -> int:
        """The process."""
        return int(self.state.pid)

    def said(self) -> str:
        """The sentence about it."""
        decided, heard = SourceRecord(self.state.decision.decided), self.state.decision.heard
        if decided is SourceRecord.UNDECIDED:
            what = "runs here, and is being moved"
        elif decided is SourceRecord.NO:
            what = "runs on here; the destination has not heard yet that it was not handed over"
        elif heard == lib.LM_WORD_RESUMED:
            what = "runs at the destination, and is stopped here for good"
        elif heard == lib.LM_WORD_DROPPED:
            what = "was handed over, and dropped at the destination by hand; it is stopped here for good"
        else:
            what = "was handed over, and is stopped here for good; the destination has not said yet that it runs there"
        return f"process {self.pid} {what} (custodian {self.custodian})"


def listed() -> list[str]:
    """A sentence about everything that waits here. Raises LocalError."""
    told = list(waiting())
    known = {one.pid for one in told}
    # Finding them removes those of processes that have ended.
    held = dict(find_files(HELD_FILE))
    orphans = []
    for pid, path in find_files(SOURCE_MEMORY):
        if pid in known:
            continue
        if not _is_over(path):
            orphans.append(pid)
            continue
        for left in (path, held.get(pid)):
            if left:
                left.unlink(missing_ok=True)
    return [one.said() for one in told] + [ORPHAN.format(pid=pid) for pid in orphans]


def _is_over(path: Path) -> bool:
    """Whether nothing is left to do for a process that was not handed over: its custodian has left in order."""
    state = ffi.from_buffer("struct lm_custody *", bytearray(path.read_bytes()))
    return bool(state.over and state.decision.decided == lib.LM_DECISION_NO)


def waiting() -> Iterator[Waiting]:
    """All of them. Raises LocalError."""
    for custodian, memory in find_custodians(SOURCE_MEMORY):
        state = ffi.from_buffer("struct lm_custody *", memory)
        if state.pid:
            yield Waiting(custodian, state)


def decide(pid: int) -> list[str]:
    """Say that the destination of process `pid` is gone for good, so that its custodian waits for it no more; what to
    tell the user.

    Raises LocalError when there is nothing to wait for, and when the process was handed over: then it is the
    destination's, and its copy here never runs again."""
    found = next((one for one in waiting() if one.pid == pid), None)
    if found is None:
        raise cannot_decide(pid, "no custodian waits for its destination", "lm-serve --decide list tells who waits")
    decided = SourceRecord(found.state.decision.decided)
    if decided is SourceRecord.UNDECIDED:
        raise cannot_decide(pid, "it is being moved", "end lm-serve (SIGINT): then it runs on here")
    if decided is SourceRecord.COMMIT:
        cause = "it was handed over, so it is the destination's, and its copy here never runs again"
        raise cannot_decide(pid, cause, "look for it at the destination: lm-restore --decide list")
    found.state.decision.heard = lib.LM_WORD_DROPPED
    return [ENDED.format(pid=pid)]
