"""The model of the handover: its rows are those of wire/session.py, and spin finds no way in which a law breaks.

`make model` runs these tests alone. Models with a fault put in show that spin would find it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from live_migration.wire.handshake import Side
from live_migration.wire.session import TABLES, Event, State
from tests.conftest import skip

MODEL = Path(__file__).with_name("handover.pml")
ROW = re.compile(r"(source|husk)_happens\((\w+), EVENT_(\w+), (\w+)\)")
SIDES = {"source": Side.SOURCE, "husk": Side.DESTINATION}
# From the freeze to the moment in which one copy runs.
MODELLED = {
    Side.SOURCE: (State.FROZEN, State.DESCRIBED, State.READY, State.PARKED, State.REFUSED),
    Side.DESTINATION: (State.DESCRIBED, State.ARMED, State.READY, State.IN_DOUBT, State.COMMITTED),
}
# Rows that the model leaves out, and why.
LEFT_OUT = {
    (Side.SOURCE, State.FROZEN, Event.THAWED): "another freeze begins where this one did",
    **{
        (Side.SOURCE, State.REFUSED, event): "the custodian thaws where lm-serve cannot"
        for event in (Event.FAILED, Event.ABORTED, Event.CANCELLED, Event.LOST)
    },
    **{
        (Side.DESTINATION, state, Event.ENDED_BY_HAND): "a person takes the decision"
        for state in (State.READY, State.IN_DOUBT)
    },
}
# How often connections break, at most: one more state in each is ten times as many in all.
BREAKS = os.environ.get("LM_BREAKS", "1")
SECONDS = 240
AT_MOST_ONE = ""
"""No formula, but an assertion wherever a copy begins to run."""
LAWS = {
    "at most one copy runs": AT_MOST_ONE,
    "one copy runs in the end": "one_copy_runs",
    "nothing is left waiting": "nothing_waits",
}
FAULTS = {
    "the end of a connection is a no": (
        "husk_happens(READY, EVENT_LOST, IN_DOUBT) }",
        "husk_state = ABORTED; goto aborted }",
        "one_copy_runs",
    ),
    "the source thaws before it has decided": (
        "    :: atomic { serve_lives -> decide(NO); assert(decision == NO) }\n",
        "    :: atomic { serve_lives -> source_runs = true; at_most_one() }\n",
        AT_MOST_ONE,
    ),
}


def rows_of_model() -> set[tuple[Side, State, Event, State]]:
    return {
        (SIDES[side], State[before], Event[event], State[after])
        for side, before, event, after in ROW.findall(MODEL.read_text())
    }


def rows_of_tables() -> set[tuple[Side, State, Event, State]]:
    return {
        (side, state, event, following)
        for side, states in MODELLED.items()
        for state in states
        for event, following in TABLES[side][state].ways.items()
        if (side, state, event) not in LEFT_OUT
    }


def verify(model: str, law: str, folder: Path) -> str:
    """What spin's verifier says of one law (an ltl formula of the model)."""
    if not shutil.which("spin"):
        skip("spin is not installed")
    (folder / "handover.pml").write_text(model)
    generate = ["spin", f"-DBREAKS={BREAKS}", "-a", "handover.pml"]
    subprocess.run(generate, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    # A formula is checked by cycles that accept, with weak fairness; an assertion in every state.
    options = ["-DNFAIR=4"] if law else ["-DSAFETY", "-DNOCLAIM"]
    subprocess.run(["gcc", "-O1", "-w", *options, "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=SECONDS)
    line = ["./pan", "-m400000", *(["-a", "-f", "-N", law] if law else [])]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=SECONDS).stdout


def holds(said: str) -> bool:
    assert "max search depth too small" not in said, said
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return found[1] == "0"


def test_the_model_s_rows_are_the_tables() -> None:
    assert rows_of_model() == rows_of_tables()


@pytest.mark.parametrize("law", LAWS)
def test_the_law_holds(law: str, tmp_path: Path) -> None:
    assert holds(verify(MODEL.read_text(), LAWS[law], tmp_path))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    right, wrong, law = FAULTS[fault]
    model = MODEL.read_text()
    assert model.count(right) == 1
    assert not holds(verify(model.replace(right, wrong), law, tmp_path))
