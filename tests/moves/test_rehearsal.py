"""Rehearsals: often enough for the interpreter, and never for long."""

from __future__ import annotations

import time

import pytest

from live_migration.process import rehearsal


def test_it_is_done_as_often_as_the_interpreter_wants() -> None:
    done: list[int] = []
    rehearsal.rehearse_often(lambda: done.append(1))
    assert len(done) == rehearsal.TIMES


def test_what_takes_long_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.001)
    done: list[int] = []

    def slowly() -> None:
        done.append(1)
        time.sleep(0.002)

    rehearsal.rehearse_often(slowly)
    assert done == [1]
