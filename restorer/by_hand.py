"""lm-restore --decide: which husks wait for the source's decision, and what becomes of one whose source is gone for
good.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.pager.keeper import find_keepers
from live_migration.restorer.custody import Fate
from live_migration.wire.custodians import HUSK_MEMORY, cannot_decide, find_custodians
from live_migration.wire.session import HuskRecord

ACTING_SECONDS = 20.0
PAUSE_SECONDS = 0.05
RISKS = {
    "run": "process {pid} runs here from now on; if the source runs on too, or is made to, there are two of it, which "
    "both write to what they share",
    "drop": "process {pid} is gone here; if the source had handed it over, its copy there is stopped for good, and the "
    "process is lost",
}
WAITS_NOT = "no custodian waits for it here"


@dataclass(frozen=True)
class Waiting:
    """A process here whose custodian still waits for something. `state`: what it shares with that."""

    custodian: int
    state: Any

    @property
    def pid(self) -> int:
        """The process."""
        return int(self.state.pid)

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody here knows what the source has decided."""
        kept = self.state.state == HuskRecord.IN_DOUBT or self.state.fate == Fate.KEPT
        return bool(kept and self.state.decision.decided == lib.LM_DECISION_UNDECIDED)

    def said(self) -> str:
        """The sentence about it."""
        record, fate = HuskRecord(self.state.state), Fate(self.state.fate)
        if self.is_in_doubt:
            what = "is kept, stopped, until the source is reached and says what it has decided"
        elif record is HuskRecord.LET_GO or fate is Fate.LET_GO:
            what = "runs here; the source has not heard that yet"
        elif fate is Fate.KILLED:
            what = "is gone here; the source has not heard that yet"
        else:
            what = "is being moved"
        return f"process {self.pid} {what} (custodian {self.custodian})"


@dataclass(frozen=True)
class Forsaken:
    """A process that runs here, whose pages nobody brings any more."""

    pid: int
    keeper: int
    complete: bool

    def said(self) -> str:
        """The sentence about it."""
        lack = "has every page, which nobody tells the source"
        what = lack if self.complete else "waits for pages that nobody brings"
        return f"process {self.pid} {what} (keeper {self.keeper}); lm-restore --reattach {self.pid} goes on"


def listed() -> list[str]:
    """A sentence about everything that waits here. Raises LocalError."""
    forsaken = [Forsaken(one.moved, one.pid, one.complete) for one in find_keepers() if not one.lives]
    return [one.said() for one in waiting()] + [one.said() for one in forsaken]


def waiting() -> Iterator[Waiting]:
    """All whose custodian waits. Raises LocalError."""
    for custodian, memory in find_custodians(HUSK_MEMORY):
        state = ffi.from_buffer("struct lm_husk_custody *", memory)
        if state.pid and state.custodian == custodian:
            yield Waiting(custodian, state)


def decide(pid: int, how: str) -> list[str]:
    """Let the husk `pid` "run", or "drop" it, in the place of a source that is gone for good; what to tell the user.
    Its custodian, or the worker, acts on it at once, and tells the source should that come back.

    Raises LocalError when it is not in doubt, or known what the source has decided."""
    found = next((one for one in waiting() if one.pid == pid), None)
    if found is None:
        raise cannot_decide(pid, WAITS_NOT, "lm-restore --decide list tells who waits")
    if not found.is_in_doubt:
        raise cannot_decide(pid, f"{found.said()}: there is nothing to decide", "leave it as it is")
    wanted = lib.LM_DECISION_COMMIT if how == "run" else lib.LM_DECISION_NO
    found.state.decision.by_hand = 1
    if not lib.lm_decision_decide(ffi.addressof(found.state, "decision"), wanted):
        raise cannot_decide(pid, "the source has just said what it has decided", "leave it as it is")
    end = time.monotonic() + ACTING_SECONDS
    while not _is_done(found.state) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
    return [RISKS[how].format(pid=pid)]


def finished(pid: int) -> None:
    """The source's copy of process `pid` has left: its custodian, if there is one, has nothing to tell any more."""
    for one in waiting():
        if one.pid == pid:
            one.state.decision.heard = lib.LM_WORD_ACKNOWLEDGED


def _is_done(state: Any) -> bool:
    """Whether the custodian, or the worker, has acted."""
    acted = (HuskRecord.LET_GO, HuskRecord.DOOMED)
    return HuskRecord(state.state) in acted or Fate(state.fate) in (Fate.LET_GO, Fate.KILLED)
