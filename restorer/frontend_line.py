"""The line between the frontend of lm-restore and its worker: news one way, orders the other, one JSON object a
line."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import msgspec


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
        """Tell the frontend."""
        try:
            self.connection.sendall(msgspec.json.encode({"event": event, **details}) + b"\n")
        except OSError:
            self.frontend_is_gone = True

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
