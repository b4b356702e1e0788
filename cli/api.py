"""The commands as Python functions: `live_migration.migrate`, `serve`, `restore` and `check`.

Each starts its command as a process of its own and reads its events (--json-fd): what the commands do to their own
process (forks, signal handlers, memory of their own) must not happen to a caller's. They may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from live_migration.wire.blockers import Blocker
from live_migration.wire.report import Report

ENDING_SECONDS = 10.0
MODULES = {
    "lm-migrate": "live_migration.cli.migrate",
    "lm-restore": "live_migration.cli.restore",
    "lm-serve": "live_migration.cli.serve",
}


@dataclass(frozen=True)
class Event:
    """An event that a command reports while it works.

    name      "listening", "staged", "frozen", "resumed", "complete", "stalled", "reconnected", "ended", "checked",
              "failed", or "note" (a sentence for people) and "progress" (how many pages have arrived)
    pid       the process that it is about, as this host knows it; 0 for none
    time      when, in seconds since 1970
    details   what belongs to it: "ticket" and "command" of "listening", "text" of "note", "pages", "total" and "faults"
              of "progress", "source_pid" of "staged" and "frozen" at the destination, "downtime_ms" of "resumed",
              "status" of "ended"
    """

    name: str
    pid: int
    time: float
    details: dict[str, Any]


OnEvent = Callable[[Event], None]


class MigrationFailed(Exception):
    """A command has ended with an error, which `str` gives in the command's own words.

    code      the status with which it ended; docs/exit-codes.md tells what has become of the process
    blockers  why the process cannot be moved as it is, if it was refused
    report    what was written until then, if both sides were connected
    """

    def __init__(
        self, sentence: str, code: int, blockers: Sequence[Blocker] = (), report: Report | None = None
    ) -> None:
        super().__init__(sentence, code, tuple(blockers), report)
        self.sentence = sentence
        self.code = code
        self.blockers = tuple(blockers)
        self.report = report

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"  {blocker}" for blocker in self.blockers)])


def migrate(
    pid: int,
    host: str,
    *,
    back: bool = False,
    via: Literal["auto", "direct", "ssh"] = "auto",
    ssh: str = "ssh",
    bundle: str | os.PathLike[str] | None = None,
    listen: str | None = None,
    strategy: Literal["post-copy", "hybrid", "pre-copy", "stop-and-copy", "auto"] = "post-copy",
    max_rounds: int | None = None,
    max_downtime: float | None = None,
    round_timeout: float | None = None,
    on_no_convergence: Literal["post-copy", "freeze", "abort"] | None = None,
    bandwidth_limit: int | None = None,
    compress: Literal["auto", "none"] | int = "auto",
    max_freeze: float = 5.0,
    exit_status: int = 0,
    prefetch: Literal["hot", "order"] = "hot",
    keep_pid: Literal["auto", "keep", "namespace"] = "auto",
    files: Literal["strict", "size", "trust", "copy", "copy=place"] = "strict",
    map_path: Mapping[str, str] | None = None,
    tcp: Literal["keep", "close", "refuse"] = "keep",
    cpu: Literal["strict", "trust"] = "strict",
    max_memory: int | None = None,
    allow_uid: Sequence[int | str] = (),
    allow_path: Sequence[str | os.PathLike[str]] = (),
    verbose: int = 0,
    on_event: OnEvent | None = None,
) -> Report:
    """Move the process `pid` of this host to `host` ("[USER@]HOST"), over ssh, as lm-migrate does; with `back` the
    process `pid` of `host` to this one. Returns the destination's report when every page has arrived there.

    `ssh` is the command with options of your own ("ssh -p 2222"), and asks nothing: it has no terminal. `keep_pid` is
    lm-restore's --pid; with `files` "copy" the files that are missing there, or differ, travel along. The other options
    are as for serve() and restore(), with the same units, and as in
    `lm-migrate --help`.

    `on_event` is called in this thread for everything that happens, and should return soon. An exception from it, or
    a KeyboardInterrupt, tells lm-migrate to stop: before the handover everything is undone on both hosts, after it
    lm-migrate stays until every page has arrived. Raises MigrationFailed.
    """
    words = _words(
        back=back, via=via, ssh=ssh, bundle=bundle, listen=listen, strategy=strategy, max_rounds=max_rounds,
        max_downtime=None if max_downtime is None else f"{max_downtime:f}ms", round_timeout=round_timeout,
        on_no_convergence=on_no_convergence, bandwidth_limit=bandwidth_limit, compress=compress,
        max_freeze=max_freeze, exit_status=exit_status, prefetch=prefetch, pid=keep_pid, files=files, tcp=tcp, cpu=cpu,
        max_memory=max_memory,
    )  # fmt: skip
    words += _narrowed(allow_uid, allow_path, map_path)
    where = [host, str(pid)] if back else [str(pid), host]
    return _move("lm-migrate", [*words, *["-v"] * verbose, "--", *where], on_event, signal.SIGTERM)


def serve(
    pid: int,
    *,
    listen: str | None = None,
    to: str | None = None,
    ticket_file: str | os.PathLike[str] | None = None,
    bandwidth_limit: int | None = None,
    compress: Literal["auto", "none"] | int = "auto",
    max_freeze: float = 5.0,
    exit_status: int = 0,
    reconnect_timeout: float | None = None,
    insecure: bool = False,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    verbose: int = 0,
    on_event: OnEvent | None = None,
) -> Report:
    """Move the running process `pid` away, as lm-serve does. Returns the source's report when its copy has left.

    It waits at `listen` ("HOST:PORT"), and the event "listening" has the ticket; or it connects `to` a destination that
    waits, whose ticket this is (text, or "@FILE"). `bandwidth_limit` is in bytes per second, `max_freeze` and
    `reconnect_timeout` in seconds.
    Everything else is as in `lm-serve --help`, including environment variables.

    `on_event` is called in this thread for everything that happens, and should return soon. An exception from it, or
    a KeyboardInterrupt, tells lm-serve to stop: before the handover the process runs on untouched, after it lm-serve
    stays until the destination has every page. Raises MigrationFailed.
    """
    words = _words(
        listen=listen, to=to, ticket_file=ticket_file, bandwidth_limit=bandwidth_limit, compress=compress,
        max_freeze=max_freeze, exit_status=exit_status, reconnect_timeout=reconnect_timeout, insecure=insecure,
        tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca,
    )  # fmt: skip
    return _move("lm-serve", [*words, *["-v"] * verbose, "--", str(pid)], on_event, signal.SIGTERM)


def restore(
    ticket: str | None = None,
    *,
    listen: str | None = None,
    ticket_file: str | os.PathLike[str] | None = None,
    strategy: Literal["post-copy", "hybrid", "pre-copy", "stop-and-copy", "auto"] = "post-copy",
    max_rounds: int | None = None,
    max_downtime: float | None = None,
    round_timeout: float | None = None,
    on_no_convergence: Literal["post-copy", "freeze", "abort"] | None = None,
    bandwidth_limit: int | None = None,
    prefetch: Literal["hot", "order"] = "hot",
    pid: Literal["auto", "keep", "namespace"] = "auto",
    detach: bool = False,
    stdio: Literal["null", "attach"] = "null",
    files: Literal["strict", "size", "trust"] = "strict",
    map_path: Mapping[str, str] | None = None,
    tcp: Literal["keep", "close", "refuse"] = "keep",
    take_address: Sequence[str] = (),
    netns: str | None = None,
    cpu: Literal["strict", "trust"] = "strict",
    max_memory: int | None = None,
    allow_uid: Sequence[int | str] = (),
    allow_path: Sequence[str | os.PathLike[str]] = (),
    reconnect_timeout: float | None = None,
    on_lost: Literal["wait", "stop", "poison"] | None = None,
    insecure: bool = False,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    verbose: int = 0,
    on_event: OnEvent | None = None,
) -> Report:
    """Take over the process that an lm-serve with this ticket offers (text, or "@FILE"), as lm-restore does, or wait
    for it at `listen`. Returns the destination's report.

    With `detach` it returns when every page has arrived, and the process lives on. Without `detach` it returns when the
    process has ended; the report's `exit_status` is then the status of the process. `max_downtime` is in milliseconds,
    `round_timeout` and `reconnect_timeout` in seconds, `bandwidth_limit` in bytes per second, `max_memory` in bytes;
    `map_path` tells where files are here ({"/old": "/new"}); with `stdio` "attach" this process's descriptors 0 to 2
    replace those that cannot be moved.
    Everything else is as in `lm-restore --help`, including environment variables.

    `on_event` is called in this thread for everything that happens, and should return soon. An exception from it, or
    a KeyboardInterrupt, ends lm-restore: until the freeze the process runs on at the source, from then on it is moved
    all the same, and lives on here. Raises MigrationFailed.
    """
    words = _words(
        listen=listen, ticket_file=ticket_file, strategy=strategy, max_rounds=max_rounds,
        max_downtime=None if max_downtime is None else f"{max_downtime:f}ms", round_timeout=round_timeout,
        on_no_convergence=on_no_convergence, bandwidth_limit=bandwidth_limit, prefetch=prefetch, pid=pid,
        detach=detach, stdio=stdio, files=files, tcp=tcp, netns=netns, cpu=cpu,
        max_memory=max_memory, reconnect_timeout=reconnect_timeout, on_lost=on_lost, insecure=insecure,
        tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca,
    )  # fmt: skip
    words += _narrowed(allow_uid, allow_path, map_path)
    words += [f"--take-address={one}" for one in take_address]
    words += ["-v"] * verbose
    # lm-restore's frontend may be killed at any time: its worker knows what is right then. A signal that it can catch
    # would reach the process if that has just resumed.
    words += [] if ticket is None else ["--", ticket]
    return _move("lm-restore", words, on_event, signal.SIGKILL, attach=stdio == "attach")


def check(pid: int) -> tuple[Blocker, ...]:
    """All blockers to moving a process, as `lm-serve PID --check` lists them; it changes nothing.

    Raises MigrationFailed if the process cannot even be read.
    """
    found = _run("lm-serve", ["--check", "--", str(pid)], None, signal.SIGTERM)
    for event in found.events:
        if event.name == "checked":
            return tuple(msgspec.convert(event.details["blockers"], list[Blocker]))
    raise _failure("lm-serve", found, None)


@dataclass
class _Ended:
    """A command that has ended: its status, the events that matter for the result, and what it wrote last."""

    status: int = 0
    events: list[Event] = field(default_factory=list)
    said: str = ""


def _words(**options: object) -> list[str]:
    """Keyword arguments as words of a command line."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        option = "--" + name.replace("_", "-")
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        words.append(option if value is True else f"{option}={text}")
    return words


def _narrowed(
    users: Sequence[int | str], paths: Sequence[str | os.PathLike[str]], mapped: Mapping[str, str] | None
) -> list[str]:
    """Options of lm-restore that may be repeated, as words."""
    words = [f"--allow-uid={user}" for user in users] + [f"--allow-path={os.fspath(path)}" for path in paths]
    return words + [f"--map-path={old}={new}" for old, new in (mapped or {}).items()]


def _move(
    command: str, words: Sequence[str], on_event: OnEvent | None, ending: signal.Signals, *, attach: bool = False
) -> Report:
    """Run a command to its end, and read its report."""
    with tempfile.TemporaryDirectory(prefix="live-migration-") as folder:
        path = Path(folder, "report")
        ended = _run(command, [f"--report={path}", *words], on_event, ending, attach=attach)
        report = None
        with contextlib.suppress(OSError, msgspec.DecodeError):
            report = msgspec.json.decode(path.read_bytes(), type=Report)
    if report is None or report.outcome != "complete" or any(event.name == "failed" for event in ended.events):
        raise _failure(command, ended, report)
    return report


def _failure(command: str, ended: _Ended, report: Report | None) -> MigrationFailed:
    for event in ended.events:
        if event.name == "failed":
            blockers = msgspec.convert(event.details.get("blockers", []), list[Blocker])
            return MigrationFailed(event.details["error"], event.details["code"], blockers, report)
    if ended.status < 0:
        return MigrationFailed(f"{command} was ended by signal {-ended.status}", 128 - ended.status, report=report)
    sentence = ended.said.strip() or f"{command} ended with status {ended.status} and no word"
    return MigrationFailed(sentence, ended.status, report=report)


def _run(
    command: str,
    words: Sequence[str],
    on_event: OnEvent | None,
    ending: signal.Signals,
    *,
    attach: bool = False,
) -> _Ended:
    """Start a command, pass on its events, and wait for its end.

    It has a session of its own, so that keys typed at the terminal reach only this process."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as pipe, tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULES[command], f"--json-fd={write_end}", *words],
                stdin=None if attach else subprocess.DEVNULL,
                stdout=None if attach else subprocess.DEVNULL,
                stderr=None if attach else said,
                pass_fds=[write_end],
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        ended = _Ended()
        try:
            for event in _events(process, pipe):
                if event.name in ("checked", "failed"):
                    ended.events.append(event)
                if on_event:
                    on_event(event)
            ended.status = process.wait()
        except BaseException:
            _end(process, ending)
            raise
        said.seek(0)
        ended.said = said.read().decode(errors="replace")
    return ended


def _events(process: subprocess.Popen[bytes], pipe: IO[bytes]) -> Iterator[Event]:
    """The events of a command until it ends. Its own end counts, not that of the pipe: processes that it leaves behind
    hold the pipe too."""
    watch = os.pidfd_open(process.pid)
    try:
        held = b""
        alive = True
        while alive or select.select([pipe], [], [], 0)[0]:
            ready, _, _ = select.select([pipe.fileno(), watch], [], [])
            alive = alive and watch not in ready
            if pipe.fileno() in ready:
                data = pipe.read(1 << 16)
                if not data:
                    return
                *lines, held = (held + data).split(b"\n")
                for line in lines:
                    yield _event(msgspec.json.decode(line))
    finally:
        os.close(watch)


def _event(content: dict[str, Any]) -> Event:
    return Event(content.pop("event"), content.pop("pid"), content.pop("time"), content)


def _end(process: subprocess.Popen[bytes], ending: signal.Signals) -> None:
    """Tell a command to end. One that stays, since it holds what a moved process needs, is left to itself."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(ending)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.wait, daemon=True).start()
