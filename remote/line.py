"""lm-migrate's line to an agent (agent.py), on this host or through ssh."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from live_migration.remote.agent import version
from live_migration.remote.ssh import Ssh, as_usual, in_shell
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode

AGENT = "live_migration.remote.agent"
ANSWER_SECONDS = 30.0
ENDING_SECONDS = 10.0
MOST_HELD = 64 << 20
"""Bytes of one line; an agent that sends more is none."""


@dataclass
class Line:
    """A line to an agent.

    host    the name to be shown, empty for this host
    held    what has come of a line that is not whole
    kept    what came before it was waited for
    lost    it has ended
    left    its agent goes on with its command, and is not waited for
    """

    host: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    held: bytes = b""
    kept: list[dict[str, Any]] = field(default_factory=list)
    lost: bool = False
    left: bool = False

    def fileno(self) -> int:
        """For select(2)."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def tell(self, what: str, **details: Any) -> None:
        """Send a request. An agent that is gone is noticed when it is listened to."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode({"do": what, **details}) + b"\n")
            self.process.stdin.flush()
        except OSError:
            self.lost = True

    def read(self) -> list[dict[str, Any]]:
        """What has come; waits if there is nothing. Sets `lost` at the end."""
        if self.kept:
            came, self.kept = self.kept, []
            return came
        data = os.read(self.fileno(), 1 << 16)
        *lines, self.held = (self.held + data).split(b"\n")
        self.lost = self.lost or not data or len(self.held) > MOST_HELD
        found = []
        for line in lines:
            try:
                one = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue
            if isinstance(one, dict):
                found.append(one)
        return found

    def ask(self, answer: str, what: str, **details: Any) -> dict[str, Any]:
        """Send a request and wait for the agent's answer; what else comes is kept. Raises LocalError."""
        self.tell(what, **details)
        return self.wait_for(answer)

    def wait_for(self, *names: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Wait for one of these, from the agent or its command; what else comes is kept. Raises LocalError
        (LOST_BEFORE)."""
        end = time.monotonic() + seconds
        others: list[dict[str, Any]] = []
        while not self.lost:
            left = max(0.0, end - time.monotonic())
            if not self.kept and not select.select([self], [], [], left)[0]:
                break
            came = self.read()
            for place, one in enumerate(came):
                if one.get("agent") in names or one.get("event") in names:
                    self.kept = [*others, *came[place + 1 :]]
                    return one
                others.append(one)
        raise self.error()

    def error(self) -> LocalError:
        """The line has ended before the process was handed over."""
        self.said.seek(0)
        lines = [line for line in self.said.read(1 << 16).decode(errors="replace").splitlines() if line.strip()]
        cause = f"the connection to it has ended ({lines[-1].strip()})" if lines else "the connection to it has ended"
        return LocalError(
            step="the migration",
            object=self.host or "this host",
            cause=cause,
            remedy="the process runs on at the source; try again",
            code=ExitCode.LOST_BEFORE,
        )

    def hang_up(self) -> None:
        """Nothing more will be asked. An agent whose command still runs stays with it."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.said.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if self.left else ENDING_SECONDS)


def to_this_host() -> Line:
    """A line to an agent of this host."""
    return _line("", [sys.executable, "-P", "-m", AGENT], dict(os.environ))


def through(ssh: Ssh, program: str) -> Line:
    """A line to an agent at the other end of ssh. Raises LocalError if there is none, or one of another version."""
    line = _line(ssh.host, ssh.words("-o", "BatchMode=yes", run=in_shell(f"exec {program} -P -m {AGENT}")), as_usual())
    hello = line.wait_for("hello")
    if hello.get("version") != version():
        line.hang_up()
        raise LocalError(
            step="looking at the other host",
            object=ssh.host,
            cause=f"live-migration {hello.get('version')} is there, {version()} is here",
            remedy="have the same version on both (make bundle)",
            code=ExitCode.PROTOCOL,
        )
    return line


def _line(host: str, words: Sequence[str], environment: dict[str, str]) -> Line:
    """A session of its own keeps what is typed at the terminal away from it."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed when the line is
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, start_new_session=True
    )
    return Line(host, process, said)


def heard(lines: Sequence[Line], seconds: float | None) -> Iterator[tuple[Line, dict[str, Any]]]:
    """What the agents say next, within so many seconds; the end of a line is an empty message."""
    listened = [line for line in lines if not line.lost]
    ready: list[Line] = [line for line in listened if line.kept]
    if not ready:
        ready, _, _ = select.select(listened, [], [], seconds)
    for line in ready:
        for one in line.read():
            yield line, one
        if line.lost:
            yield line, {}
