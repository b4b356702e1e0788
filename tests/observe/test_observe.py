"""Random processes that look at themselves: what a move changes is seen, by the process and from outside."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine
from tests.observe import outside
from tests.observe.seeds import (
    STRATEGIES,
    Outcome,
    Seed,
    an_observer,
    as_ranges,
    build,
    calls_of,
    move,
    shrink,
    stay,
    wait_for_result,
)

# Found nothing when they were chosen; make observe draws others.
MOVED = [
    Seed(1000, "post-copy", False),
    Seed(1001, "stop-and-copy", False),
    Seed(1003, "pre-copy", False),
    Seed(1007, "hybrid"),
    # Bound to an interface, and sending through another one.
    Seed(8148, "post-copy", False),
]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    build()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the observer has its files: others than root must get there."""
    for parent in tmp_path.resolve().parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    return tmp_path.resolve() / "run"


@pytest.mark.parametrize("seed", MOVED, ids=lambda seed: f"{seed.number}-{seed.strategy}")
def test_nothing_changes_unseen(
    seed: Seed, folder: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    found = move(seed, folder, machines)
    assert found.what == "same", found.text


def test_without_a_move_nothing_differs(folder: Path, orphans: None) -> None:
    found = stay(Seed(1, STRATEGIES[0]), folder)
    assert found.what == "same", found.text


def test_the_process_sees_what_is_changed_behind_its_back(folder: Path, orphans: None) -> None:
    with an_observer(Seed(1, STRATEGIES[0], changing=False), folder, None) as process:
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_CORE)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, ((soft + 1) % 4096, hard))
        assert "\n- RLIMIT 4: " in wait_for_result(folder)


def test_it_is_seen_from_outside(folder: Path, orphans: None) -> None:
    with an_observer(Seed(1, STRATEGIES[0], changing=False), folder, None) as process:
        before = outside.look(process.pid)
        assert outside.differences(before, outside.look(process.pid)) == []
        Path(f"/proc/{process.pid}/coredump_filter").write_text("0x1ff")
        [line] = outside.differences(before, outside.look(process.pid))
        assert line.startswith("coredump_filter: ")


def test_what_may_differ_is_there() -> None:
    """A name of what may differ that /proc does not have (any more) would hide nothing."""
    known = {re_named(key) for key in outside.look(os.getpid())} | set(os.listdir("/proc/self"))
    known |= set(os.listdir(f"/proc/self/task/{os.getpid()}"))
    kernels = {"latency", "patch_state", "arch_status", "timens_offsets", "ksm_stat", "ksm_merging_pages"}
    assert set(outside.MAY_DIFFER) - known - kernels == set()


def re_named(key: str) -> str:
    """A key without the thread that it is of."""
    return key.split(" ", 2)[2] if key.startswith("thread ") else key


def test_a_failing_seed_is_shrunk_to_the_calls_that_matter() -> None:
    needed = {41, 97, 260}

    def run(seed: Seed) -> Outcome:
        assert seed.calls is not None
        return Outcome("different", "- it: 1") if needed <= set(seed.calls) else Outcome("same")

    seed, outcome = shrink(Seed(1, STRATEGIES[0]), run, Outcome("different", "- it: 2"))
    assert set(seed.calls or ()) == needed
    assert not seed.changing
    assert outcome.text == "- it: 1"


def test_only_the_calls_that_are_kept_are_made(folder: Path, orphans: None) -> None:
    stay(Seed(3, STRATEGIES[0], changing=False, calls=(7, 8, 9, 20)), folder)
    assert {line.split()[0] for line in calls_of(folder)} <= {"7", "8", "9", "20"}
    assert as_ranges((7, 8, 9, 20)) == "7-9,20"
