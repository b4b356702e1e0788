"""The agent: runs one of the commands on its host for an lm-migrate, here or at the other end of an ssh.

It reads requests on standard input and writes what happens on standard output, one JSON object a line. What the command
says (--json-fd) is passed on as it is; what the agent says of its own has "agent" instead of "event".

When standard input ends, lm-migrate is gone, or the connection to it. Then lm-serve is told to end, which it does only
if it has not handed over, and lm-restore is ended unless the process was frozen. Neither harms the process, for it is
the two commands that know what is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import msgspec

from live_migration.remote import laying, moved
from live_migration.remote.errands import Errands, drop, hold_namespace, run_errand
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import VERSION
from live_migration.wire.plain_text import json_line

MODULES = {"lm-serve": "live_migration.cli.serve", "lm-restore": "live_migration.cli.restore"}
LAID = "live_migration.cli.laid"
"""The commands among files that were brought."""
NOT_OVER = (ExitCode.IN_DOUBT, ExitCode.LOST_AFTER)
"""With these lm-restore ends where the process may live on here."""
PART = 1 << 16
MOST_SAID = 1 << 16
"""Characters of what a command wrote on standard error that are passed on."""
DISTRIBUTION = "live-migration"


def version() -> str:
    """The version of live-migration that runs here, and of its protocol."""
    try:
        return f"{metadata.version(DISTRIBUTION)}, protocol {VERSION}"
    except metadata.PackageNotFoundError:
        return f"unknown, protocol {VERSION}"


@dataclass
class Running:
    """A command that the agent has started: its events come through `pipe`, its end through `watch`."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: IO[bytes]
    watch: int
    said: IO[bytes]
    report: Path
    source: str
    source_pid: int
    held: bytes = b""
    more: bool = True
    events: set[str] = field(default_factory=set)


@dataclass
class Agent:
    """What the agent has to do with: lm-migrate's line, the command, and the process that it has claimed."""

    folder: Path
    running: Running | None = None
    claimed: int | None = None
    errands: Errands = field(default_factory=Errands)
    held: bytes = b""
    lost: bool = False


def main() -> int:
    """Run until there is neither a line nor a command."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="lm-agent-") as folder:
        agent = Agent(Path(folder))
        _tell({"agent": "hello", "version": version(), "root": os.geteuid() == 0})
        while not agent.lost or agent.running:
            _turn(agent)
        drop(agent.errands)
    return 0


def _turn(agent: Agent) -> None:
    """Wait for what comes next, and attend to it."""
    waiting = [] if agent.lost else [0]
    running = agent.running
    if running:
        waiting += [running.watch, *([running.pipe.fileno()] if running.more else [])]
    ready, _, _ = select.select(waiting, [], [])
    if running and running.watch in ready:
        _ended(agent, running)
    elif running and running.pipe.fileno() in ready:
        _pass_on(running, agent.errands)
    if 0 in ready:
        data = os.read(0, PART)
        *lines, agent.held = (agent.held + data).split(b"\n")
        for line in lines:
            _obey(agent, msgspec.json.decode(line))
        if not data:
            agent.lost = True
            _lost(agent)


def _obey(agent: Agent, request: dict[str, Any]) -> None:
    """Do what lm-migrate asks for."""
    what = request["do"]
    if what == "start":
        agent.running = _start(agent, request)
    elif what == "signal" and agent.running:
        with contextlib.suppress(ProcessLookupError):
            agent.running.process.send_signal(request["number"])
    elif what == "claim":
        agent.claimed = _claim(request["pid"])
        _tell({"agent": "claimed", "free": agent.claimed is not None})
    elif what == "probe":
        _tell({"agent": "probed", "reached": _reaches(request["host"], request["port"], request["seconds"])})
    elif what == "loopback":
        _tell({"agent": "loopback", "only": _only_loopback(request["port"])})
    elif what == "list":
        _tell({"agent": "listed", "sentences": [*moved.listed(), *_waiting(), *laying.sweep()]})
    elif (answer := run_errand(agent.errands, what, request)) is not None:
        _tell({"agent": what, **answer})


def _start(agent: Agent, request: dict[str, Any]) -> Running:
    """Start a command, in a session of its own, with the ticket on its standard input."""
    name = request["command"]
    report = agent.folder / "report"
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the command
    read_end, write_end = os.pipe()
    started = [MODULES[name]]
    store = agent.errands.store
    if name == "lm-restore" and store and not store.place:
        started = [LAID, name, str(store.folder)]
    elif name == "lm-serve" and laying.is_laid(int(request["words"][-1])):
        started = [LAID, name, request["words"][-1]]
    line = [sys.executable, "-P", "-m", *started, f"--json-fd={write_end}", f"--report={report}"]
    try:
        process = subprocess.Popen(
            [*line, *request["words"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[write_end],
            start_new_session=True,
        )
    finally:
        os.close(write_end)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(request.get("ticket", "").encode() + b"\n")
    pipe = open(read_end, "rb", buffering=0)  # noqa: SIM115 - it is closed with the command
    source, source_pid = request.get("source", ""), request.get("source_pid", 0)
    return Running(name, process, pipe, os.pidfd_open(process.pid), said, report, source, source_pid)


def _pass_on(running: Running, errands: Errands) -> None:
    """Tell lm-migrate what the command tells."""
    data = os.read(running.pipe.fileno(), PART)
    running.more = bool(data)
    *lines, running.held = (running.held + data).split(b"\n")
    for line in lines:
        event = msgspec.json.decode(line)
        running.events.add(event["event"])
        if event["event"] == "staged" and running.name == "lm-restore":
            hold_namespace(errands, running.process.pid)
        if event["event"] == "resumed" and running.name == "lm-restore":
            moved.record(event["pid"], running.source, running.source_pid)
        _tell(event)


def _ended(agent: Agent, running: Running) -> None:
    """The command has ended. What it leaves behind may have its pipe open, so that its end counts, not the pipe's."""
    while running.more and select.select([running.pipe], [], [], 0)[0]:
        _pass_on(running, agent.errands)
    status = running.process.wait()
    running.said.seek(0)
    report = None
    with contextlib.suppress(OSError, msgspec.DecodeError):
        report = msgspec.json.decode(running.report.read_bytes())
    said = running.said.read(MOST_SAID).decode(errors="replace")
    _tell({"agent": "ended", "status": status, "said": said, "report": report})
    running.pipe.close()
    running.said.close()
    os.close(running.watch)
    agent.running = None
    if running.name == "lm-restore":
        # One that was killed may have left a worker that goes on.
        gone = status > 0 and status not in NOT_OVER and "resumed" not in running.events
        drop(agent.errands, kept=not gone)


def _lost(agent: Agent) -> None:
    """lm-migrate is gone. A signal that lm-restore can catch would reach the process if that has just resumed."""
    running = agent.running
    if running is None:
        return
    with contextlib.suppress(ProcessLookupError):
        if running.name == "lm-serve":
            running.process.send_signal(signal.SIGTERM)
        elif "frozen" not in running.events:
            running.process.send_signal(signal.SIGKILL)


def _claim(pid: int) -> int | None:
    """Hold a lock on the process, which goes with this agent; None if another one has it. A process that is not there
    is nobody's: lm-serve has words for that."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
    return -1


def _reaches(host: str, port: int, seconds: float) -> bool:
    """Does anybody listen there? The connection is reset at once, so that nobody takes it for a peer's."""
    try:
        with socket.create_connection((host, port), seconds) as connected:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return False
    return True


def _only_loopback(port: int) -> bool:
    """Is everything that listens at the port bound to a loopback address? (proc_net_tcp)"""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                words = line.split()
                address, _, number = words[1].partition(":")
                loopback = address.endswith("7F") if name == "tcp" else address == "0" * 24 + "01000000"
                if words[3] == "0A" and int(number, 16) == port and not loopback:
                    return False
    return True


def _waiting() -> list[str]:
    """What waits here for the other side's decision, in the commands' words."""
    sentences = []
    for name, module in MODULES.items():
        line = [sys.executable, "-P", "-m", module, "--decide", "list"]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        found = [text.removeprefix(f"{name}: ") for text in done.stderr.splitlines()]
        sentences += [text for text in found if text != "nothing waits here"]
    return sentences


def _tell(content: dict[str, Any]) -> None:
    """Write a line. Nobody may be there any more."""
    with contextlib.suppress(OSError):
        data = json_line(content)
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
