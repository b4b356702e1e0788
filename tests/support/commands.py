"""Running the commands to their end, and what they say."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from live_migration.experiments.machines import Command, wait_for_change
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import Ticket, parse_ticket
from tests.support import laws, started

SERVE, RESTORE = "live_migration.cli.serve", "live_migration.cli.restore"
NAMES = {SERVE: "lm-serve", RESTORE: "lm-restore"}


def run(command: str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    line = [sys.executable, "-m", command, *map(str, words)]
    return started.run(line, cwd=laws.ROOT, env=laws.environment() | variables, timeout=60)


def run_anew(command: str, *words: object) -> subprocess.CompletedProcess[str]:
    """As run(), by a start of the command itself."""
    line, null = [sys.executable, "-m", command, *map(str, words)], subprocess.DEVNULL
    environment = laws.environment()
    return subprocess.run(
        line, cwd=laws.ROOT, env=environment, stdin=null, capture_output=True, text=True, timeout=60
    )


def refused(command: str, words: Sequence[object], code: ExitCode, *sentences: str, **variables: str) -> None:
    """A command that ends at once with these lines and this status, and prints nothing else."""
    done = run(command, *words, **variables)
    assert done.stderr.splitlines() == [f"{NAMES[command]}: {sentences[0]}", *sentences[1:]]
    assert done.returncode == code
    assert done.stdout == ""


def waiting_serve(subject: laws.Subject) -> tuple[Command, Ticket]:
    """lm-serve, which waits for its destination."""
    ticket = subject.folder / "ticket"
    words = [sys.executable, "-m", SERVE, str(subject.pid), "--ticket-file", str(ticket)]
    serving = laws.start_command(subject, words, "serve", laws.environment())
    wait_for_change("the ticket", lambda: ticket.exists() or None, subject.folder, seconds=60)
    return serving, parse_ticket(ticket.read_text())


def stop(serving: Command) -> str:
    """Tell lm-serve, which still waits, to stop; everything it has said on standard error."""
    assert serving.process.poll() is None
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == ExitCode.TERMINATED
    return (serving.folder / f"{serving.name}.err").read_text()
