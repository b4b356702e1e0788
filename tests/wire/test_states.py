"""The table of states: one COMMIT, no way back, no dead ends, and the document printed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from live_migration.wire import strategy
from live_migration.wire.handshake import Side
from live_migration.wire.states import BEHIND_COMMIT, FIRST, TABLES, Event, ImpossibleEvent, State, as_markdown, begin

ROOT = Path(__file__).resolve().parents[2]
ENDS = {State.COMPLETE, State.ABORTED}


@pytest.mark.parametrize("side", Side)
def test_there_is_no_way_back_from_commit(side: Side) -> None:
    for (state, _), following in TABLES[side].items():
        if state in BEHIND_COMMIT:
            assert following in BEHIND_COMMIT


@pytest.mark.parametrize("side", Side)
def test_only_commit_leads_behind_commit(side: Side) -> None:
    ways = [
        (state, event)
        for (state, event), following in TABLES[side].items()
        if following in BEHIND_COMMIT and state not in BEHIND_COMMIT
    ]
    assert {event for _, event in ways} == {Event.COMMIT}
    assert [state for state, _ in ways if state is not State.IN_DOUBT] == [State.READY]


def test_only_words_decide_after_ready() -> None:
    """Of all that can happen at the destination between READY and COMMIT, the source's no alone removes the husk."""
    ways = {event: following for (state, event), following in TABLES[Side.DESTINATION].items() if state is State.READY}
    assert [event for event, following in ways.items() if following is State.ABORTED] == [Event.ABORTED]
    assert [event for event, following in ways.items() if following is State.COMMITTED] == [Event.COMMIT]


@pytest.mark.parametrize("side", Side)
def test_every_state_is_reached_and_left(side: Side) -> None:
    table = TABLES[side]
    reached = {FIRST[side]}
    while more := {following for (state, _), following in table.items() if state in reached} - reached:
        reached |= more
    assert reached == {state for state, _ in table} | ENDS
    assert not ENDS & {state for state, _ in table}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("event", [Event.FAILED, Event.ABORTED, Event.CANCELLED, Event.CLOSED, Event.LOST])
def test_whatever_happens_before_commit_has_a_row(side: Side, event: Event) -> None:
    for state in {state for state, _ in TABLES[side]} - {State.IN_DOUBT} - set(BEHIND_COMMIT):
        assert (state, event) in TABLES[side]


def test_a_whole_migration() -> None:
    source, destination = begin(Side.SOURCE), begin(Side.DESTINATION)
    for event in (
        Event.LOOKED_AT, Event.CONNECTED, Event.STAGED, Event.FREEZE, Event.STOPPED, Event.FINAL, Event.READY,
    ):  # fmt: skip
        source.happened(event)
    assert source.may_thaw()
    for event in (
        Event.CONNECTED, Event.DESCRIPTION, Event.STAGED, Event.FREEZE, Event.FINAL, Event.READY,
    ):  # fmt: skip
        destination.happened(event)
    for session in (source, destination):
        for event in (Event.COMMIT, Event.RESUMED, Event.LOST, Event.RECONNECTING, Event.RECONNECTED):
            session.happened(event)
            assert not session.may_thaw()
        assert session.happened(Event.FINISHED) is State.COMPLETE
        assert set(session.phases_ms()) >= {"staging", "ready", "committed", "resumed", "stalled"}
        assert all(spent >= 0 for spent in session.phases_ms().values())


def test_an_event_without_a_row_raises() -> None:
    with pytest.raises(ImpossibleEvent, match="source in LOOKING: COMMIT has no row"):
        begin(Side.SOURCE).happened(Event.COMMIT)


def test_the_strategies_document_is_the_table() -> None:
    assert (ROOT / "docs/strategies.md").read_text() == strategy.as_markdown()


def test_the_document_is_the_table() -> None:
    assert (ROOT / "docs/protocol.md").read_text() == as_markdown()
