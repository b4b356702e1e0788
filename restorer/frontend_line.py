"""The line between the frontend of lm-restore and its worker: news one way, orders the other, one JSON object a
line."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import sys
import termios
from dataclasses import dataclass, field
from typing import Any

import msgspec

from live_migration.wire.plain_text import json_line

ENOUGH = 16 << 10
"""Bytes of news that nobody has taken, beyond which it does not matter how far the worker has come."""

REPEATED = ("progress", "measured")


@dataclass
class Worker:
    """The frontend's side of the line. `page` is the one that both share (restorer/custody.py)."""

    pid: int
    news: socket.socket
    page: mmap.mmap
    held: bytes = b""
    ended: bool = False

    def tell(self, order: str, number: int) -> None:
        """Give an order; a worker that is gone needs none."""
        with contextlib.suppress(OSError):
            self.news.sendall(msgspec.json.encode({"order": order, "number": number}) + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """The news that have come; sets `ended` at the end of all news."""
        data = self.news.recv(1 << 16)
        self.ended = not data
        *lines, self.held = (self.held + data).split(b"\n")
        return [msgspec.json.decode(line) for line in lines]

    def reap(self) -> str:
        """How the worker ended, in words."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


@dataclass
class Line:
    """The worker's side of the line. News for a frontend that is gone is dropped."""

    connection: socket.socket
    page: mmap.mmap
    held: bytes = b""
    unsent: bytearray = field(default_factory=bytearray)
    frontend_is_gone: bool = False
    orders: list[tuple[str, int]] = field(default_factory=list)

    def fileno(self) -> int:
        """For poll(2): orders, or the frontend's end."""
        return self.connection.fileno()

    @property
    def is_to_stop(self) -> bool:
        """Has the frontend said to stop, or is it gone? This counts until the destination is ready."""
        return self.frontend_is_gone or bool(self.orders)

    def send(self, event: str, **details: Any) -> None:
        """Tell the frontend. It may be stopped: this never waits, and news that it has not taken is kept, except what
        comes again and again."""
        if event not in REPEATED or not (self.unsent or self._unread() > ENOUGH):
            self.unsent += json_line({"event": event, **details})
        self._send_some()

    def drain(self) -> None:
        """At the end: wait until the frontend takes what it has not taken, or is gone."""
        poll = select.poll()
        poll.register(self.connection, select.POLLOUT)
        while self.unsent:
            poll.poll()
            self._send_some()

    def _send_some(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: self.connection.send(self.unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self.frontend_is_gone = True
            self.unsent.clear()

    def _unread(self) -> int:
        """Bytes that lie in the socket (unix(7), SIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def hear(self) -> None:
        """Take in what the frontend has said, or that it is gone."""
        try:
            data = self.connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.frontend_is_gone = not data
        *lines, self.held = (self.held + data).split(b"\n")
        for line in lines:
            order = msgspec.json.decode(line)
            self.orders.append((order["order"], order["number"]))
