"""The states of a session, one table for each side. An event without a row is a bug and raises.

`python -m live_migration.wire.states` prints docs/protocol.md: this table as a diagram, the handshake and messages.

Only the side itself writes its state; the other side's is known by the messages alone. There is one failpoint
named COMMIT on each side, and behind it no way back: no row leads from COMMITTED and later states to
ABORTED.
"""

from __future__ import annotations

import enum
import inspect
import time
from dataclasses import dataclass, field

from live_migration.wire import handshake, messages
from live_migration.wire.handshake import Side


class State(enum.Enum):
    """Where a side is; the value says what that means."""

    LOOKING = "the process is looked at, from outside"
    CONNECTING = "the two sides come together and authenticate"
    STAGING = "the destination compares and prepares everything that can be prepared while the source runs"
    STAGED = "the husk stands; what cannot be paged on demand travels; the source still runs"
    FREEZING = "the threads are being stopped"
    FROZEN = "the process stands still and is described"
    DESCRIBED = "the final description is under way or being applied"
    READY = "the destination only has to resume; the source parks its threads and decides"
    IN_DOUBT = "the connection ended between READY and COMMIT: the husk is kept and does not run"
    COMMITTED = "the destination's copy is the process; the source's is inert"
    RESUMED = "the process runs at the destination, its memory follows"
    STALLED = "the connection is lost: both sides keep everything and wait"
    RECOVERING = "the connection is being made again"
    COMPLETE = "every page is at the destination; the source's copy has left"
    ABORTED = "it ended before COMMIT: the source runs on, the husk is gone"


class Event(enum.Enum):
    """What changes a state; the value says it in words."""

    LOOKED_AT = "no blocker was found"
    CONNECTED = "three connections are authenticated"
    DESCRIPTION = "Description"
    STAGED = "Staged"
    FREEZE = "Freezing, Prepared"
    STOPPED = "every thread has stopped"
    FINAL = "Final"
    READY = "Ready"
    COMMIT = "Commit"
    RESUMED = "Resumed"
    FINISHED = "Finished, Goodbye"
    FAILED = "an error here, a blocker, or a time limit"
    ABORTED = "Abort or Blockers from the other side"
    CANCELLED = "SIGINT or SIGTERM"
    CLOSED = "the other side closed the connection (FIN)"
    LOST = "the connection broke (reset, no answer)"
    RECONNECTING = "a new connection is tried"
    RECONNECTED = "three connections are authenticated again"


Table = dict[tuple[State, Event], State]
_ENDINGS = (Event.FAILED, Event.ABORTED, Event.CANCELLED, Event.CLOSED, Event.LOST)


def _ways_out(*states: State) -> Table:
    return {(state, event): State.ABORTED for state in states for event in _ENDINGS}


_AFTER_COMMIT: Table = {
    (State.COMMITTED, Event.RESUMED): State.RESUMED,
    (State.COMMITTED, Event.LOST): State.STALLED,
    (State.COMMITTED, Event.CLOSED): State.STALLED,
    (State.RESUMED, Event.FINISHED): State.COMPLETE,
    (State.RESUMED, Event.LOST): State.STALLED,
    (State.RESUMED, Event.CLOSED): State.STALLED,
    (State.STALLED, Event.RECONNECTING): State.RECOVERING,
    (State.RECOVERING, Event.RECONNECTED): State.RESUMED,
    (State.RECOVERING, Event.LOST): State.STALLED,
    (State.RECOVERING, Event.CLOSED): State.STALLED,
}

SOURCE: Table = {
    (State.LOOKING, Event.LOOKED_AT): State.CONNECTING,
    (State.CONNECTING, Event.CONNECTED): State.STAGING,
    (State.STAGING, Event.STAGED): State.STAGED,
    (State.STAGED, Event.FREEZE): State.FREEZING,
    (State.FREEZING, Event.STOPPED): State.FROZEN,
    (State.FROZEN, Event.FINAL): State.DESCRIBED,
    (State.DESCRIBED, Event.READY): State.READY,
    (State.READY, Event.COMMIT): State.COMMITTED,
    **_AFTER_COMMIT,
    **_ways_out(
        State.LOOKING, State.CONNECTING, State.STAGING, State.STAGED, State.FREEZING, State.FROZEN,
        State.DESCRIBED, State.READY,
    ),
}  # fmt: skip

DESTINATION: Table = {
    (State.CONNECTING, Event.CONNECTED): State.LOOKING,
    (State.LOOKING, Event.DESCRIPTION): State.STAGING,
    (State.STAGING, Event.STAGED): State.STAGED,
    (State.STAGED, Event.FREEZE): State.FROZEN,
    (State.FROZEN, Event.FINAL): State.DESCRIBED,
    (State.DESCRIBED, Event.READY): State.READY,
    (State.READY, Event.COMMIT): State.COMMITTED,
    **_AFTER_COMMIT,
    **_ways_out(
        State.CONNECTING, State.LOOKING, State.STAGING, State.STAGED, State.FROZEN, State.DESCRIBED,
        State.READY,
    ),
    # A connection that ends says nothing, whether in order or not: the COMMIT may have been sent, and be lost in a
    # tunnel that ended. So the husk is neither run nor destroyed.
    (State.READY, Event.CLOSED): State.IN_DOUBT,
    (State.READY, Event.LOST): State.IN_DOUBT,
    (State.READY, Event.FAILED): State.IN_DOUBT,
    (State.READY, Event.CANCELLED): State.READY,
    (State.IN_DOUBT, Event.RECONNECTING): State.IN_DOUBT,
    (State.IN_DOUBT, Event.ABORTED): State.ABORTED,
    (State.IN_DOUBT, Event.COMMIT): State.COMMITTED,
}  # fmt: skip

TABLES = {Side.SOURCE: SOURCE, Side.DESTINATION: DESTINATION}
FIRST = {Side.SOURCE: State.LOOKING, Side.DESTINATION: State.CONNECTING}
BEHIND_COMMIT = (State.COMMITTED, State.RESUMED, State.STALLED, State.RECOVERING, State.COMPLETE)


class ImpossibleEvent(Exception):
    """An event for which the state has no row: a bug of this side."""


@dataclass
class Session:
    """One side's state, and how long each state lasted."""

    side: Side
    state: State = State.LOOKING
    since_ns: int = 0
    phases_ns: dict[State, int] = field(default_factory=dict)

    def happened(self, event: Event) -> State:
        """Move along the row for `event`. ImpossibleEvent if there is none."""
        following = TABLES[self.side].get((self.state, event))
        if following is None:
            raise ImpossibleEvent(f"{self.side.name.lower()} in {self.state.name}: {event.name} has no row")
        now = time.monotonic_ns()
        self.phases_ns[self.state] = self.phases_ns.get(self.state, 0) + now - self.since_ns
        self.state, self.since_ns = following, now
        return following

    def may_thaw(self) -> bool:
        """May the source's copy run again? False from COMMIT on, for ever."""
        return self.state not in BEHIND_COMMIT

    def phases_ms(self) -> dict[str, float]:
        """How long each state lasted so far, in milliseconds, for the report."""
        return {state.name.lower(): spent / 1e6 for state, spent in self.phases_ns.items()}


def begin(side: Side) -> Session:
    """A session that begins now."""
    return Session(side, FIRST[side], time.monotonic_ns())


def diagram(side: Side) -> str:
    """The table of a side as text: a line for each row, rows with the same way together."""
    ways: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in TABLES[side].items():
        ways.setdefault((state, following), []).append(event.name)
    lines = []
    for (state, following), events in sorted(ways.items(), key=lambda way: way[0][1] is State.ABORTED):
        mark = "   <== the one COMMIT" if state is State.READY and following is State.COMMITTED else ""
        lines.append(f"{state.name:<11} --> {following.name:<11}  {', '.join(events)}{mark}")
    return "\n".join(lines)


def _outline(module: object) -> str:
    """A module's docstring as it stands, indented: the layout is explained there and nowhere else."""
    return "\n".join(f"    {line}".rstrip() for line in inspect.cleandoc(inspect.getdoc(module) or "").split("\n"))


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
        "Generated by `python -m live_migration.wire.states`. The tables and layouts are those of `wire/states.py`,",
        "`wire/handshake.py` and `wire/messages.py`; the page stream on FAULT and BULK is described in",
        "`wire/page_stream.h`.",
        "",
        "## States",
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
        lines += ["", f"### {side.name.capitalize()}, from {FIRST[side].name} on", "", "```", diagram(side), "```"]
    lines += [
        "",
        "lm-serve and lm-restore stay STALLED, or IN_DOUBT, until they are ended: neither tries a new connection.",
    ]
    lines += ["", "## The handshake", "", _outline(handshake), "", "## Control messages", "", _outline(messages)]
    lines += ["", "| kind | who, and what | fields |", "|---|---|---|", *_message_rows(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
