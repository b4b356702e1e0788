"""The models of the handover and of what follows it: their rows are those of wire/session.py, and spin finds no way in
which a law breaks.

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

HANDOVER, FOLLOWING = (Path(__file__).with_name(name) for name in ("handover.pml", "following.pml"))
ROW = re.compile(r"(source|husk)_happens\((\w+), EVENT_(\w+), (\w+)\)")
SIDES = {"source": Side.SOURCE, "husk": Side.DESTINATION}
# From the freeze to the moment in which one copy runs; and from then on, with the network lost and back again.
MODELLED: dict[Path, dict[Side, tuple[State, ...]]] = {
    HANDOVER: {
        Side.SOURCE: (State.FROZEN, State.DESCRIBED, State.READY, State.PARKED, State.REFUSED),
        Side.DESTINATION: (State.DESCRIBED, State.ARMED, State.READY, State.IN_DOUBT, State.COMMITTED),
    },
    FOLLOWING: {
        Side.SOURCE: (State.RESUMED, State.STALLED),
        Side.DESTINATION: (State.RESUMED, State.STALLED),
    },
}
# Rows that the models leave out, and why.
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
    "at most one copy runs": (HANDOVER, AT_MOST_ONE, 0),
    "at most one copy runs, if both die at once at a host": (HANDOVER, AT_MOST_ONE, 1),
    "one copy runs in the end": (HANDOVER, "one_copy_runs", 0),
    "nothing is left waiting": (HANDOVER, "nothing_waits", 0),
    "no message is missing before one that is taken in": (FOLLOWING, "", 0),
    "everything is taken in, and both sides leave": (FOLLOWING, "all_is_over", 0),
}
FAULTS = {
    "the end of a connection is a no": (
        HANDOVER,
        "husk_happens(READY, EVENT_LOST, IN_DOUBT) }",
        "husk_state = ABORTED; goto aborted }",
        "one_copy_runs",
    ),
    "the source thaws before it has decided": (
        HANDOVER,
        "    :: atomic { serve_lives -> decide(NO); assert(decision == NO) }\n",
        "    :: atomic { serve_lives -> source_runs = true; at_most_one() }\n",
        AT_MOST_ONE,
    ),
    "what was sent is not sent again": (
        FOLLOWING,
        "husk_attempt = dialled; husk_sent = husk_heard }",
        "husk_attempt = dialled }",
        "all_is_over",
    ),
    "a message counts as taken in when it is sent": (
        FOLLOWING,
        "source_attempt = dialled; source_sent = source_heard }",
        "source_attempt = dialled }",
        "",
    ),
}


def rows_of_model(model: Path) -> set[tuple[Side, State, Event, State]]:
    return {
        (SIDES[side], State[before], Event[event], State[after])
        for side, before, event, after in ROW.findall(model.read_text())
    }


def rows_of_tables(model: Path) -> set[tuple[Side, State, Event, State]]:
    return {
        (side, state, event, following)
        for side, states in MODELLED[model].items()
        for state in states
        for event, following in TABLES[side][state].ways.items()
        if (side, state, event) not in LEFT_OUT
    }


def verify(model: str, law: str, folder: Path, pairs: int = 0) -> str:
    """What spin's verifier says of one law (an ltl formula of the model); `pairs` as the model has it."""
    if not shutil.which("spin"):
        skip("spin is not installed")
    (folder / "model.pml").write_text(model)
    generate = ["spin", f"-DBREAKS={BREAKS}", f"-DPAIRS={pairs}", "-a", "model.pml"]
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


@pytest.mark.parametrize("model", MODELLED, ids=lambda model: model.stem)
def test_the_model_s_rows_are_the_tables(model: Path) -> None:
    assert rows_of_model(model) == rows_of_tables(model)


@pytest.mark.parametrize("law", LAWS)
def test_the_law_holds(law: str, tmp_path: Path) -> None:
    model, formula, pairs = LAWS[law]
    assert holds(verify(model.read_text(), formula, tmp_path, pairs))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    path, right, wrong, law = FAULTS[fault]
    model = path.read_text()
    assert model.count(right) == 1
    assert not holds(verify(model.replace(right, wrong), law, tmp_path))
