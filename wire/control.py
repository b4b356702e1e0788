"""The CONTROL connection at work: messages over a stream, each wait with a limit.

One thread sends, one receives. Pings are answered and Pongs are taken in while receiving, unseen by the
caller. Nothing is ever read beyond the message at hand, and each message begins a record of TLS, so poll(2) on
`fileno()` tells the truth.
"""

from __future__ import annotations

import select
import statistics
import time
from dataclasses import dataclass
from typing import TypeVar

from live_migration.wire.errors import ConnectionLost, LocalError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.messages import (
    Abort,
    Blockers,
    FrameReader,
    Message,
    Ping,
    Pong,
    broken,
    encode,
    error_of,
    refusal_of,
)
from live_migration.wire.stream import Stream

SEND_SECONDS = 30.0
MOST_ODD = 16
Expected = TypeVar("Expected")


@dataclass(frozen=True)
class Odd:
    """A message after COMMIT that cannot be used, and is passed over; `cause` is the rest of a sentence about it."""

    cause: str


class ControlChannel:
    """The CONTROL connection of one side.

    Every method can raise ConnectionLost (the peer or the network is gone), LocalError with TIMEOUT (a
    limit passed), and `receive` and `expect` ProtocolError (the peer sent what cannot be).
    """

    def __init__(self, connection: Stream) -> None:
        self._connection = connection
        self._broken: str | None = None
        self._reader = FrameReader()
        self._pongs: list[Pong] = []
        self._number = 0
        self._odd = 0
        self.round_trip_ns = 0

    def fileno(self) -> int:
        """The descriptor to wait on for the next message."""
        return self._connection.fileno()

    def send(self, message: Message, timeout: float = SEND_SECONDS) -> None:
        """Encode and send."""
        self.send_bytes(encode(message), timeout)

    def send_bytes(self, data: bytes, timeout: float = SEND_SECONDS) -> None:
        """Send what `encode` made beforehand: one call of send(2) for each record of TLS, unless the socket is full.

        A message that went out in part is the last one."""
        if self._broken:
            raise _lost(self._broken)
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        while view:
            try:
                view = view[self._connection.send(view) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, deadline):
                    self._broken = f"it took no bytes for {timeout:g} s"
                    raise _silent(self._broken) from None
            except OSError as error:
                raise _lost(error.strerror or str(error)) from None

    def receive(self, timeout: float | None = None) -> Message:
        """The next message, waiting at most `timeout` seconds for all of it (None: as long as it takes)."""
        message = self._receive(None if timeout is None else time.monotonic() + timeout)
        if message is None:
            raise _silent(f"nothing came for {timeout:g} s")
        return message

    def hear(self, *due: type[Message]) -> Message | Odd | None:
        """The next message after COMMIT, when nothing may fail any more by what the other side says: one of the kinds
        that are `due`, with numbers that can be; or what is odd about another one. None when it is not whole yet, or is
        one of too many odd ones.

        Raises ProtocolError when nobody can tell any more where a message begins."""
        try:
            message = self._receive(time.monotonic())
            if message is None or isinstance(message, due):
                return message
            name = type(message).__name__
            cause = f"{'an' if name[0] in 'AEIOU' else 'a'} {name} is not due any more"
        except ProtocolError as error:
            if not self._reader.is_empty():
                raise
            cause = error.cause
        self._odd += 1
        return Odd(cause) if self._odd <= MOST_ODD else None

    def expect(self, kind: type[Expected], timeout: float | None = None) -> Expected:
        """The next message, which must be of `kind`.

        An Abort raises RemoteError, Blockers raise Refused, and anything else is a ProtocolError.
        """
        message = self.receive(timeout)
        if isinstance(message, kind):
            return message
        if isinstance(message, Abort):
            raise error_of(message)
        if isinstance(message, Blockers):
            raise refusal_of(message)
        due = getattr(kind, "__name__", str(kind))
        raise broken(f"it is a {type(message).__name__} where a {due} is due")

    def measure_round_trip(self, count: int = 5, timeout: float = 10.0) -> int:
        """Ask `count` times; the median in nanoseconds, also kept as `round_trip_ns`.

        The peer must be receiving, and neither side may have anything else under way.
        """
        deadline = time.monotonic() + timeout
        times = []
        for _ in range(count):
            self._number += 1
            begin = time.monotonic_ns()
            self.send(Ping(number=self._number))
            while Pong(number=self._number) not in self._pongs:
                message = self._next(deadline)
                if message is None:
                    raise _silent(f"no answer for {timeout:g} s")
                if isinstance(message, Ping):
                    self.send(Pong(number=message.number))
                elif isinstance(message, Pong):
                    self._pongs.append(message)
                elif isinstance(message, Abort):
                    raise error_of(message)
                else:
                    raise broken(f"it is a {type(message).__name__} where a Pong is due")
            times.append(time.monotonic_ns() - begin)
            self._pongs.clear()
        self.round_trip_ns = int(statistics.median(times))
        return self.round_trip_ns

    def close(self) -> None:
        self._connection.close()

    def _receive(self, deadline: float | None) -> Message | None:
        """The next message that is neither Ping nor Pong; None when the deadline passed."""
        while True:
            message = self._next(deadline)
            if isinstance(message, Ping):
                self.send(Pong(number=message.number))
            elif isinstance(message, Pong):
                self._pongs.append(message)
            else:
                return message

    def _next(self, deadline: float | None) -> Message | None:
        """The next message of any kind; None when the deadline passed. What came of it so far is kept."""
        while True:
            try:
                data = self._connection.receive(min(self._reader.wanted(), 1 << 20))
            except BlockingIOError:
                if not self._wait(select.POLLIN, deadline):
                    return None
                continue
            except OSError as error:
                raise _lost(error.strerror or str(error)) from None
            if not data:
                whole = self._reader.is_empty()
                raise _lost("it was closed" if whole else "it was closed in the middle of a message")
            message = self._reader.receive(data)
            if message is not None:
                return message

    def _wait(self, events: int, deadline: float | None) -> bool:
        """Wait for the socket; False when the deadline passed."""
        poll = select.poll()
        poll.register(self._connection, events)
        if events == select.POLLIN and self._connection.pending():
            return True
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if poll.poll(None if left is None else left * 1000 + 1):
                return True


def _lost(cause: str) -> ConnectionLost:
    return ConnectionLost(
        step="the control connection",
        object="the connection to the other side",
        cause=cause[:1].lower() + cause[1:],
        remedy="look at what the other side says, and at the network between",
    )


def _silent(cause: str) -> LocalError:
    return LocalError(
        step="the control connection",
        object="the other side",
        cause=cause,
        remedy="look at what it says, and at the network between",
        code=ExitCode.TIMEOUT,
    )
