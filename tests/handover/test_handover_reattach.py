"""After COMMIT everybody may be killed: somebody else goes on, and no page is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from live_migration._lm import ffi
from live_migration.experiments.machines import Command, Move, descendants, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.meeting_point import Certificates
from live_migration.wire.ticket import parse_ticket
from tests.chaos.relay import start_relay
from tests.support import laws, started
from tests.support.authority import Authority

# Pages; with a round, those that are written to all the time are missing in the end, until a fault brings each.
WARM, COLD = {"post-copy": 64, "hybrid": 3000}, {"post-copy": 2048, "hybrid": 256}
ROUNDS = {"post-copy": (), "hybrid": ("--max-rounds", "1")}
STATUS = 7
RECOVERY = (laws.ROOT / "docs" / "recovery.md").read_text()
SLOW = ("--bandwidth-limit", "3M", "--exit-status", str(STATUS))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laws.build(tmp_path_factory.mktemp("laws"))


@dataclass
class Moved:
    """A process that runs at the destination, and waits for most of its pages."""

    subject: laws.Subject
    move: Move
    pid: int
    cold: int

    def named(self, name: str) -> list[int]:
        """Processes of the destination."""
        serving = {self.move.serve.process.pid, *descendants(self.move.serve.process.pid)}
        return [pid for pid in laws.left_over(self.subject) if laws.process_name(pid) == name and pid not in serving]

    def kill(self, name: str) -> bool:
        """Kill all of a name, and wait until they are gone; False if there are none."""
        victims = self.named(name)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for(f"the end of {name}", lambda: not any(map(laws.process_name, victims)) or None, 60)
        return bool(victims)

    def await_replacement(self) -> None:
        """Wait until there is a worker, and a keeper of its own, or everything is done."""

        def stands() -> bool | None:
            workers, keepers = self.named("lm-pager"), self.named("lm-keeper")
            stand = len(workers) == len(keepers) == 1 and keepers[0] in descendants(workers[0])
            return stand or self.move.restore.process.poll() is not None or None

        wait_for("another one", stands, 60)

    def check(self) -> None:
        """It looks at every page it has."""
        os.kill(self.pid, signal.SIGUSR2)
        wait_for("every page", lambda: self.subject.rows()[laws.Row.ALL_COLD] or None, 60)
        assert self.subject.rows()[laws.Row.COLD] == self.cold
        laws.assert_inert(self.subject, laws.HARMLESS)

    def type(self, text: str, **values: object) -> Command:
        """Run a command as docs/recovery.md has it, with these values for its capital words."""
        assert f"`{text}`" in RECOVERY, text
        name, *words = [str(values.get(word, word)) for word in text.split()]
        line = [sys.executable, "-m", f"live_migration.cli.{name.removeprefix('lm-')}", *words]
        return laws.start_command(self.subject, line, f"again-{time.monotonic_ns()}", laws.environment())


@contextlib.contextmanager
def moved(
    program: Path, folder: Path, strategy: str = "post-copy", serve: Sequence[str] = (), restore: Sequence[str] = ()
) -> Iterator[Moved]:
    subject = laws.start_subject(program, folder / "subject", warm=WARM[strategy], cold=COLD[strategy])
    try:
        move = laws.begin(subject, serve=[*SLOW, *serve], restore=[f"--{strategy}", *ROUNDS[strategy], *restore])
        pid = wait_for("the moved process", lambda: laws.let_go(subject) or None, 60)
        yield Moved(subject, move, pid, COLD[strategy])
    except BaseException:
        for name in sorted(subject.folder.glob("*.err")) + sorted(subject.folder.glob("*.out")):
            print(f"--- {name.name}\n{name.read_text()}")
        raise
    finally:
        started.end_everything()


VICTIMS = (("lm-pager",), ("lm-keeper",), ("lm-keeper", "lm-pager"), ("lm-pager", "lm-pager"))


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
@pytest.mark.parametrize("strategy", ["post-copy", "hybrid"])
def test_whoever_is_killed_is_replaced(
    victims: tuple[str, ...], strategy: str, program: Path, tmp_path: Path, orphans: None
) -> None:
    """The frontend lives, and starts another worker; the worker starts another keeper."""
    chance = random.Random(str(victims) + strategy)
    with moved(program, tmp_path, strategy) as found:
        for victim in victims:
            time.sleep(chance.uniform(0.0, 0.3))
            # With rounds, every page may be there already.
            if found.kill(victim) or strategy == "post-copy":
                found.await_replacement()
        found.check()
        assert found.move.restore.process.wait(60) == 0
        assert found.move.serve.process.wait(60) == 0


@pytest.mark.parametrize("strategy", ["post-copy", "hybrid"])
def test_a_process_is_taken_up_again(strategy: str, program: Path, tmp_path: Path, orphans: None) -> None:
    """Frontend and worker are gone; a command as docs/recovery.md has it brings the process back."""
    with moved(program, tmp_path, strategy) as found:
        os.kill(found.move.restore.process.pid, signal.SIGKILL)
        found.kill("lm-pager")
        listed = found.type("lm-restore --decide list")
        assert listed.process.wait(60) == 0
        if f"process {found.pid} waits for pages that nobody brings" not in listed.said():
            # With a round, every page may be there already, and the source may know.
            assert strategy == "hybrid", listed.said()
            if f"process {found.pid} has every page" not in listed.said():
                found.check()
                return
        again = found.type("lm-restore --reattach PID", PID=found.pid)
        found.check()
        assert found.move.serve.process.wait(60) == 0
        wait_for("the last page", lambda: "every page is at the destination" in again.said() or None, 60)
        os.kill(found.pid, signal.SIGTERM)
        assert again.process.wait(60) == 128 + signal.SIGTERM


def test_a_source_at_another_address(program: Path, tmp_path: Path, orphans: None) -> None:
    """The worker lives, and calls where nobody listens any more."""
    with moved(program, tmp_path) as found:
        offered = parse_ticket((found.subject.folder / "ticket").read_text())
        relay = start_relay((offered.host, offered.port))
        try:
            where = f"127.0.0.1:{relay.port}"
            again = found.type("lm-restore --reattach PID --source HOST:PORT", PID=found.pid, **{"HOST:PORT": where})
            wait_for("its call", lambda: relay.links or None, 60)
            found.check()
            assert found.move.serve.process.wait(60) == 0
            # It has found another one in its place.
            assert found.move.restore.process.wait(60) in (0, ExitCode.REFUSED, ExitCode.LOST_AFTER)
            os.kill(found.pid, signal.SIGKILL)
            assert again.process.wait(60) == 128 + signal.SIGKILL
        finally:
            relay.close()


def test_a_source_that_has_lost_its_address(program: Path, tmp_path: Path, orphans: None) -> None:
    """lm-serve listens at that one alone."""
    with moved(program, tmp_path) as found:
        for victim in (found.move.serve.process.pid, custodian(found)):
            os.kill(victim, signal.SIGKILL)
        where = f"127.0.0.2:{parse_ticket((found.subject.folder / 'ticket').read_text()).port}"
        text = "lm-serve --reattach PID --listen HOST:PORT"
        serve = found.type(text, PID=found.subject.pid, **{"HOST:PORT": where})
        text = "lm-restore --reattach PID --source HOST:PORT"
        restore = found.type(text, PID=found.pid, **{"HOST:PORT": where})
        found.check()
        assert serve.process.wait(60) == 0
        os.kill(found.pid, signal.SIGKILL)
        assert restore.process.wait(60) == 128 + signal.SIGKILL


def custodian(found: Moved) -> int:
    """The source's."""
    (pid,) = (one for one in descendants(found.move.serve.process.pid) if laws.process_name(one) == "lm-custodian")
    return pid


@pytest.mark.parametrize("with_custodian", [False, True])
@pytest.mark.parametrize("strategy", ["post-copy", "hybrid"])
def test_a_source_is_taken_up_again(
    with_custodian: bool, strategy: str, program: Path, tmp_path: Path, orphans: None
) -> None:
    """lm-serve is killed after COMMIT, alone or with its custodian: its copy's memory is served again."""
    with moved(program, tmp_path, strategy) as found:
        source, serving = found.subject.pid, found.move.serve.process.pid
        victims = [serving, custodian(found)] if with_custodian else [serving]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_for("their end", lambda: not any(map(laws.process_name, victims)) or None, 60)
        listed = found.type("lm-serve --decide list")
        assert listed.process.wait(60) == 0
        if f"process {source}" not in listed.said():
            # With a round, everything may be over already.
            assert strategy == "hybrid", listed.said()
            found.check()
            return
        again = found.type("lm-serve --reattach PID", PID=source)
        found.check()
        assert found.move.restore.process.wait(60) == 0
        assert again.process.wait(60) == 0
        assert not list(Path("/dev/shm").glob(f"*-{source}-*"))
        assert found.subject.process.wait(60) == STATUS


def options_of(files: Certificates) -> list[str]:
    """The options for these."""
    return ["--tls-cert", files.certificate, "--tls-key", files.key, "--tls-ca", files.authority]


@pytest.mark.parametrize("certified", [False, True], ids=["", "certificates"])
def test_both_sides_are_taken_up_again(certified: bool, program: Path, tmp_path: Path, orphans: None) -> None:
    """Everybody but the keeper is killed at once. The certificates of the destination are others by then, and those of
    the source are read again."""
    signer = Authority(tmp_path)
    ours, theirs, renewed = (signer.certify(name) for name in ("source", "destination", "renewed"))
    options = (options_of(ours), options_of(theirs)) if certified else ((), ())
    with moved(program, tmp_path, "post-copy", *options) as found:
        victims = [found.move.serve.process.pid, custodian(found), found.move.restore.process.pid]
        for victim in (*victims, *found.named("lm-pager")):
            os.kill(victim, signal.SIGKILL)
        text = "lm-restore --reattach PID --tls-cert CERT --tls-key KEY --tls-ca CA"
        files = {"CERT": renewed.certificate, "KEY": renewed.key, "CA": renewed.authority}
        restore = found.type(text, PID=found.pid, **files)
        if certified:
            Path(theirs.certificate).unlink()
        else:
            assert restore.process.wait(60) == ExitCode.USAGE
            found.type("lm-restore --reattach PID", PID=found.pid)
        serve = found.type("lm-serve --reattach PID", PID=found.subject.pid)
        found.check()
        assert serve.process.wait(60) == 0


def waits_for_a_word(pid: int) -> bool:
    """Whether the threads of the source's copy are parked, and nothing is decided."""
    for path in Path("/dev/shm").glob(f"lm-custody-of-the-source-{pid}-*"):
        state = ffi.from_buffer("struct lm_custody *", bytearray(path.read_bytes()))
        return bool(state.flag_address) and set(laws.signal_masks(pid)) == {laws.PARKED}
    return False


def test_nobody_stays_parked(program: Path, tmp_path: Path, orphans: None) -> None:
    """lm-serve and its custodian are killed in the freeze, with nothing decided: the process runs on here."""
    subject = laws.start_subject(program, tmp_path / "subject")
    try:
        move = laws.begin(subject, fault="source-parked:hang")
        wait_for("the parking", lambda: waits_for_a_word(subject.pid) or None, 60)
        serving = move.serve.process.pid
        for victim in (*descendants(serving), serving):
            os.kill(victim, signal.SIGKILL)
        line = [sys.executable, "-m", "live_migration.cli.serve", "--reattach", str(subject.pid)]
        again = laws.start_command(subject, line, "again", laws.environment())
        assert again.process.wait(60) == 0, again.said()
        assert move.restore.process.wait(60) != 0
        laws.assert_untouched(subject)
    finally:
        started.end_everything()


@pytest.mark.parametrize("how", ["wait", "stop", "poison"])
def test_a_source_that_is_gone_for_good(how: str, program: Path, tmp_path: Path, orphans: None) -> None:
    """Its host has burnt down, as far as anybody knows: what becomes of the process is told by --on-lost."""
    with moved(program, tmp_path) as found:
        move = found.move
        for victim in (custodian(found), move.serve.process.pid, found.subject.pid, move.restore.process.pid):
            os.kill(victim, signal.SIGKILL)
        found.kill("lm-pager")
        if how == "poison":
            text = "lm-restore --reattach PID --reconnect-timeout 1 --on-lost poison"
            again = found.type(text, PID=found.pid)
        else:
            words = ["--reattach", str(found.pid), "--reconnect-timeout", "1", "--on-lost", how]
            line = [sys.executable, "-m", "live_migration.cli.restore", *words]
            again = laws.start_command(found.subject, line, "again", laws.environment())
        assert again.process.wait(60) == ExitCode.LOST_AFTER
        stat = Path(f"/proc/{found.pid}/stat")
        if how == "poison":
            os.kill(found.pid, signal.SIGUSR2)
            wait_for("the end of who touches what is missing", lambda: not laws.process_name(found.pid) or None, 60)
            wait_for("the keeper's end", lambda: not found.named("lm-keeper") or None, 60)
        else:
            assert found.named("lm-keeper")

            def is_stopped() -> bool:
                return stat.read_text().rpartition(")")[2].split()[0] == "T"

            if how == "stop":
                wait_for("the group-stop", lambda: is_stopped() or None, 60)
            assert is_stopped() == (how == "stop")
            assert found.subject.rows()[laws.Row.ALL_COLD] == 0
