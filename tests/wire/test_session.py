"""The table of the session: one COMMIT, no way back, no dead ends; that both sides run on it; and the document printed
from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from live_migration._lm import lib
from live_migration.wire import strategy
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, ProtocolError, Refused, RemoteError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Side
from live_migration.wire.messages import Abort, Blockers, error_of, refusal_of
from live_migration.wire.report import Report
from live_migration.wire.session import (
    ENDINGS,
    FIRST,
    TABLES,
    Event,
    HuskRecord,
    ImpossibleEvent,
    Record,
    Session,
    SourceRecord,
    State,
    as_markdown,
    begin,
    ending_of,
    rehearse,
)

ROOT = Path(__file__).resolve().parents[2]
ENDS = {State.COMPLETE, State.ABORTED, State.ENDED_BY_HAND}
FOLDERS = {Side.SOURCE: "source_server", Side.DESTINATION: "restorer"}
# The way of a migration that succeeds.
EVENTS = {
    Side.SOURCE: (
        Event.LOOKED_AT, Event.CONNECTED, Event.LOOKED_AT, Event.STAGED, Event.PUSHED, Event.FREEZE, Event.STOPPED,
        Event.FINAL, Event.READY, Event.PARKED, Event.COMMIT, Event.RESUMED, Event.FINISHED,
    ),
    Side.DESTINATION: (
        Event.CONNECTED, Event.HUSK_STARTED, Event.STAGED, Event.PUSHED, Event.FREEZE, Event.FINAL, Event.ARMED,
        Event.READY, Event.COMMIT, Event.RESUMED, Event.FINISHED,
    ),
}  # fmt: skip
WAYS = {
    side: {(state, event): following for state, row in table.items() for event, following in row.ways.items()}
    for side, table in TABLES.items()
}


def behind_commit(side: Side) -> set[State]:
    """The states in which the destination's copy is the process."""
    return {state for state, row in TABLES[side].items() if row.runs is Side.DESTINATION}


def at(side: Side, state: State) -> Session:
    """A session that has come to a state by any way."""
    return Session(side, state)


@pytest.mark.parametrize("side", Side)
def test_there_is_no_way_back_from_commit(side: Side) -> None:
    assert State.COMMITTED in behind_commit(side)
    for (state, _), following in WAYS[side].items():
        if state in behind_commit(side):
            assert following in behind_commit(side)


@pytest.mark.parametrize("side", Side)
def test_only_commit_leads_behind_commit(side: Side) -> None:
    ways = [
        (state, event)
        for (state, event), following in WAYS[side].items()
        if following in behind_commit(side) and state not in behind_commit(side)
    ]
    undecided = [State.PARKED] if side is Side.SOURCE else [State.READY, State.IN_DOUBT]
    assert ways == [(state, Event.COMMIT) for state in undecided]


def test_only_words_decide_after_ready() -> None:
    """Of all that can happen at the destination between READY and COMMIT, the source's NO alone removes the husk."""
    for at_stake in (State.READY, State.IN_DOUBT):
        ways = {event: following for (state, event), following in WAYS[Side.DESTINATION].items() if state is at_stake}
        assert [event for event, following in ways.items() if following is State.ABORTED] == [Event.ABORTED]
        assert [event for event, following in ways.items() if following is State.COMMITTED] == [Event.COMMIT]


@pytest.mark.parametrize("side", Side)
def test_every_state_is_reached_and_left(side: Side) -> None:
    table = WAYS[side]
    reached = {FIRST[side]}
    while more := {following for (state, _), following in table.items() if state in reached} - reached:
        reached |= more
    assert reached == set(TABLES[side])
    assert reached - {state for state, _ in table} == ENDS & reached


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("event", ENDINGS)
def test_whatever_happens_before_commit_has_a_row(side: Side, event: Event) -> None:
    for state in {state for state, _ in WAYS[side]} - {State.IN_DOUBT} - behind_commit(side):
        assert (state, event) in WAYS[side]


def test_the_source_thaws_only_when_nobody_can_be_ready_or_its_no_is_recorded() -> None:
    """From the final description on the destination may wait for COMMIT."""
    for state in TABLES[Side.SOURCE]:
        undecided = state in (State.DESCRIBED, State.READY, State.PARKED)
        assert at(Side.SOURCE, state).may_thaw() is not (undecided or state in behind_commit(Side.SOURCE))
        assert not at(Side.SOURCE, state).may_destroy()
        if undecided:
            for event in ENDINGS:
                session = at(Side.SOURCE, state)
                assert session.happened(event) is State.REFUSED
                assert session.row.record is SourceRecord.NO
                assert session.may_thaw()


def test_the_husk_is_destroyed_only_when_the_source_runs() -> None:
    for state in TABLES[Side.DESTINATION]:
        kept = state in (State.READY, State.IN_DOUBT, *behind_commit(Side.DESTINATION))
        assert at(Side.DESTINATION, state).may_destroy() is not kept
        assert not at(Side.DESTINATION, state).may_thaw()


@pytest.mark.parametrize("side", Side)
def test_a_whole_migration(side: Side) -> None:
    session = begin(side)
    for event in EVENTS[side]:
        assert next(iter(session.row.ways)) is event, "the way of a migration that succeeds is a row's first one"
        session.happened(event)
        if event is Event.STOPPED:
            assert session.may_thaw()
        if session.committed:
            assert not session.may_thaw()
    assert session.state is State.COMPLETE
    assert set(session.phases_ms()) == (
        {"staging", "rounds", "freezing", "committed"}
        if side is Side.SOURCE
        else {"preflight", "staging", "staged", "resumed"}
    )
    assert all(spent >= 0 for spent in session.phases_ms().values())


def test_an_error_ends_a_migration_as_long_as_it_can_be_taken_back() -> None:
    for side in Side:
        for state, row in TABLES[side].items():
            undecided = side is Side.DESTINATION and row.runs is None
            assert at(side, state).may_fail() is (bool(row.ways) and row.runs is not Side.DESTINATION and not undecided)


def test_a_lost_connection_after_commit_is_a_pause() -> None:
    for side in Side:
        session = at(side, State.RESUMED)
        assert session.happened(Event.LOST) is State.STALLED
        assert session.row.outcome == "stalled"
        assert session.row.code is ExitCode.LOST_AFTER
        assert not session.may_thaw()


def test_a_freeze_is_tried_again() -> None:
    session = at(Side.SOURCE, State.FREEZING)
    for event in (Event.STOPPED, Event.THAWED, Event.FREEZE, Event.STOPPED, Event.FINAL):
        session.happened(event)
    assert session.state is State.DESCRIBED


def test_an_event_without_a_row_raises() -> None:
    with pytest.raises(ImpossibleEvent, match="source in LOOKING: COMMIT has no row"):
        begin(Side.SOURCE).happened(Event.COMMIT)


@pytest.mark.parametrize("side", Side)
def test_behind_commit_an_event_without_a_row_is_a_note(side: Side) -> None:
    for state in behind_commit(side):
        for event in set(Event) - TABLES[side][state].ways.keys():
            said: list[str] = []
            session = Session(side, state, said.append)
            assert session.happened(event) is state
            assert said == [f"{side.name.lower()} in {state.name}: {event.name} has no row"]


def test_the_custodian_is_told_when_a_state_begins() -> None:
    told: list[Record] = []
    session = begin(Side.DESTINATION)
    session.told = told.append
    for event in EVENTS[Side.DESTINATION]:
        session.happened(event)
    assert told == [HuskRecord.ARMED, HuskRecord.COMMITTED, HuskRecord.LET_GO]


def test_what_has_ended_ends_once() -> None:
    session = at(Side.DESTINATION, State.STAGED)
    for error in (ConnectionLost(step="a", object="b", cause="c", remedy="d"), OSError("another one")):
        assert session.ended_by(error) is State.ABORTED


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (ConnectionLost(step="a", object="b", cause="c", remedy="d"), Event.LOST),
        (error_of(Abort(step="a", object="b", cause="c", remedy="d")), Event.ABORTED),
        (refusal_of(Blockers(found=[Blocker("a", "b", "c")])), Event.ABORTED),
        (Refused([Blocker("a", "b", "c")]), Event.FAILED),
        (LocalError(step="a", object="b", cause="c", remedy="d", code=ExitCode.TERMINATED), Event.CANCELLED),
        (LocalError(step="a", object="b", cause="c", remedy="d", code=ExitCode.TIMEOUT), Event.FAILED),
        (ProtocolError(step="a", object="b", cause="c", remedy="d"), Event.FAILED),
        (RemoteError(step="a", object="b", cause="c", remedy="d"), Event.ABORTED),
        (KeyError("a bug"), Event.FAILED),
    ],
)
def test_what_an_error_means(error: MigrationError, event: Event) -> None:
    assert ending_of(error) is event


def test_the_report_has_the_outcome_and_in_the_end_the_times() -> None:
    report = Report(side="source", outcome="", strategy="", pid=1, started=0.0)
    session = begin(Side.SOURCE)
    for event in EVENTS[Side.SOURCE]:
        session.fill(report)
        assert (report.outcome, report.phases_ms, report.total_ms) == ("failed", {}, 0.0)
        session.happened(event)
    session.fill(report)
    assert report.outcome == "complete"
    assert report.total_ms == pytest.approx(sum(report.phases_ms.values()))


@pytest.mark.parametrize("side", Side)
def test_every_event_of_the_table_happens_in_the_code(side: Side) -> None:
    """A row that nothing executes is none. What ends a migration comes from errors."""
    text = "".join(path.read_text() for path in (ROOT / FOLDERS[side]).rglob("*.py"))
    happen = set(re.findall(r"\bhappened\(Event\.([A-Z_]+)\)", text))
    assert happen | {event.name for event in ENDINGS} == {event.name for _, event in WAYS[side]}


@pytest.mark.parametrize("side", Side)
def test_a_rehearsal_ends(side: Side) -> None:
    rehearse(side)


def test_the_custodians_number_their_records_alike() -> None:
    """What stands in memory shared with C, in both languages."""
    for kind, prefix, header in (
        (SourceRecord, "LM_DECISION_", "wire/decision.h"),
        (HuskRecord, "LM_HUSK_", "restorer/custody.h"),
    ):
        numbers = dict(re.findall(rf"#define {prefix}(\w+) (\d+)\b", (ROOT / header).read_text()))
        assert {name: int(number) for name, number in numbers.items()} == {one.name: int(one) for one in kind}
        assert all(getattr(lib, prefix + one.name) == one for one in kind)


@pytest.mark.parametrize("side", Side)
def test_records_grow_along_the_way_of_a_migration_that_succeeds(side: Side) -> None:
    session, records = begin(side), []
    for event in EVENTS[side]:
        records += [session.row.record] if session.row.record is not None else []
        session.happened(event)
    kind = SourceRecord if side is Side.SOURCE else HuskRecord
    assert records == list(kind)[: len(records)]
    others = {row.record for row in TABLES[side].values()} - {None, *records}
    assert others == set(kind) - set(records)


def test_the_strategies_document_is_the_table() -> None:
    assert (ROOT / "docs/strategies.md").read_text() == strategy.as_markdown()


def test_the_document_is_the_table() -> None:
    assert (ROOT / "docs/protocol.md").read_text() == as_markdown()
