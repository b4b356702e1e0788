"""How a command shows events to its reader (wire/events.py): JSON lines, plain lines, or a bar on a terminal.

Standard output carries what scripts read: the ticket, the result of --check, and with --json every
event as one object a line, flushed at once. Everything for human eyes goes to standard error.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from live_migration.cli.output import Outlet
from live_migration.cli.watchers import Watcher
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import MigrationError, Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.plain_text import json_line, printable
from live_migration.wire.report import Report, show_bytes, summary
from live_migration.wire.ticket import Ticket

SENTENCES = {
    "connected": "the other side is connected",
    "staged": "everything is prepared at the destination, process {source} still runs at the source",
    "frozen": "process {source} is frozen",
    "resumed": "process {pid} runs at the destination",
    "complete": "every page is at the destination, process {pid} needs the source no more",
    "reattached": "another worker goes on for process {pid}",
    "stalled": "the connection is lost; process {pid} waits for its pages, and both sides keep everything",
    "reconnected": "the connection is back; process {pid} goes on",
    "ended": "process {pid} has ended",
}


PROGRAM_SECONDS = 60.0


class Renderer(Protocol):
    """How events reach the reader."""

    def event(self, event: dict[str, Any], sentence: str) -> None: ...

    def answer(self, text: str) -> None:
        """Text that scripts read."""

    def note(self, text: str) -> None:
        """Text for human eyes alone."""

    def progress(self, pages: int, total: int, faults: int) -> None: ...

    def close(self) -> None: ...


def _print(text: str, *, to_error: bool = False) -> None:
    """Print and flush, without what a terminal would obey. A reader that has gone away does not end a migration."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr if to_error else sys.stdout, flush=True)


class JsonLines:
    """One object a line on standard output; notes on standard error."""

    def event(self, event: dict[str, Any], sentence: str) -> None:
        _print(json_line(event).decode().rstrip("\n"))

    def answer(self, text: str) -> None:
        """An event says it."""

    def note(self, text: str) -> None:
        _print(text, to_error=True)

    def progress(self, pages: int, total: int, faults: int) -> None:
        """`complete` and the report say it."""

    def close(self) -> None:
        """Nothing is held."""


class DescriptorLines:
    """Everything, notes and progress too, as one object a line on a descriptor that a program reads."""

    def __init__(self, descriptor: int) -> None:
        self._outlet = Outlet(descriptor)

    def event(self, event: dict[str, Any], sentence: str) -> None:
        self._outlet.write(json_line(event))

    def answer(self, text: str) -> None:
        """Said by an event instead."""

    def note(self, text: str) -> None:
        self.event({"event": "note", "pid": 0, "time": time.time(), "text": text}, "")

    def progress(self, pages: int, total: int, faults: int) -> None:
        counted = {"pages": pages, "total": total, "faults": faults}
        self.event({"event": "progress", "pid": 0, "time": time.time(), **counted}, "")

    def close(self) -> None:
        """The program has some time to read what it has not read."""
        self._outlet.drain(PROGRAM_SECONDS)


class PlainLines:
    """Sentences on standard error."""

    def event(self, event: dict[str, Any], sentence: str) -> None:
        if sentence:
            _print(sentence, to_error=True)

    def answer(self, text: str) -> None:
        _print(text)

    def note(self, text: str) -> None:
        _print(text, to_error=True)

    def progress(self, pages: int, total: int, faults: int) -> None:
        """Only on a terminal."""

    def close(self) -> None:
        """Nothing is held."""


class Terminal:
    """Sentences and a bar on a terminal. rich is imported when the first page needs it, not at the start.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def event(self, event: dict[str, Any], sentence: str) -> None:
        if sentence:
            self.note(sentence)

    def answer(self, text: str) -> None:
        self.close()
        _print(text)

    def note(self, text: str) -> None:
        if self._bar is None:
            _print(text, to_error=True)
            return
        with contextlib.suppress(OSError, ValueError):
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def progress(self, pages: int, total: int, faults: int) -> None:
        fields = {"amount": f"{show_bytes(pages * 4096)} of {show_bytes(total * 4096)}", "faults": faults}
        # A terminal that has gone away does not end a migration either.
        with contextlib.suppress(OSError, ValueError):
            if self._bar is None:
                self._begin()
            self._bar.update(self._task, completed=pages, total=total, **fields)

    def _begin(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("pages"),
            BarColumn(),
            TextColumn("{task.fields[amount]}, {task.fields[faults]} faults"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("pages", total=None, amount="", faults=0)
        self._bar.start()

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.stop()
            self._bar = None


class RenderedEvents:
    """Events as a renderer shows them, and as programs watch them. Use it as a context manager, so that the terminal
    is left as it was."""

    def __init__(self, name: str, renderer: Renderer, verbose: int = 0, watchers: Sequence[Watcher] = ()) -> None:
        self._name = name
        self._renderer = renderer
        self._verbose = verbose
        self._watchers = list(watchers)

    def __enter__(self) -> RenderedEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(lambda watcher: watcher.end())
        self._renderer.close()

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        """Tell all watchers. One that cannot be told ends nothing, and is told nothing more."""
        for watcher in list(self._watchers):
            try:
                what(watcher)
            except OSError as error:
                self._watchers.remove(watcher)
                self.note(f"{type(watcher).__name__}: {error}; nothing more is told there", 0)

    def emit(self, event: str, pid: int, *, sentence: str | None = None, **details: Any) -> None:
        """Something happened to process `pid` (0: to none). `details` are for --json, as they are; `source_pid` among
        them is the source's id of a process that does not run here yet."""
        content = {"event": event, "pid": pid, "time": time.time(), **details}
        source = details.get("source_pid", pid)
        text = SENTENCES.get(event, "").format(pid=pid, source=source) if sentence is None else sentence
        self._tell(lambda watcher: watcher.event(content))
        self._renderer.event(content, text)

    def progress(self, pages: int, total: int, faults: int) -> None:
        """How many pages have arrived. Call it as often as a terminal should be redrawn, some ten times a second.
        """
        self._tell(lambda watcher: watcher.progress(pages, total, faults))
        self._renderer.progress(pages, total, faults)

    def note(self, text: str, level: int = 1) -> None:
        """A sentence for a reader with that many -v; level 0: for every reader."""
        if self._verbose >= level:
            self._renderer.note(f"{self._name}: {text}")

    def ticket(self, ticket: Ticket, command: str, pid: int = 0) -> None:
        """The port listens: the ticket on a line of its own, and what to run on the other side."""
        self._renderer.answer(str(ticket))
        self._renderer.answer(f"run on the other side: {command}")
        self.emit("listening", pid, sentence="", ticket=str(ticket), command=command)

    def checked(self, pid: int, blockers: Sequence[Blocker]) -> ExitCode:
        """The result of --check, and the status that says the same."""
        self.emit("checked", pid, sentence="", blockers=[_fields(blocker) for blocker in blockers])
        if not blockers:
            self._renderer.answer(f"{pid} can be moved")
            return ExitCode.OK
        for blocker in blockers:
            self._renderer.answer(str(blocker))
        return ExitCode.REFUSED

    def measured(self, report: Report) -> None:
        """What is known of the move so far, for watchers."""
        self._tell(lambda watcher: watcher.measured(report))

    def result(self, report: Report) -> None:
        """The last line."""
        self.measured(report)
        self._renderer.close()
        self._renderer.note(summary(report))

    def failed(self, error: MigrationError, pid: int = 0) -> None:
        """It ends with this error."""
        blockers = error.blockers if isinstance(error, Refused) else ()
        self.failed_in_words(str(error), int(error.code), pid, [_fields(blocker) for blocker in blockers])

    def failed_in_words(self, text: str, code: int, pid: int, blockers: Sequence[dict[str, str]]) -> None:
        """It ends with an error that another process of this side has put into words."""
        self._renderer.close()
        details: dict[str, Any] = {"error": text.partition("\n")[0], "code": code}
        if blockers:
            details["blockers"] = list(blockers)
        self.emit("failed", pid, sentence="", **details)
        self._renderer.note(f"{self._name}: {text}")


def _fields(blocker: Blocker) -> dict[str, str]:
    return {"object": blocker.object, "cause": blocker.cause, "remedy": blocker.remedy}


def make_events(
    name: str, *, json: bool, verbose: int = 0, json_fd: int | None = None, watchers: Sequence[Watcher] = ()
) -> RenderedEvents:
    """What the command `name` says: objects with --json and --json-fd, a bar if standard error is a terminal,
    else lines. `watchers` are told beside that.
    """
    renderer: Renderer
    if json_fd is not None:
        renderer = DescriptorLines(json_fd)
    elif json:
        renderer = JsonLines()
    elif sys.stderr is not None and sys.stderr.isatty():
        renderer = Terminal()
    else:
        renderer = PlainLines()
    return RenderedEvents(name, renderer, verbose, watchers)
