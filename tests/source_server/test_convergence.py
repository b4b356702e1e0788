"""When the rounds end: the rule, over figures that are made up."""

from __future__ import annotations

import msgspec
import pytest

from live_migration.source_server.convergence import LONGEST_PAUSE, NextStep, next_step, pause_before_next, sendable
from live_migration.wire.report import Round
from live_migration.wire.strategy import Parameters

PARAMETERS = Parameters(strategy="pre-copy", rounds=10, resume_at_once=False, max_downtime_ms=100)


def rounds(*dirty: int, pages: int = 1000, ms: float = 1000) -> list[Round]:
    return [Round(pages=pages, ms=ms, dirty=left) for left in dirty]


def test_what_can_be_sent_in_time_ends_the_rounds() -> None:
    assert sendable(rounds(0)[0], 100) == 100
    assert next_step(rounds(100), PARAMETERS) is NextStep.FREEZE
    assert next_step(rounds(101), PARAMETERS) is NextStep.GO_ON
    assert next_step(rounds(5000, 3000, 90), PARAMETERS) is NextStep.FREEZE


def test_a_long_round_is_followed_by_a_short_one_where_no_downtime_was_asked_for() -> None:
    usual = msgspec.structs.replace(PARAMETERS, max_downtime_ms=None)
    assert next_step(rounds(100), usual) is NextStep.GO_ON
    assert next_step(rounds(301), usual) is NextStep.GO_ON
    assert next_step(rounds(300), usual) is NextStep.FREEZE
    assert next_step([*rounds(100), *rounds(30, pages=100, ms=100)], usual) is NextStep.FREEZE
    assert next_step(rounds(100), msgspec.structs.replace(usual, rounds=1)) is NextStep.FREEZE


def test_a_few_pages_are_never_worth_a_round() -> None:
    assert next_step(rounds(60, pages=0, ms=0), PARAMETERS) is NextStep.FREEZE


def test_writes_as_fast_as_the_link_do_not_converge() -> None:
    assert next_step(rounds(5000, 5000), PARAMETERS) is NextStep.GO_ON
    assert next_step(rounds(5000, 4900, 4800), PARAMETERS) is NextStep.NO_CONVERGENCE
    assert next_step(rounds(5000, 4000, 3000), PARAMETERS) is NextStep.GO_ON
    assert next_step(rounds(5000, 2000, 4000), PARAMETERS) is NextStep.GO_ON


def test_the_number_of_rounds_is_limited() -> None:
    falling = [10000 * 8**number // 10**number for number in range(10)]
    assert next_step(rounds(*falling[:9]), PARAMETERS) is NextStep.GO_ON
    assert next_step(rounds(*falling), PARAMETERS) is NextStep.NO_ROUNDS_LEFT


def test_the_process_is_left_in_peace_between_rounds() -> None:
    assert pause_before_next(Round(pages=262_144, dirty=100_000, ms=150)) == pytest.approx(1.05)
    assert pause_before_next(Round(pages=262_144, dirty=1000, ms=100)) == 0
    assert pause_before_next(Round(pages=10**8, dirty=10**8, ms=1)) == LONGEST_PAUSE
