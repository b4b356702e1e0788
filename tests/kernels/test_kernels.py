"""Moves between two kernels, Linux 6.1 and 6.12: programs in two guests, in both directions, by every strategy.

`make test-kernels` runs this, and nothing else does: it needs qemu, and minutes (docs/kernels.md)."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration.experiments.machines import Command, Move, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.strategy import STRATEGIES
from tests.kernels.kernel_guests import Guest, missing_packages, two_guests
from tests.support import programs_help
from tests.support.programs_list import FOLDER

# By every strategy, and, since a strategy decides about memory alone, only by the one that is the default.
EVERY = ("threads", "vdso_entries", "memory_touched", "memory_heap", "python")
DEFAULT = ("vdso", "clocks", "timer_posix", "signal_handlers", "blocked_futex", "epoll")
CASES = [(name, strategy) for name in EVERY for strategy in STRATEGIES] + [(name, "post-copy") for name in DEFAULT]
DIRECTIONS = ("6.1 to 6.12", "6.12 to 6.1")
# 16 MiB and not 128, which under emulation would be written faster than they travel.
ARGUMENTS = {"memory_touched": ["1024"]}
# How each kernel tracks what is written, found by probing: 6.1 has no WP_ASYNC.
TRACKING = {"6.1": "soft-dirty", "6.12": "userfaultfd"}
# Emulated, everything takes long; no test here is about time.
SECONDS = 120.0

pytestmark = pytest.mark.timeout(400)


@dataclass
class Pair:
    """The guests that run, by kernel, and the folder that both and the host see."""

    guests: dict[str, Guest]
    shared: Path


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Both guests, booted once for all tests."""
    if os.geteuid() != 0:
        pytest.fail("the guests' shares need root")
    if missing := missing_packages():
        pytest.fail(f"install: apt-get install {' '.join(missing)}")
    programs_help.build()
    with two_guests() as (guests, shared):
        yield Pair({guest.kernel.series: guest for guest in guests}, shared)


numbers = itertools.count(1)


@pytest.fixture
def folder(pair: Pair) -> Path:
    """A new folder of the shared ones."""
    path = pair.shared / f"test-{next(numbers)}"
    path.mkdir()
    return path


def start_program(guest: Guest, name: str, folder: Path) -> Command:
    """Start a program of tests/programs, or the one in Python, and wait until it may be moved."""
    words = [str(FOLDER / "bin" / name), str(folder), *ARGUMENTS.get(name, [])]
    if name == "python":
        words = [sys.executable, str(Path(__file__).with_name("moved_python.py")), str(folder)]
    # A guest has one processor, and a program that computes without a pause would take it from the commands.
    program = guest.start(["nice", "-n", "15", *words], folder, "program")

    def ready() -> bool | None:
        if program.process.poll() is not None:
            raise RuntimeError(f"{name} ended early: {verdict(folder, 0.1)}\n{program.said()}")
        return (folder / "ready").exists() or None

    wait_for(f"{name} being ready", ready, SECONDS, pause=0.05)
    return program


def verdict(folder: Path, seconds: float = SECONDS) -> str:
    """What the program found."""
    result = folder / "result"
    wait_for("the program's verdict", lambda: result.exists() or None, seconds, pause=0.05)
    return result.read_text().strip()


def begin_move(
    pid: int, source: Guest, destination: Guest, folder: Path, strategy: str, number: int = 1, inside: int | None = None
) -> Move:
    """Start both commands. `inside`: lm-serve runs in the mount and PID namespaces of this process."""
    ticket = folder / f"ticket-{number}"
    words = [sys.executable, "-m", "live_migration.cli.serve", str(pid), "--listen", f"{source.address}:0", "--json"]
    words += ["--ticket-file", str(ticket), "--report", str(folder / f"serve-{number}.json")]
    words += ["--max-freeze", f"{SECONDS:g}"]
    if inside is not None:
        words = ["nsenter", f"--target={inside}", "--mount", "--pid", "--", *words]
    serving = source.start(words, folder, f"serve-{number}")

    def offered() -> bool | None:
        if serving.process.poll() is not None:
            raise RuntimeError(f"lm-serve ended before there was a ticket\n{serving.said()}")
        return ticket.exists() or None

    wait_for("the ticket", offered, SECONDS, pause=0.05)
    words = [sys.executable, "-m", "live_migration.cli.restore", "--strategy", strategy, f"@{ticket}", "--json"]
    words += ["--pid", "namespace", "--report", str(folder / f"restore-{number}.json")]
    if STRATEGIES[strategy].rounds:
        # A program that writes without a pause would have all of them, and each may take seconds.
        words += ["--max-rounds", "3"]
    if strategy == "pre-copy":
        words += ["--on-no-convergence", "freeze"]
    return Move(serving, destination.start(words, folder, f"restore-{number}"))


def check_tracking(move: Move, source: Guest, strategy: str) -> None:
    """The rounds of a strategy that has some were tracked by what the source's kernel has; without rounds it may be
    used to find the pages that are needed first, and not be there at all."""
    tracking = move.serve.report()["tracking"]
    assert tracking == TRACKING[source.kernel.series] or (tracking == "none" and not STRATEGIES[strategy].rounds)


def test_the_kernels_differ(pair: Pair, folder: Path) -> None:
    """They are the two that the suite is for, and so is what they can do."""
    for series, guest in pair.guests.items():
        release = guest.run(["uname", "-r"], folder, f"release-{series}")
        assert release.startswith(f"{series}.")
        parts = guest.run(["grep", "-c", "sd", "/proc/self/smaps"], folder, f"soft-dirty-{series}")
        assert int(parts) > 0, "no soft-dirty"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_moved(name: str, direction: str, strategy: str, pair: Pair, folder: Path) -> None:
    source, destination = (pair.guests[series] for series in direction.split(" to "))
    program = start_program(source, name, folder)
    move = begin_move(program.process.pid, source, destination, folder, strategy)
    try:
        move.restore.event("resumed", SECONDS)
        (folder / "moved").touch()
        found = verdict(folder)
        assert found == "passed", found
        assert move.restore.process.wait(SECONDS) == 0, "lm-restore's exit status"
        assert move.serve.process.wait(SECONDS) == 0, "lm-serve's exit status"
        report = move.restore.report()
        assert (report["strategy"], report["outcome"]) == (strategy, "complete")
        check_tracking(move, source, strategy)
    except BaseException:
        print(move.said())
        print(*(guest.said() for guest in pair.guests.values()), sep="\n")
        raise


def test_sequences_do_not_go_to_a_kernel_that_keeps_less_for_them(pair: Pair, folder: Path) -> None:
    """They are refused by name, and the program goes on where it is."""
    source, destination = pair.guests["6.12"], pair.guests["6.1"]
    program = start_program(source, "rseq_section", folder)
    move = begin_move(program.process.pid, source, destination, folder, "post-copy")
    assert move.restore.process.wait(SECONDS) == ExitCode.REFUSED, move.said()
    assert "restartable sequences in" in move.restore.said()
    (folder / "moved").touch()
    assert verdict(folder) == "passed"


@pytest.mark.parametrize(
    ("name", "direction"), [*(("vdso_entries", way) for way in DIRECTIONS), ("python", DIRECTIONS[0])]
)
def test_there_and_back(name: str, direction: str, pair: Pair, folder: Path) -> None:
    """The second move is from the kernel that is not the process's first, back to that one."""
    source, destination = (pair.guests[series] for series in direction.split(" to "))
    program = start_program(source, name, folder)
    pid = program.process.pid
    there = begin_move(pid, source, destination, folder, "post-copy")
    moves = [there]
    try:
        inside = int(there.restore.event("resumed", SECONDS)["pid"])
        there.restore.event("complete", SECONDS)
        back = begin_move(pid, destination, source, folder, "post-copy", 2, inside)
        moves.append(back)
        back.restore.event("resumed", SECONDS)
        (folder / "moved").touch()
        found = verdict(folder)
        assert found == "passed", found
        back.restore.event("complete", SECONDS)
        assert back.restore.process.wait(SECONDS) == 0, "lm-restore's exit status"
    except BaseException:
        print(*(move.said() for move in moves), sep="\n")
        raise
