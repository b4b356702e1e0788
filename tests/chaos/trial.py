"""One trial: a move, one fault at one of its steps, and what became of the process.

Everything is drawn from a number, so a trial can be made again. `python -m tests.chaos.trial --trials 1000 --seed 1`
makes many; each that breaks a law is printed with its number. With `--pairs`, two processes are killed at once, and
then whatever docs/recovery.md says is done.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import itertools
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from live_migration.experiments.machines import adopt_orphans, descendants, wait_for, wait_for_change
from live_migration.wire.failpoints import DESTINATION_FAILPOINTS, SOURCE_FAILPOINTS
from live_migration.wire.ticket import parse_ticket
from tests.chaos.relay import Fault, Relay, start_relay
from tests.support import laws, started
from tests.support.started import Forked

STRATEGIES = ("post-copy", "hybrid", "pre-copy", "stop-and-copy")
WITH_ROUNDS = ("hybrid", "pre-copy")
RESUMING_AT_ONCE = ("post-copy", "hybrid")
# Each waits for the one before it: from here on the process may run at the destination while pages are missing.
LATE_STEPS = ("destination-committed", "destination-letting-go", "destination-resumed", "source-decided")
SLOW_BULK = "1M"
STEPS = tuple(name for name in SOURCE_FAILPOINTS + DESTINATION_FAILPOINTS if name != "source-connected")
WARM, COLD = 64, 256
PATIENCE_SECONDS = 100.0
# Until the step is reached, on a machine that does much else.
STEP_SECONDS = 100.0
# Longer than it takes to find out that a path was cut without a word, also before the first one (GREETING_SECONDS).
DOUBT_SECONDS = 35.0


class Action(enum.Enum):
    """What is done to a process."""

    KILL = "kill"
    STOP = "stop for a while"


class Target(enum.Enum):
    """Who is struck: a process, or the connections."""

    SERVE = "lm-serve"
    FRONTEND = "lm-restore"
    WORKER = "lm-pager"
    KEEPER = "lm-keeper"
    SOURCE_CUSTODIAN = "the source's custodian"
    DESTINATION_CUSTODIAN = "the destination's custodian"
    CONNECTION = "one connection"
    NETWORK = "every connection"


LINKS = (Target.CONNECTION, Target.NETWORK)
# A worker and its keeper hold the missing memory: without both, the process would read zeros (docs/recovery.md).
PAIRS = [
    pair
    for pair in itertools.combinations([one for one in Target if one not in LINKS], 2)
    if set(pair) != {Target.WORKER, Target.KEEPER}
]


class Outcome(enum.Enum):
    """What became of the process."""

    UNTOUCHED = "it runs on at the source, and nothing else is left"
    MOVED = "it runs at the destination, with all of its memory"
    WAITING = "it runs at the destination until it needs a page that nobody brings"
    DOUBT = "neither copy runs, and both are kept"
    HUSK_LEFT = "it runs on at the source, and the destination is in doubt"


@dataclass(frozen=True)
class Plan:
    """What is done in a trial; `also` is who is killed with the target."""

    number: int
    strategy: str
    step: str
    target: Target
    action: Action | Fault
    seconds: float
    which: int
    relayed: bool
    also: Target | None = None

    @property
    def targets(self) -> set[Target]:
        """Everybody who is struck."""
        return {self.target, self.also} - {None}  # type: ignore[return-value]

    def __str__(self) -> str:
        what = f"{self.action.name} {' and '.join(sorted(target.value for target in self.targets))}"
        return f"trial {self.number}: {self.strategy}, at {self.step}: {what}, {self.seconds} s"


def draw(number: int, *, pairs: bool = False) -> Plan:
    """The plan of a number; with `pairs`, two processes are killed at once."""
    chance = random.Random(number)
    step = chance.choice(STEPS)
    strategy = chance.choice(WITH_ROUNDS if step.endswith("-round") else STRATEGIES)
    target = chance.choice(list(Target))
    action = chance.choice(list(Fault)) if target in LINKS else chance.choice(list(Action))
    seconds = chance.choice((0.2, 1.0, 4.0))
    relayed = target in LINKS or chance.random() < 0.3
    plan = Plan(number, strategy, step, target, action, seconds, chance.randrange(4), relayed)
    if not pairs:
        return plan
    target, also = chance.choice(PAIRS)
    return replace(plan, target=target, action=Action.KILL, also=also)


def allowed(plan: Plan) -> set[Outcome]:
    """The outcomes that the failure may lead to: what is not lost for good, and where a person has to help."""
    found = {Outcome.UNTOUCHED, Outcome.MOVED}
    if {Target.WORKER, Target.DESTINATION_CUSTODIAN} == plan.targets:
        # In the handover, nobody is left who knows how the husk goes on. It is kept.
        found |= {Outcome.DOUBT, Outcome.HUSK_LEFT}
    if plan.action is Action.KILL and plan.target is Target.SERVE:
        found.add(Outcome.WAITING)
    return found


@dataclass
class Trial:
    """A trial under way."""

    plan: Plan
    subject: laws.Subject
    serve: Forked
    restore: Forked | None = None
    relay: Relay | None = None
    stopped: list[int] = field(default_factory=list)

    def victims(self, target: Target) -> list[int]:
        """The processes that a target is, if they exist."""
        assert self.restore
        if target is Target.SERVE:
            return [self.serve.pid]
        if target is Target.FRONTEND:
            return [self.restore.pid]
        destination = descendants(self.restore.pid)
        source = descendants(self.serve.pid)
        name = {Target.WORKER: "lm-pager", Target.KEEPER: "lm-keeper"}.get(target, "lm-custodian")
        among = source if target is Target.SOURCE_CUSTODIAN else destination
        return [pid for pid in among if laws.process_name(pid) == name][:1]

    def strike(self) -> bool:
        """Do what is planned. False if there is nobody to do it to."""
        plan = self.plan
        if isinstance(plan.action, Fault):
            assert self.relay
            self.relay.strike(plan.action, -1 if plan.target is Target.NETWORK else plan.which, plan.seconds)
            return bool(self.relay.links)
        for pid in (victims := [pid for target in plan.targets for pid in self.victims(target)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if plan.action is Action.KILL else signal.SIGSTOP)
        self.stopped = victims if plan.action is Action.STOP else []
        return bool(victims)

    def mend(self) -> None:
        """What was stopped goes on, and the network is back."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.relay:
            self.relay.mend()

    def take_up_source(self) -> None:
        """If nobody looks after the source's copy any more, somebody else does (docs/recovery.md)."""
        if self.plan.targets == {Target.SERVE, Target.SOURCE_CUSTODIAN}:
            self.serve.wait(60)
            words = ("--reattach", self.subject.pid, "--json")
            self.serve = fork(self.subject, "serve-again", "live_migration.cli.serve", *words)

    def take_up_moved(self, moved: int) -> None:
        """Somebody else brings the pages (docs/recovery.md)."""
        if Target.SERVE in self.plan.targets and Target.SOURCE_CUSTODIAN not in self.plan.targets:
            fork(self.subject, "serve-again", "live_migration.cli.serve", "--reattach", self.subject.pid, "--json")
        words = ("--reattach", moved, "--detach", "--json")
        fork(self.subject, "restore-again", "live_migration.cli.restore", *words)
        await_pages(self.subject)

    def said(self) -> str:
        """What the commands printed, and who is there."""
        parts = [str(self.plan)]
        parts += [f"{pid} {name}" for pid, name in laws.left_over(self.subject).items()]
        for path in sorted(self.subject.folder.glob("*.out")):
            parts.append(f"--- {path.name}\n{path.read_text()}")
        return "\n".join(parts)


def fork(subject: laws.Subject, name: str, module: str, *words: object) -> Forked:
    """Fork a command of the warm process; what it prints goes to one file."""
    with open(os.devnull, "rb") as null, (subject.folder / f"{name}.out").open("wb") as output:
        line = [sys.executable, "-m", module, *map(str, words)]
        descriptors = [null.fileno(), output.fileno(), output.fileno()]
        forked = started.fork(line, descriptors, env=laws.environment(), cwd=laws.ROOT)
    subject.children.add(forked.pid)
    return forked


@contextlib.contextmanager
def begin(plan: Plan, program: Path, folder: Path) -> Iterator[tuple[Trial, socket.socket]]:
    """Start the program and both commands; the trial, and where the step is told."""
    subject = laws.start_subject(program, folder, warm=WARM, cold=COLD)
    where, ticket = folder / "step", folder / "ticket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as steps:
        steps.bind(str(where))
        steps.listen()
        steps.settimeout(STEP_SECONDS)
        words: list[object] = [subject.pid, "--ticket-file", ticket, "--json", "--max-freeze", "2"]
        if plan.step in LATE_STEPS and plan.strategy in RESUMING_AT_ONCE:
            words += ["--bandwidth-limit", SLOW_BULK]
        module = "live_migration.cli.serve"
        trial = Trial(plan, subject, fork(subject, "serve", "tests.chaos.steps", module, plan.step, where, *words))
        try:
            wait_for_change("the ticket", lambda: ticket.exists() or None, folder, seconds=60)
            if plan.relayed:
                offered = parse_ticket(ticket.read_text())
                trial.relay = start_relay((offered.host, offered.port))
                ticket.write_text(f"{replace(offered, port=trial.relay.port)}\n")
            words = [f"@{ticket}", f"--{plan.strategy}", "--pid", "namespace", "--detach", "--stdio", "null", "--json"]
            module = "live_migration.cli.restore"
            trial.restore = fork(subject, "restore", "tests.chaos.steps", module, plan.step, where, *words)
            yield trial, steps
        except BaseException:
            print(trial.said())
            raise
        finally:
            started.end_everything()
            if trial.relay:
                trial.relay.close()


def await_outcome(trial: Trial) -> Outcome:
    """Wait until it is clear what became of the process. Raises TimeoutError, AssertionError."""
    subject = trial.subject
    assert trial.restore
    begin = quiet_since = time.monotonic()
    last: object = None
    while time.monotonic() < begin + PATIENCE_SECONDS:
        left = laws.left_over(subject)
        ended = [trial.serve.poll() is not None, trial.restore.poll() is not None]
        moved = laws.let_go(subject)
        if moved:
            # A husk whose tracer has just died is not traced either, and about to die.
            time.sleep(0.05)
            if laws.let_go(subject) == moved:
                return outcome_of_moved(trial, moved)
        elif not left and all(ended):
            assert subject.process.poll() is None, "no copy is left"
            laws.assert_untouched(subject)
            return Outcome.UNTOUCHED
        elif ended == [False, True] and time.monotonic() > begin + 0.5 and not told(trial, "serve", "stalled"):
            # It waits for another destination.
            os.kill(trial.serve.pid, signal.SIGTERM)
        now = (sorted(left.items()), ended)
        if now != last:
            last, quiet_since = now, time.monotonic()
        elif time.monotonic() > quiet_since + DOUBT_SECONDS:
            return outcome_of_doubt(subject)
        time.sleep(0.01)
    raise TimeoutError("nothing is decided")


def told(trial: Trial, command: str, event: str) -> bool:
    """Whether a command has printed an event."""
    return f'"event":"{event}"' in (trial.subject.folder / f"{command}.out").read_text()


def await_pages(subject: laws.Subject) -> None:
    """Wait until the moved process has looked at all of its memory, which it does not if a page is missing."""
    with contextlib.suppress(TimeoutError):
        wait_for("every page", lambda: subject.rows()[laws.Row.ALL_COLD] or None, DOUBT_SECONDS)


def outcome_of_moved(trial: Trial, moved: int) -> Outcome:
    """The process at the destination looks at all of its memory; the source's copy never runs again."""
    subject = trial.subject
    laws.assert_inert(subject)
    os.kill(moved, signal.SIGUSR2)
    await_pages(subject)
    if trial.plan.also and not subject.rows()[laws.Row.ALL_COLD]:
        trial.take_up_moved(moved)
    assert laws.process_name(moved) == "laws_program", "the moved process has ended"
    if not subject.rows()[laws.Row.ALL_COLD]:
        laws.assert_inert(subject)
        assert laws.process_name(moved) == "laws_program", "the moved process has ended"
        return Outcome.WAITING
    assert subject.rows()[laws.Row.COLD] == COLD
    return Outcome.MOVED


def outcome_of_doubt(subject: laws.Subject) -> Outcome:
    """Nothing changes any more, and the process does not run at the destination."""
    assert subject.process.poll() is None, "no copy is left"
    if laws.PARKED not in laws.signal_masks(subject.pid):
        subject.await_progress()
        return Outcome.HUSK_LEFT
    husks = [pid for pid, name in laws.left_over(subject).items() if name == "laws_program"]
    assert husks, "the source's copy is inert, and no other is there: the process is lost"
    return Outcome.DOUBT


def make(plan: Plan, program: Path, folder: Path) -> Outcome:
    """Make a trial. AssertionError when a law is broken, TimeoutError when nothing is decided."""
    with begin(plan, program, folder) as (trial, steps):
        try:
            caller, _ = steps.accept()
        except TimeoutError:
            raise TimeoutError(f"{plan.step} was not reached") from None
        with caller:
            trial.strike()
            # What is stopped is so for a while; the step itself goes on at once.
            with contextlib.suppress(OSError):
                caller.sendall(b"+")
        time.sleep(plan.seconds)
        trial.mend()
        trial.take_up_source()
        outcome = await_outcome(trial)
        trial.subject.rows()
        assert outcome in allowed(plan), f"{outcome.name}: {outcome.value}"
    return outcome


def main() -> int:
    """Make many trials; 1 if one of them broke a law."""
    parser = argparse.ArgumentParser(prog="chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the number of the first one (default: 1)")
    parser.add_argument("--pairs", action="store_true", help="kill two processes at once")
    given = parser.parse_args()
    adopt_orphans()
    seen: collections.Counter[Outcome] = collections.Counter()
    broken = []
    with tempfile.TemporaryDirectory(prefix="lm-chaos-") as folder:
        program = laws.build(Path(folder))
        for number in range(given.seed, given.seed + given.trials):
            plan = draw(number, pairs=given.pairs)
            try:
                outcome = make(plan, program, Path(folder) / str(number))
                seen[outcome] += 1
                print(f"{plan}: {outcome.name}", flush=True)
            except (AssertionError, TimeoutError, OSError) as error:
                broken.append(number)
                print(f"{plan}: BROKEN: {error}", flush=True)
    started.end_warm()
    print(", ".join(f"{outcome.name} {count}" for outcome, count in seen.items()))
    print(f"{len(broken)} of {given.trials} broke a law" + (f": {broken}" if broken else ""))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
