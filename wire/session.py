"""The session of one side. Both sides run on one table. For each state it tells whose copy of the process may run,
what the custodian and the user are told, and where an event leads.

`python -m live_migration.wire.session` prints docs/protocol.md: this table, the handshake and the messages.

Only the side itself moves its state; the other side's is known by the messages alone. Whoever thaws the source or
destroys the husk asks the table first. There is one event COMMIT on each side, and no way back after it: no row leads
from COMMITTED and later states to ABORTED.
"""

from __future__ import annotations

import enum
import inspect
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from live_migration.wire import handshake, messages
from live_migration.wire.errors import ConnectionLost, LocalError, Refused, RemoteError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Side
from live_migration.wire.report import Report


class State(enum.Enum):
    """Where a side is; the value says what that means."""

    # An Enum's own is a Python function, which takes longer than everything else that is done with a state.
    __hash__ = object.__hash__

    LOOKING = "the side reads the process, or its description, and finds every blocker"
    CONNECTING = "the two sides connect and authenticate"
    CONNECTED = "the two sides are connected; the source rereads the process, for it may have waited for long"
    STAGING = "the destination compares and prepares everything that can be prepared while the source runs"
    STAGED = "the husk stands; what cannot be paged on demand travels; the source still runs"
    COPYING = "rounds of pages travel; the source still runs"
    FREEZING = "a freeze is announced: both sides rehearse, and then the threads are stopped"
    FROZEN = "the process stands still and is described"
    DESCRIBED = "the final description travels or is being applied"
    ARMED = "the husk is parked and outlives the worker; READY travels"
    READY = "the destination only has to resume, and the source only has to decide"
    PARKED = "the source's threads wait for the word that keeps them or sends them home"
    REFUSED = "the source hands nothing over: it has decided that, and then thaws"
    IN_DOUBT = "the connection ended between READY and COMMIT: the husk is kept, does not run, and the source is asked"
    COMMITTED = "the destination's copy is the process; the source's is inert"
    RESUMED = "the process runs at the destination, its memory follows"
    STALLED = "the connection is lost: both sides keep everything, and connect again"
    COMPLETE = "every page is at the destination; the source's copy has left"
    ABORTED = "it ended before COMMIT: the source runs on, the husk is gone"
    ENDED_BY_HAND = "the husk that was kept in doubt is gone: somebody ended it who knows that the source runs on"


class Event(enum.Enum):
    """What changes a state; the value says it in words."""

    __hash__ = object.__hash__

    LOOKED_AT = "no blocker was found"
    CONNECTED = "the connections are made and authenticated"
    HUSK_STARTED = "no blocker was found here, and the husk is started"
    STAGED = "Staged"
    PUSHED = "Pushed, for what cannot be paged on demand"
    FREEZE = "Freezing"
    STOPPED = "every thread has stopped"
    FINAL = "Final"
    ARMED = "the worker's death does not kill the husk any more"
    READY = "Ready, the whole of it"
    PARKED = "every thread waits for the word"
    COMMIT = "the source decides so, by one compare-and-swap; the destination hears the token of COMMIT on DECISION"
    RESUMED = "Resumed"
    FINISHED = "Finished"
    THAWED = "the threads run on as before"
    FAILED = "an error here, a blocker, or a time limit"
    ABORTED = "Abort or Blockers from the other side; from READY on, the token of NO on DECISION"
    CANCELLED = "SIGINT, SIGTERM or SIGHUP"
    RECONNECTED = "after COMMIT, the connections are made again (wire/again.py)"
    LOST = "the connection ended, in order (FIN) or not; that says nothing about the decision"
    ENDED_BY_HAND = "SIGKILL for the process that is kept in doubt"


class SourceRecord(enum.IntEnum):
    """What the source decides, in memory that lm-serve and its custodian share: wire/decision.h."""

    UNDECIDED = 0
    COMMIT = 1
    NO = 2


class HuskRecord(enum.IntEnum):
    """What the husk's custodian is told, in memory that it shares with the worker: restorer/custody.h."""

    UNARMED = 0
    ARMED = 1
    COMMITTED = 2
    LET_GO = 3
    DOOMED = 4
    IN_DOUBT = 5


Record = SourceRecord | HuskRecord


@dataclass(frozen=True)
class Row:
    """What holds for one side in a state.

    runs     whose copy may run, as far as this side can know; None: that is undecided, and nobody's may
    ways     event -> next state; the first one is the way of a migration that succeeds
    record   what the custodian is told; None: what it was told before holds on
    said     what the user is told of the process when the migration stays in this state, or ends in it
    code     the exit status when the other side, or the worker, is lost in this state
    phase    the phase of the report that begins here; empty: the one before lasts on
    outcome  of the report
    """

    runs: Side | None
    ways: Mapping[Event, State]
    record: Record | None = None
    said: str = ""
    code: ExitCode = ExitCode.LOST_BEFORE
    phase: str = ""
    outcome: str = "failed"


Table = Mapping[State, Row]

ENDINGS = (Event.FAILED, Event.ABORTED, Event.CANCELLED, Event.LOST)
"""What ends a migration, unless a row says otherwise."""
_ABORTS = dict.fromkeys(ENDINGS, State.ABORTED)
_REFUSES = dict.fromkeys(ENDINGS, State.REFUSED)
_STALLS = dict.fromkeys((Event.LOST, Event.FAILED), State.STALLED)


def _source_runs(ways: dict[Event, State], *, record: Record | None = None, phase: str = "") -> Row:
    """A row of the source while its copy may run."""
    said = "process {pid} runs on here"
    return Row(Side.SOURCE, ways, record, said, phase=phase)


def _source_kept(ways: dict[Event, State], *, record: Record | None = None, phase: str = "", outcome: str) -> Row:
    """A row of the source after COMMIT: nothing ends lm-serve there, which has the memory, and nothing lets the
    process run."""
    said = (
        "process {pid} is kept here, stopped for good, with the memory that the destination does not have yet; "
        "it never runs here again"
    )
    return Row(Side.DESTINATION, ways, record, said, ExitCode.LOST_AFTER, phase, outcome)


SOURCE: Table = {
    State.LOOKING: _source_runs({Event.LOOKED_AT: State.CONNECTING, **_ABORTS}, record=SourceRecord.UNDECIDED),
    State.CONNECTING: _source_runs({Event.CONNECTED: State.CONNECTED, **_ABORTS}),
    State.CONNECTED: _source_runs({Event.LOOKED_AT: State.STAGING, **_ABORTS}),
    State.STAGING: _source_runs({Event.STAGED: State.STAGED, **_ABORTS}, phase="staging"),
    State.STAGED: _source_runs({Event.PUSHED: State.COPYING, **_ABORTS}),
    State.COPYING: _source_runs({Event.FREEZE: State.FREEZING, **_ABORTS}, phase="rounds"),
    State.FREEZING: _source_runs(
        {Event.STOPPED: State.FROZEN, Event.FREEZE: State.FREEZING, **_ABORTS}, phase="freezing"
    ),
    # A process with a blocker that passes by itself runs on for a moment, and is frozen again.
    State.FROZEN: _source_runs({Event.FINAL: State.DESCRIBED, Event.THAWED: State.FREEZING, **_REFUSES}),
    # From here on the destination can get ready: the no is recorded before anything thaws.
    State.DESCRIBED: Row(None, {Event.READY: State.READY, **_REFUSES}),
    State.READY: Row(None, {Event.PARKED: State.PARKED, **_REFUSES}),
    State.PARKED: Row(None, {Event.COMMIT: State.COMMITTED, **_REFUSES}),
    State.COMMITTED: _source_kept(
        {Event.RESUMED: State.RESUMED, Event.FINISHED: State.COMPLETE, Event.CANCELLED: State.COMMITTED, **_STALLS},
        record=SourceRecord.COMMIT, phase="committed", outcome="failed",
    ),
    State.RESUMED: _source_kept(
        {Event.FINISHED: State.COMPLETE, Event.CANCELLED: State.RESUMED, Event.RESUMED: State.RESUMED, **_STALLS},
        outcome="failed",
    ),
    State.STALLED: _source_kept(
        {Event.RECONNECTED: State.RESUMED, Event.CANCELLED: State.STALLED, **_STALLS}, outcome="stalled"
    ),
    State.COMPLETE: Row(Side.DESTINATION, {}, phase="complete", outcome="complete"),
    State.REFUSED: _source_runs({Event.THAWED: State.ABORTED, **_ABORTS}, record=SourceRecord.NO),
    State.ABORTED: _source_runs({}),
}  # fmt: skip


def _husk_waits(ways: dict[Event, State], *, record: Record | None = None, phase: str = "") -> Row:
    """A row of the destination while the husk may be destroyed, and nothing is lost with it."""
    said = "the process runs on at the source"
    return Row(Side.SOURCE, ways, record, said, phase=phase)


DESTINATION: Table = {
    State.CONNECTING: _husk_waits({Event.CONNECTED: State.LOOKING, **_ABORTS}, record=HuskRecord.UNARMED),
    State.LOOKING: _husk_waits({Event.HUSK_STARTED: State.STAGING, **_ABORTS}, phase="preflight"),
    State.STAGING: _husk_waits({Event.STAGED: State.STAGED, **_ABORTS}, phase="staging"),
    State.STAGED: _husk_waits({Event.PUSHED: State.COPYING, **_ABORTS}),
    State.COPYING: _husk_waits({Event.FREEZE: State.FREEZING, **_ABORTS}, phase="staged"),
    State.FREEZING: _husk_waits({Event.FINAL: State.DESCRIBED, Event.FREEZE: State.FREEZING, **_ABORTS}),
    State.DESCRIBED: _husk_waits({Event.ARMED: State.ARMED, **_ABORTS}),
    State.ARMED: _husk_waits({Event.READY: State.READY, **_ABORTS}, record=HuskRecord.ARMED),
    # Only the source's two tokens decide. The end of a connection says nothing, whether it is in order or not: COMMIT
    # may have been said, and lost in a tunnel that ended. So the husk neither runs nor is destroyed before one is
    # heard. A signal is kept for it.
    State.READY: Row(
        None,
        {
            Event.COMMIT: State.COMMITTED, Event.ABORTED: State.ABORTED, Event.CANCELLED: State.READY,
            Event.LOST: State.IN_DOUBT, Event.FAILED: State.IN_DOUBT, Event.ENDED_BY_HAND: State.ENDED_BY_HAND,
        },
        code=ExitCode.IN_DOUBT,
    ),
    State.IN_DOUBT: Row(
        None,
        {
            Event.COMMIT: State.COMMITTED, Event.ABORTED: State.ABORTED, Event.ENDED_BY_HAND: State.ENDED_BY_HAND,
        },
        HuskRecord.IN_DOUBT,
        "process {pid} runs on, here or at the source, as soon as the two hosts reach each other",
        ExitCode.IN_DOUBT, outcome="stalled",
    ),
    State.COMMITTED: Row(
        Side.DESTINATION, {Event.RESUMED: State.RESUMED}, HuskRecord.COMMITTED, code=ExitCode.LOST_AFTER
    ),
    State.RESUMED: Row(
        Side.DESTINATION, {Event.FINISHED: State.COMPLETE, Event.LOST: State.STALLED}, HuskRecord.LET_GO,
        "process {pid} runs until it needs a page that is missing, and waits there; it reads no zeros",
        ExitCode.LOST_AFTER, phase="resumed",
    ),
    # A process that ends needs its pages no more.
    State.STALLED: Row(
        Side.DESTINATION, {Event.RECONNECTED: State.RESUMED, Event.FINISHED: State.COMPLETE}, None,
        "process {pid} goes on until it needs a page that is missing, and waits there; nothing is lost while lm-serve "
        "and this host live",
        ExitCode.LOST_AFTER, outcome="stalled",
    ),
    State.COMPLETE: Row(Side.DESTINATION, {}, code=ExitCode.LOST_AFTER, phase="complete", outcome="complete"),
    State.ABORTED: _husk_waits({}, record=HuskRecord.DOOMED),
    State.ENDED_BY_HAND: Row(Side.SOURCE, {}, HuskRecord.DOOMED, code=ExitCode.IN_DOUBT, outcome="stalled"),
}  # fmt: skip

TABLES: Mapping[Side, Table] = {Side.SOURCE: SOURCE, Side.DESTINATION: DESTINATION}
FIRST = {Side.SOURCE: State.LOOKING, Side.DESTINATION: State.CONNECTING}


class ImpossibleEvent(Exception):
    """The state has no row for an event: a bug of this side."""


def _unheard(text: str) -> None:
    """Tell nobody."""


def _unrecorded(record: Record) -> None:
    """There is no custodian to tell."""


@dataclass
class Session:
    """One side's state.

    note     says a sentence to the user
    told     is called with what the custodian is to know, before anyone acts on the new state
    moments  when each phase of the report began (CLOCK_MONOTONIC, nanoseconds)
    row      what the table says of the state
    """

    side: Side
    state: State
    note: Callable[[str], None] = _unheard
    told: Callable[[Record], None] = _unrecorded
    moments: dict[str, int] = field(default_factory=dict)
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.row = TABLES[self.side][self.state]

    def happened(self, event: Event) -> State:
        """Follow the row's way for `event`; the new state.

        Raises ImpossibleEvent if there is none. After COMMIT nothing may fail any more: then that is a note, and the
        state stays."""
        following = self.row.ways.get(event)
        if following is None:
            text = f"{self.side.name.lower()} in {self.state.name}: {event.name} has no row"
            if not self.committed:
                raise ImpossibleEvent(text)
            self.note(text)
            return self.state
        row = TABLES[self.side][following]
        self.state, self.row = following, row
        if row.record is not None:
            self.told(row.record)
        if row.phase:
            self.moments.setdefault(row.phase, time.monotonic_ns())
        return following

    def ended_by(self, error: BaseException) -> State:
        """The migration ends by this error, unless it has ended already."""
        return self.happened(ending_of(error)) if self.row.ways else self.state

    @property
    def committed(self) -> bool:
        """Whether the destination's copy is the process, and nothing may fail any more."""
        return self.row.runs is Side.DESTINATION

    def may_thaw(self) -> bool:
        """May the source's copy run on? From the final description on, only when the no is recorded; from COMMIT on,
        never."""
        return self.side is self.row.runs is Side.SOURCE

    def may_destroy(self) -> bool:
        """May the husk be destroyed?"""
        return self.side is Side.DESTINATION and self.row.runs is Side.SOURCE

    def may_fail(self) -> bool:
        """Does an error of this side end the migration, with the source running on?"""
        return self.row.ways.get(Event.FAILED) in (State.ABORTED, State.REFUSED)

    def said(self, pid: int) -> str:
        """What the user is told of the process, which is `pid` here, when the migration ends in this state."""
        return self.row.said.format(pid=pid)

    def phases_ms(self) -> dict[str, float]:
        """How long each phase of the report lasted, in milliseconds, except the one that has not ended."""
        pairs = itertools.pairwise(self.moments.items())
        return {name: (after - begun) / 1e6 for (name, begun), (_, after) in pairs}

    def fill(self, report: Report) -> None:
        """Write into the report what it has of the session: the outcome, and in the end how long everything took."""
        report.outcome = self.row.outcome
        if self.state is State.COMPLETE:
            begun, *_, ended = self.moments.values()
            report.phases_ms, report.total_ms = self.phases_ms(), (ended - begun) / 1e6


def begin(side: Side, note: Callable[[str], None] = _unheard) -> Session:
    """A session that begins now. `note` says a sentence to the user."""
    return Session(side, FIRST[side], note)


def rehearse(side: Side) -> None:
    """Go the whole way of a successful migration, on a session made for that. The same code then runs faster while the
    process stands still."""
    session = begin(side)
    while session.row.ways:
        session.happened(next(iter(session.row.ways)))
        session.may_thaw()


def ending_of(error: BaseException) -> Event:
    """The event that an error is, when nobody has dealt with it."""
    if isinstance(error, ConnectionLost):
        return Event.LOST
    if isinstance(error, RemoteError) or (isinstance(error, Refused) and error.by_peer):
        return Event.ABORTED
    if isinstance(error, LocalError) and error.code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return Event.CANCELLED
    return Event.FAILED


def _runs_word(row: Row) -> str:
    return "nobody's" if row.runs is None else f"the {row.runs.name.lower()}'s"


def _rows_of(side: Side) -> list[str]:
    rows = ["| state | whose copy may run | the custodian is told | the user is told |", "|---|---|---|---|"]
    for state, row in TABLES[side].items():
        record = row.record.name if row.record is not None else ""
        said = row.said.replace("{pid}", "PID")
        rows.append(f"| {state.name} | {_runs_word(row)} | {record} | {said} |")
    return rows


def diagram(side: Side) -> str:
    """The ways of a side as text: a line for each, those with the same ends together."""
    ways: dict[tuple[State, State], list[str]] = {}
    for state, row in TABLES[side].items():
        for event, following in row.ways.items():
            ways.setdefault((state, following), []).append(event.name)
    lines = []
    for (state, following), events in sorted(ways.items(), key=lambda way: way[0][1] is State.ABORTED):
        mark = "   <== the one COMMIT" if Event.COMMIT.name in events else ""
        lines.append(f"{state.name:<11} --> {following.name:<11}  {', '.join(events)}{mark}")
    return "\n".join(lines)


def _outline(module: object) -> str:
    """A module's docstring as it stands, indented: the layout is explained there and nowhere else."""
    return "\n".join(f"    {line}".rstrip() for line in inspect.cleandoc(inspect.getdoc(module) or "").split("\n"))


def _head_of(name: str) -> str:
    """The comment at the beginning of a header of this folder, indented."""
    text = Path(__file__).with_name(name).read_text()
    lines = text[: text.index(" */")].splitlines()[1:]
    return "\n".join(f"    {line.removeprefix(' *').removeprefix(' ')}".rstrip() for line in lines)


def _message_rows() -> list[str]:
    rows = []
    for kind in messages.Message.__args__:
        text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        fields = ", ".join(f"`{name}`" for name in kind.__struct_fields__)
        rows.append(f"| `{kind.__struct_config__.tag}` | {text} | {fields} |")
    return rows


def as_markdown() -> str:
    """docs/protocol.md."""
    lines = [
        "# The protocol",
        "",
        "Generated by `python -m live_migration.wire.session`. The tables and layouts are those of `wire/session.py`,",
        "`wire/handshake.py` and `wire/messages.py`; the page stream on FAULT and BULK is described in",
        "`wire/page_stream.h`.",
        "",
        "## States",
        "",
        "Both sides run on these tables. Before COMMIT, an event without a row is a bug that ends the migration. After",
        "COMMIT nothing may fail any more, and such an event is reported and ignored.",
        "",
        "| state | meaning |",
        "|---|---|",
        *(f"| {state.name} | {state.value} |" for state in State),
        "",
        "| event | what happens: a message sent or received, or something else |",
        "|---|---|",
        *(f"| {event.name} | {event.value} |" for event in Event),
    ]
    for side in Side:
        lines += ["", f"### {side.name.capitalize()}, from {FIRST[side].name} on", "", *_rows_of(side)]
        lines += ["", "```", diagram(side), "```"]
    lines += [
        "",
        "From READY on, DECISION alone tells what was decided, and is made anew where it is lost (below). After COMMIT",
        "CONTROL, FAULT and BULK are made anew too, all three whenever one is lost, by whoever made them first.",
    ]
    lines += ["", "## The handshake", "", _outline(handshake), "", "## The decision", "", _head_of("decision.h")]
    lines += ["", "## Control messages", "", _outline(messages)]
    lines += ["", "| kind | who, and what | fields |", "|---|---|---|", *_message_rows(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
