"""Programs that watch a command beside its reader: a line per stage on a descriptor (--status-fd), and the service
manager (sd_notify(3)). cli/metrics.py has the third one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from live_migration.cli.output import Outlet
from live_migration.wire.plain_text import one_line
from live_migration.wire.report import Report

LAST = ("checked", "complete", "ended", "failed")
"""Stages after which a command may end without another one."""
STOPPED = "stopped"
"""The stage of a command that ends before any of them: somebody has stopped it."""
TEXTS = ("error", "cause")
READER_SECONDS = 5.0
MANAGER_SECONDS = 10.0
"""So long the service manager is waited for where it matters that it hears."""
STATES = {
    "listening": "waiting for the other side",
    "staged": "everything is prepared at the destination",
    "frozen": "the process is frozen",
    "resumed": "the process runs at the destination, and its memory follows",
    "reattached": "the process runs at the destination, and its memory follows",
    "reconnected": "the process runs at the destination, and its memory follows",
    "stalled": "the connection is lost, and waited for; both sides keep everything",
    "complete": "every page is at the destination",
}
READY = {"lm-serve": ("listening", "staged", "reattached"), "lm-restore": ("resumed", "reattached")}
"""With which stage a command's service has started: the process can be taken, or it runs here."""
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
ALIVE_TIMES = 3
"""How often a command says that it is alive, in the time within which it has to."""


class Watcher(Protocol):
    """A program that watches. Any of these may raise OSError; then it is not told anything more."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Something has happened; as in --json."""

    def progress(self, pages: int, total: int, faults: int) -> None:
        """So much has arrived."""

    def measured(self, report: Report) -> None:
        """What is known so far, in figures."""

    def end(self) -> None:
        """The command ends."""


class StatusLines:
    """A line for each stage: its name, then words NAME=VALUE, of which `text` is the last and goes to the end."""

    def __init__(self, descriptor: int) -> None:
        self._outlet = Outlet(descriptor)
        self._last = ""

    def event(self, event: Mapping[str, Any]) -> None:
        self._last = str(event["event"])
        words = [self._last, f"pid={event['pid']}", f"time={event['time']:.3f}"]
        for name, value in event.items():
            if name not in ("pid", "time") and isinstance(value, int | float) and not isinstance(value, bool):
                words.append(f"{name}={value}")
        if "blockers" in event:
            words.append(f"blockers={len(event['blockers'])}")
        words += [f"text={one_line(str(event[name]))}" for name in TEXTS if name in event]
        self._outlet.write(" ".join(words).encode(errors="backslashreplace") + b"\n")

    def progress(self, pages: int, total: int, faults: int) -> None:
        """No stage."""

    def measured(self, report: Report) -> None:
        """No stage."""

    def end(self) -> None:
        if self._last not in LAST:
            self._outlet.write(f"{STOPPED}\n".encode())
        self._outlet.drain(READER_SECONDS)


class Notifications:
    """What the service manager is told that has started the command (Type=notify): READY, STATUS, STOPPING; with
    `watchdog`, from READY on, also every so many seconds that the command is alive."""

    def __init__(self, name: str, address: str, watchdog: float | None) -> None:
        self._watchdog = watchdog
        self._ended = threading.Event()
        self._ready = READY.get(name, ())
        # An abstract address begins with @ (sd_notify(3)).
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def event(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        said = one_line(str(event["error"])) if name == "failed" else STATES.get(name)
        ready = name in self._ready
        lines = ["READY=1"] if ready else []
        if ready and self._watchdog:
            threading.Thread(target=self._say_alive, args=(self._watchdog,), daemon=True).start()
            self._watchdog = None
        self._send(*lines, *([f"STATUS={said}"] if said else []), seconds=MANAGER_SECONDS if ready else 0.0)

    def progress(self, pages: int, total: int, faults: int) -> None:
        """The stage says enough."""

    def measured(self, report: Report) -> None:
        """The stage says enough."""

    def end(self) -> None:
        self._ended.set()
        self._send("STOPPING=1", seconds=MANAGER_SECONDS)

    def _say_alive(self, every: float) -> None:
        """A thread of its own, for the command may wait for days."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._ended.wait(every):
            with contextlib.suppress(OSError):
                self._send("WATCHDOG=1")

    def _send(self, *lines: str, seconds: float = 0.0) -> None:
        """A service manager that takes nothing for so long misses something."""
        if lines:
            text = "\n".join(lines).encode(errors="backslashreplace")
            with (
                contextlib.suppress(BlockingIOError, TimeoutError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending,
            ):
                sending.settimeout(seconds)
                sending.sendto(text, self._address)


def notifications(name: str) -> list[Watcher]:
    """The service manager, if it has asked for news (sd_notify(3), sd_watchdog_enabled(3)). The programs that are
    started from here tell it nothing."""
    address, usec, pid = (os.environ.pop(name, "") for name in VARIABLES)
    if name not in READY or not address.startswith(("/", "@")):
        return []
    asked = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
    return [Notifications(name, address, int(usec) / 1e6 / ALIVE_TIMES if asked else None)]
