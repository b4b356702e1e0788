"""lm-migrate: one move from a host to another, as one command of this host sees it.

An agent on either host (agent.py) runs the command of its side. The order of things: look here, bring the bundle there,
lm-serve listens, find out whether its port can be reached, lm-restore gets the ticket, and then both are followed to
their ends. What is right at which moment, the two commands know; nothing here decides for them.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import msgspec

from live_migration.remote import files
from live_migration.remote.bundle import PROGRAM, bring, bundle_at_hand
from live_migration.remote.line import Line, heard, through, to_this_host
from live_migration.remote.ssh import Ssh, connection
from live_migration.wire.addresses import show_address
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import LocalError, MigrationError, RemoteError
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.report import Report, show_bytes, write_report
from live_migration.wire.ticket import Ticket, parse_ticket

PROBE_SECONDS = 2.0
CHECK_SECONDS = 120.0
TURN_SECONDS = 0.2
ENDING_SECONDS = 15.0
"""So long one side may take to end after the other one has failed."""
REDIAL_SECONDS = 3.0
PAGE = 4096
LOOPBACK = "127.0.0.1"
ONCE = ("staged", "frozen", "resumed", "complete")
AGAIN = ("stalled", "reconnected")
THE_OTHER_SIDE = RemoteError.whose.partition(" failed")[0]
EFFECTS = (ExitCode.PEER_FAILED, ExitCode.LOST_BEFORE, ExitCode.TERMINATED)
STOPPED = (ExitCode.TERMINATED, -signal.SIGTERM)
"""With this lm-serve ends when it is told to before the handover; the second, where it was told twice."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class MigrateOptions:
    """What is asked for.

    back     from the host to here, instead of from here to the host
    via      "direct", "ssh", or "auto": direct where that is possible
    ssh      the command, with the user's options
    serve    options of lm-serve, and restore those of lm-restore, as words
    files    as lm-restore's --files; or "copy" or "copy=place": what is missing there travels (files.py)
    listen   where lm-serve listens, if the user has said that
    """

    pid: int
    host: str
    back: bool = False
    via: str = "auto"
    ssh: tuple[str, ...] = ("ssh",)
    bundle: str | None = None
    check: bool = False
    serve: tuple[str, ...] = ()
    restore: tuple[str, ...] = ()
    files: str = "strict"
    listen: str | None = None
    report: str | None = None


@dataclass
class End:
    """How a side has ended: its command's status and report, or neither, when there is no line to it any more."""

    status: int | None = None
    said: str = ""
    report: Any = None


@dataclass
class Tunnel:
    """The port that ssh forwards: "-R" or "-L", and its specification."""

    way: str
    what: str


@dataclass
class Move:
    """A move under way.

    resumed  a side has said that the process has been handed over
    pid      the process, as the destination knows it
    """

    options: MigrateOptions
    events: Events
    ssh: Ssh
    program: str
    source: Line
    destination: Line
    tunnel: Tunnel | None = None
    pid: int = 0
    resumed: bool = False
    told: set[str] = field(default_factory=set)
    left: int = 0
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)
    stopped_by: int = 0
    ending_at: float | None = None
    redial_at: float = 0.0
    leaving: bool = False

    def side(self, line: Line) -> str:
        """Which side a line leads to."""
        return "source" if line is self.source else "destination"


def migrate(options: MigrateOptions, events: Events) -> int:
    """Move the process; the exit status. Raises MigrationError with the process untouched."""
    with contextlib.ExitStack() as closed:
        near = to_this_host()
        closed.callback(near.hang_up)
        ssh = closed.enter_context(connection(options.host, options.ssh))
        begin = begin_check if options.check else begin_serve
        if not options.back:
            claim(near, options)
            # It looks at the process while ssh connects.
            host = ssh.address_towards()
            begin(near, options, host)
        bundle = bundle_at_hand(options.bundle)
        try:
            there = bring(ssh, bundle)
        except MigrationError:
            # What keeps the process here is told first.
            if not options.back and options.check:
                end_check(near)
            elif not options.back:
                await_ticket(near)
            raise
        program = f"{there.root}{there.cache}/{bundle.digest}/{PROGRAM}"
        if not re.fullmatch(r"[A-Za-z0-9_./@+:, -]+", program):
            raise failed(options.host, f"the path of its cache ({there.cache}) is no plain one", "set XDG_CACHE_HOME")
        far = through(ssh, program)
        closed.callback(far.hang_up)
        source, destination = (far, near) if options.back else (near, far)
        if options.back:
            claim(far, options)
            host = there.to_address
            begin(far, options, host)
        if options.check:
            blockers = end_check(source)
            if options.files in files.COPIES:
                travelling, more = files.compare(source, destination, options.pid, options.files)
                files.tell(travelling, events, 0)
                blockers += more
            return int(events.checked(options.pid, blockers))
        move = Move(options, events, ssh, program, source, destination)
        start(move, host)
        follow(move)
        return finish(move)


def list_moved(host: str, ssh_words: Sequence[str], bundle: str | None, events: Events) -> int:
    """Say what was moved to a host (empty: this one), what still pulls pages, and what waits. Raises MigrationError."""
    with contextlib.ExitStack() as closed:
        if host:
            taken = bundle_at_hand(bundle)
            ssh = closed.enter_context(connection(host, ssh_words))
            there = bring(ssh, taken)
            line = through(ssh, f"{there.root}{there.cache}/{taken.digest}/{PROGRAM}")
        else:
            line = to_this_host()
        closed.callback(line.hang_up)
        for sentence in line.ask("listed", "list")["sentences"] or ["nothing was moved here, and nothing waits"]:
            events.note(str(sentence), 0)
    return int(ExitCode.OK)


def failed(what: str, cause: str, remedy: str, code: ExitCode = ExitCode.SYSTEM) -> LocalError:
    """An error of lm-migrate's own."""
    return LocalError(step="the migration", object=what, cause=cause, remedy=remedy, code=code)


def claim(source: Line, options: MigrateOptions) -> None:
    """From here on no other lm-migrate moves it. Raises LocalError (REFUSED)."""
    if not source.ask("claimed", "claim", pid=options.pid)["free"]:
        raise failed(
            f"process {options.pid}",
            "another lm-migrate is moving it",
            "wait for that one, or end it with Ctrl-C",
            ExitCode.REFUSED,
        )


def begin_check(source: Line, options: MigrateOptions, _: str) -> None:
    """Let lm-serve look at the process, while something else is done."""
    source.tell("start", command="lm-serve", words=[*options.serve, "--check", "--", str(options.pid)])


def end_check(source: Line) -> list[Blocker]:
    """What lm-serve --check has found. Raises MigrationError if it has not even come to that."""
    ended = source.wait_for("ended", seconds=CHECK_SECONDS)
    came, source.kept = source.kept, []
    found: list[Blocker] = []
    for message in came:
        if message.get("event") == "failed":
            raise in_their_words("", message)
        if message.get("event") == "checked":
            found = msgspec.convert(message["blockers"], list[Blocker])
    if not found and ended["status"]:
        raise in_their_words("", {"error": ended["said"], "code": ended["status"]})
    return found


class InTheirWords(MigrationError):
    """A command's own sentence."""

    def __init__(self, text: str, code: int, blockers: Sequence[Blocker]) -> None:
        known = next((one for one in ExitCode if one == code), ExitCode.BUG)
        super().__init__(step="", object="", cause="", remedy="", code=known)
        self.text = text
        self.blockers = tuple(blockers)

    def __str__(self) -> str:
        return "\n".join([self.text, *(f"  {blocker}" for blocker in self.blockers)])


def in_their_words(host: str, message: dict[str, Any]) -> InTheirWords:
    """The error that a command has ended with, on a host if it is not this one."""
    blockers = msgspec.convert(message.get("blockers", []), list[Blocker])
    text = str(message.get("error", "")).strip() or "a command has ended without a word"
    code = message.get("code")
    return InTheirWords(f"{host}: {text}" if host else text, code if isinstance(code, int) else 0, blockers)


def begin_serve(source: Line, options: MigrateOptions, host: str) -> None:
    """Let lm-serve listen, at the address by which the destination knows the source, as far as that is known."""
    chosen = show_address(LOOPBACK if options.via == "ssh" or not host else host, 0)
    words = [*options.serve, f"--listen={options.listen or chosen}", "--", str(options.pid)]
    source.tell("start", command="lm-serve", words=words)


def start(move: Move, host: str) -> None:
    """Wait for lm-serve's ticket, find a way to its port, and start lm-restore with it. Raises MigrationError."""
    options = move.options
    ticket = parse_ticket(await_ticket(move.source))
    if options.files in files.COPIES:
        files.bring(move.source, move.destination, options.pid, options.files, move.events)
    if options.via == "ssh" or not reachable(move, ticket, host):
        if options.via == "direct":
            raise failed(
                options.host,
                f"it does not reach {show_address(ticket.host, ticket.port)}"
                if not options.back
                else f"this host does not reach {show_address(ticket.host, ticket.port)} there",
                "open that port in the firewall (--listen chooses it), or leave --via direct out",
                ExitCode.NO_PEER,
            )
        ticket = through_tunnel(move, ticket)
    move.destination.tell(
        "start",
        command="lm-restore",
        words=[*options.restore, "--detach", "--stdio=null", "-"],
        ticket=str(ticket),
        source=options.host if options.back else socket.gethostname(),
        source_pid=options.pid,
    )


def await_ticket(source: Line) -> str:
    """Wait until lm-serve listens. Raises MigrationError: above all, that the process cannot be moved."""
    message = source.wait_for("listening", "failed", "ended", seconds=CHECK_SECONDS)
    if message.get("event") == "failed":
        raise in_their_words(source.host, message)
    if message.get("agent") == "ended":
        raise in_their_words(source.host, {"error": message["said"], "code": message["status"]})
    return str(message["ticket"])


def reachable(move: Move, ticket: Ticket, host: str) -> bool:
    """Does the destination reach lm-serve's port?"""
    if not host and not move.options.listen:
        return False
    asked = {"host": ticket.host, "port": ticket.port, "seconds": PROBE_SECONDS}
    return bool(move.destination.ask("probed", "probe", **asked)["reached"])


def through_tunnel(move: Move, ticket: Ticket) -> Ticket:
    """Let ssh forward a port of the destination's loopback to lm-serve; the ticket for that. Raises LocalError."""
    to = show_address(ticket.host, ticket.port)
    if move.options.back:
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            port = int(free.getsockname()[1])
        move.tunnel = Tunnel("-L", f"{LOOPBACK}:{port}:{to}")
        move.ssh.forward("-L", move.tunnel.what)
    else:
        said = move.ssh.forward("-R", f"{LOOPBACK}:0:{to}")
        found = re.search("[0-9]+", said)
        port = int(found[0]) if found else 0
        move.tunnel = Tunnel("-R", f"{LOOPBACK}:{port}:{to}")
        if not port or not move.destination.ask("loopback", "loopback", port=port)["only"]:
            raise failed(
                move.options.host,
                "its sshd forwards ports for everybody (GatewayPorts yes)",
                "set GatewayPorts to no there, or let the hosts reach each other and say --via direct",
                ExitCode.NO_PERMISSION,
            )
    move.events.note("the memory travels inside ssh")
    return Ticket(LOOPBACK, port, ticket.secret)


@contextlib.contextmanager
def signals_noted(move: Move) -> Iterator[None]:
    """Within, signals are attended to between two messages."""

    def note(number: int, _: FrameType | None) -> None:
        move.signals.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(move: Move) -> None:
    """Show what both sides tell, until both have ended."""
    with signals_noted(move):
        while len(move.ends) < 2 and not move.leaving:
            for line, message in heard([move.source, move.destination], TURN_SECONDS):
                show(move, line, message)
            while move.signals:
                on_signal(move, move.signals.pop(0))
            if move.ending_at is not None and time.monotonic() > move.ending_at and not move.resumed:
                # It has had its time. Its frontend may be killed at any moment: its worker knows what is right.
                move.destination.tell("signal", number=int(signal.SIGKILL))
                move.ending_at = None
            redial(move)


def show(move: Move, line: Line, message: dict[str, Any]) -> None:
    """Attend to what one side says."""
    side, event = move.side(line), message.get("event")
    move.resumed = move.resumed or event == "resumed"
    if not message:
        lost(move, side)
    elif message.get("agent") == "ended":
        ended(move, side, End(int(message["status"]), str(message["said"]), message.get("report")))
    elif event == "failed":
        move.failures[side] = message
    elif event == "note":
        text = str(message.get("text"))
        # Without its name before it, it is the result. That, and why it has failed, is said at the end.
        if text.startswith(("lm-serve: ", "lm-restore: ")) and side not in move.failures:
            move.events.note(f"{line.host or 'here'}: {text}", 0)
    elif event == "progress" and side == "destination":
        pages, total, faults = (int(message.get(name, 0)) for name in ("pages", "total", "faults"))
        move.left = max(0, total - pages) * PAGE
        move.events.progress(pages, total, faults)
    elif event in {*AGAIN, *ONCE} - move.told and (side == "destination" or move.destination.lost):
        move.told |= {event} & {*ONCE}
        pid = int(message.get("pid", 0))
        if event == "resumed":
            move.pid = pid
        details = {name: value for name, value in message.items() if name not in ("event", "pid", "time")}
        move.events.emit(event, pid, **details)


def ended(move: Move, side: str, end: End) -> None:
    """A side's command has ended. One that has failed leaves the other without a peer: that one is told to end, which
    it does as far as that is right."""
    move.ends[side] = end
    if end.status and not move.resumed and len(move.ends) < 2:
        if side == "destination":
            move.source.tell("signal", number=int(signal.SIGTERM))
        else:
            move.ending_at = time.monotonic() + ENDING_SECONDS


def lost(move: Move, side: str) -> None:
    """There is no line to a side any more. Its agent does what is right there (agent.py)."""
    if side in move.ends:
        return
    move.ends[side] = End()
    if not move.resumed and side == "destination":
        move.source.tell("signal", number=int(signal.SIGTERM))
    if move.resumed:
        name = (move.source if side == "source" else move.destination).host or "this host"
        move.events.note(f"the connection to {name} has ended; the process is handed over, and the move goes on", 0)


def on_signal(move: Move, number: int) -> None:
    """Ctrl-C and the like: until the handover everything is undone, by the source, which decides that; from then on
    there is nothing to undo."""
    if not move.resumed:
        if not move.stopped_by:
            move.stopped_by = number
            move.events.note("it is being undone", 0)
        move.source.tell("signal", number=int(signal.SIGTERM))
        return
    options = move.options
    where, from_where = ("here", f"at {options.host}") if options.back else (f"at {options.host}", "here")
    said = f"process {move.pid or options.pid} runs {where}, and cannot be called back; "
    said += f"{show_bytes(move.left)} of its memory is still {from_where}"
    if move.tunnel is not None:
        move.events.note(f"{said} and travels through this command's ssh: lm-migrate goes on until all has arrived", 0)
    elif move.stopped_by:
        move.events.note(f"{said}; both sides go on without lm-migrate", 0)
        move.leaving = move.source.left = move.destination.left = True
    else:
        move.stopped_by = number
        move.events.note(f"{said}: lm-migrate goes on until all has arrived; once more, and both go on without it", 0)


def redial(move: Move) -> None:
    """Where the memory travels inside ssh, take up the connection again: the two sides wait for it."""
    if move.tunnel is None or not move.resumed or len(move.ends) != 1 or time.monotonic() < move.redial_at:
        return
    (lost_side,) = move.ends
    line = move.source if lost_side == "source" else move.destination
    if not line.host or not line.lost:
        return
    with contextlib.suppress(MigrationError):
        move.ssh.again()
        again = through(move.ssh, move.program)
        move.ssh.forward(move.tunnel.way, move.tunnel.what)
        move.events.note(f"{move.options.host} is connected again", 0)
        line.process, line.said, line.held = again.process, again.said, b""
        line.lost = False
        return
    move.redial_at = time.monotonic() + REDIAL_SECONDS


def finish(move: Move) -> int:
    """Say how it has ended; the exit status."""
    options = move.options
    if move.leaving:
        return int(ExitCode.INTERRUPTED)
    source, destination = move.ends["source"], move.ends["destination"]
    reports = []
    for end in (destination, source):
        with contextlib.suppress(msgspec.ValidationError):
            reports.append(msgspec.convert(end.report, Report))
    for one in reports:
        move.events.measured(one)
    report = reports[0] if reports else None
    if report is not None and options.report:
        write_report(options.report, report)
    statuses = (source.status, destination.status)
    if 0 in statuses and {*statuses} <= {0, None}:
        if report is not None:
            move.events.result(report)
        return int(ExitCode.OK)
    if move.stopped_by and not move.resumed and source.status in STOPPED:
        move.events.note(f"interrupted; process {options.pid} runs on as before", 0)
        return int(ExitCode.INTERRUPTED if move.stopped_by == signal.SIGINT else ExitCode.TERMINATED)
    raise cause_of(move)


def cause_of(move: Move) -> MigrationError:
    """The error of the side that failed first: the other one only says that its peer has."""
    found: list[tuple[int, MigrationError]] = []
    for side, line in (("destination", move.destination), ("source", move.source)):
        end = move.ends[side]
        if end.status is None:
            found.append((1, line.error()))
        elif end.status:
            words = {"error": end.said, "code": end.status} | move.failures.get(side, {})
            told_of = end.status in EFFECTS or str(words["error"]).startswith(THE_OTHER_SIDE)
            found.append((2 if told_of else 0, in_their_words(line.host, words)))
    return min(found, key=lambda one: one[0])[1]
