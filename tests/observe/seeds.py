"""Seeds: the observer is started with one, moved, and says what is not as it was; a failing one is shrunk."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from live_migration.experiments.machines import Machine, Process, begin_move, start, wait_for_change
from tests.observe import outside
from tests.support import started

FOLDER = Path(__file__).parent
PROGRAM = FOLDER / "bin" / "observer"
STRATEGIES = ("post-copy", "stop-and-copy", "pre-copy", "hybrid")
CALLS = 300
SECONDS = 40.0
PASSING = (
    "it belongs to one process of the source",
    '"remedy":"try again"',
    "which the process has closed and another keeps open",
)
"""The blockers of an open file of /proc/self, such as those that the observer reads, of what has just changed, and of
what it has just closed."""
TRIES = 5
REFUSED = 67
"""lm-serve's exit status for blockers."""


@dataclass(frozen=True)
class Seed:
    """One run: what the observer draws from, and how it is moved.

    `calls` are the numbers of those that it makes of its first CALLS, None for all. With `changing` it goes on making
    more; with `refusable` it also draws what cannot be moved.
    """

    number: int
    strategy: str
    changing: bool = True
    refusable: bool = False
    calls: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a seed: "same", "different", "refused", "failed" (the process runs at the source) or "lost"."""

    what: str
    text: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def signature(self) -> str:
        """What is told of it, without values: the same for what has the same cause."""
        first = [line for line in self.text.splitlines() if line.startswith(("-", "+", "outside"))][:1]
        if self.what in ("refused", "failed"):
            first = re.findall(r'"cause":"[^"]*"', self.text)[:1] or re.findall(r'"error":"[^"]*"', self.text)[:1]
            return f"{self.what} " + re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", "".join(first))
        return f"{self.what} " + re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", re.split(r"[:~] ", "".join(first))[0])


def build() -> None:
    """Build the observer, unless it is newer than its source."""
    subprocess.run(["make", "-s", "-C", str(FOLDER.parents[1]), "observer"], check=True, stdout=subprocess.DEVNULL)


def as_ranges(numbers: Iterable[int]) -> str:
    """Numbers as the observer takes them: "0-17,40"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in ranges)


def command_line(seed: Seed, folder: Path) -> list[str]:
    """What starts the observer."""
    words = [str(PROGRAM), str(folder), str(seed.number), str(CALLS), str(int(seed.changing)), str(int(seed.refusable))]
    if seed.calls is not None:
        # What it changes while it is moved has numbers from CALLS on.
        words.append(as_ranges(seed.calls) + (f",{CALLS}-999999" if seed.changing else ""))
    return words


@contextlib.contextmanager
def an_observer(seed: Seed, folder: Path, machine: Machine | None) -> Iterator[Process]:
    """The observer in an empty folder, until it may be moved; ended with all that it has started."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o777)
    # A root that may do everything else must pass through here when its capabilities are gone.
    folder.chmod(0o777)
    command = start(machine, command_line(seed, folder), folder, "observer", start_new_session=True)

    def ready() -> bool | None:
        if command.process.poll() is not None:
            raise RuntimeError(f"the observer ended early: {result(folder) or command.process.poll()}")
        return (folder / "ready").exists() or None

    try:
        wait_for_change("the observer being ready", ready, folder, seconds=SECONDS)
        yield command.process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(command.process.pid, signal.SIGKILL)
        started.end_everything()


def result(folder: Path) -> str:
    """What the observer has said, empty if nothing."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "result").read_text(errors="replace")
    return ""


def wait_for_result(folder: Path, seconds: float = SECONDS) -> str:
    """Wait until the observer has said something."""
    return wait_for_change("the observer's result", lambda: result(folder) or None, folder, seconds=seconds)


def calls_of(folder: Path) -> list[str]:
    """The calls that the observer has made, in their order."""
    return (folder / "calls").read_text(errors="replace").splitlines()


def stay(seed: Seed, folder: Path) -> Outcome:
    """Run a seed that is not moved: whatever differs is the observer's own doing."""
    with an_observer(seed, folder, None):
        (folder / "moved").touch()
        text = wait_for_result(folder)
    return Outcome("same" if text == "passed\n" else "different", text, calls_of(folder))


def move(seed: Seed, folder: Path, machines: tuple[Machine, Machine]) -> Outcome:
    """Move a seed, again where it was refused for what it did just then."""
    for _ in range(TRIES):
        found = move_once(seed, folder, machines)
        if found.what != "refused" or not any(one in found.text for one in PASSING):
            break
    return found


def move_once(seed: Seed, folder: Path, machines: tuple[Machine, Machine]) -> Outcome:
    """Start and move a seed."""
    with an_observer(seed, folder, machines[0]) as process:
        before = None if seed.changing else outside.look(process.pid)
        try:
            moving = begin_move(
                process.pid,
                machines,
                folder,
                strategy=seed.strategy,
                restore=["--pid", "namespace"],
                starting=started.start,
            )
        except RuntimeError as error:
            return not_moved(str(error), folder)
        try:
            pid = moving.resumed(SECONDS)
            moving.restore.event("complete", SECONDS)
        except (RuntimeError, TimeoutError):
            return not_moved(moving.said(), folder)
        seen = []
        # It ends when it has seen a difference.
        with contextlib.suppress(OSError):
            seen = [] if before is None else outside.differences(before, outside.look(pid))
        (folder / "moved").touch()
        try:
            text = wait_for_result(folder)
        except TimeoutError:
            return Outcome("lost", "no word from the moved process\n" + moving.said(), calls_of(folder))
    if text == "passed\n":
        text = "".join(f"outside {line}\n" for line in seen)
    return Outcome("different" if text else "same", text, calls_of(folder))


def not_moved(said: str, folder: Path) -> Outcome:
    """The process must go on at the source, as if nothing had happened."""
    (folder / "moved").touch()
    try:
        text = wait_for_result(folder, 10)
    except TimeoutError:
        return Outcome("lost", said, calls_of(folder))
    if text != "passed\n":
        return Outcome("different", f"{text}after a move that did not happen\n{said}", calls_of(folder))
    return Outcome("refused" if f'"code":{REFUSED}' in said else "failed", said, calls_of(folder))


def shrink(seed: Seed, run: Callable[[Seed], Outcome], wanted: Outcome, tries: int = 80) -> tuple[Seed, Outcome]:
    """The fewest calls with which a seed comes out the same way (delta debugging, Zeller's ddmin)."""
    kept, outcome = list(range(CALLS) if seed.calls is None else seed.calls), wanted

    def attempt(calls: list[int], changing: bool) -> Outcome | None:
        found = run(Seed(seed.number, seed.strategy, changing, seed.refusable, tuple(calls)))
        return found if found.signature == wanted.signature else None

    changing = seed.changing
    if changing and (found := attempt(kept, False)):
        changing, outcome = False, found
    parts = 2
    while len(kept) > 1 and tries > 0:
        size = -(-len(kept) // parts)
        for at in range(0, len(kept), size):
            tries -= 1
            rest = kept[:at] + kept[at + size :]
            if found := attempt(rest, changing):
                kept, outcome, parts = rest, found, max(parts - 1, 2)
                break
        else:
            if parts >= len(kept):
                break
            parts = min(len(kept), parts * 2)
    return Seed(seed.number, seed.strategy, changing, seed.refusable, tuple(kept)), outcome
