"""The CONTROL connection at work: messages over a stream, each wait with a limit.

One thread sends, one receives. Pings are answered, and Pongs and Pulses are taken in while receiving, unseen by the
caller. Nothing is ever read beyond the message at hand, and each message begins a record of TLS, so poll(2) on
`fileno()` tells the truth.

A thread of the channel's own sends a Pulse twice a second. A peer that has sent one and then says nothing for as long
as `patience` is gone: a path can be cut without either end's kernel noticing, for a tunnel or relay on it keeps both
connections alive. Time in which this side did not wait for it does not count.

After COMMIT the channel outlives its connection: `post` keeps a message until the peer has acknowledged it, and `renew`
goes on with another connection (wire/again.py).
"""

from __future__ import annotations

import contextlib
import select
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from live_migration.wire.errors import ConnectionLost, LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.messages import (
    Abort,
    Blockers,
    FrameReader,
    Message,
    Numbered,
    Ping,
    Pong,
    Pulse,
    broken,
    encode,
    error_of,
    refusal_of,
)
from live_migration.wire.stream import Stream

SEND_SECONDS = 30.0
POST_SECONDS = 1.0
PULSE_SECONDS = 0.5
# Of a peer that sends pulses: before COMMIT its loss ends the migration, afterwards it costs a new connection.
PATIENCE_SECONDS = 10.0
PATIENCE_AFTER_COMMIT_SECONDS = 3.0
LOOK_SECONDS = 0.5
MOST_ODD = 16
Expected = TypeVar("Expected")


@dataclass(frozen=True)
class Odd:
    """A message after COMMIT that cannot be used, and is passed over; `cause` is the rest of a sentence about it."""

    cause: str


def _unkept(heard: int, serial: int, unheard: list[Numbered]) -> None:
    """Nobody would go on from here."""


def _nothing() -> None:
    """Nothing else can end a wait."""


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
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._pulses: threading.Thread | None = None
        self._has_pulsed = False
        self._quiet_since_ns = 0
        self._quiet = 0.0
        self._unheard: list[Numbered] = []
        self._serial = 0
        self._at_hand = 0
        self.heard = 0
        self.patience = PATIENCE_SECONDS
        self.round_trip_ns = 0
        self._progressed: Callable[[int, int, list[Numbered]], None] = _unkept
        self._look: Callable[[], None] = _nothing

    def fileno(self) -> int:
        """The descriptor to wait on for the next message."""
        return self._connection.fileno()

    def send(self, message: Message, timeout: float = SEND_SECONDS) -> None:
        """Encode and send."""
        self.send_bytes(encode(message), timeout)

    def send_bytes(self, data: bytes, timeout: float = SEND_SECONDS) -> None:
        """Send what `encode` made beforehand: one call of send(2) for each record of TLS, unless the socket is full.

        A message that went out in part is the last one."""
        with self._sending:
            self._send_bytes(data, timeout)

    def _send_bytes(self, data: bytes, timeout: float) -> None:
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
                self._broken = error.strerror or str(error)
                raise _lost(self._broken) from None

    def begin_pulses(self) -> None:
        """Say from now on, twice a second, that this side lives. End it before the connection is closed."""
        # A signal is for the thread that can act on it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pulses = threading.Thread(target=self._pulse, name="lm-pulse", daemon=True)
            self._pulses.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end_pulses(self) -> None:
        """The connection is about to be closed."""
        self._ended.set()
        if self._pulses:
            self._pulses.join()

    def _pulse(self) -> None:
        while not self._ended.wait(PULSE_SECONDS):
            # Whoever sends now shows that this side lives; and nobody who does waits for this.
            if self._sending.acquire(blocking=False):
                try:
                    with contextlib.suppress(MigrationError):
                        if not self._broken and self._wait(select.POLLOUT, time.monotonic()):
                            self._send_bytes(encode(Pulse(heard=self.heard)), POST_SECONDS)
                finally:
                    self._sending.release()

    def post(self, message: Numbered) -> None:
        """After COMMIT: see to it that the peer takes in this message, once, and those before it first. It is sent at
        once if the connection stands, and again on new ones."""
        with self._sending:
            self._serial += 1
            numbered = replace(message, serial=self._serial)
            self._unheard.append(numbered)
            self._progressed(self.heard, self._serial, list(self._unheard))
            with contextlib.suppress(MigrationError):
                self._send_bytes(encode(numbered), POST_SECONDS)

    def acknowledge(self) -> None:
        """Say at once that the message at hand is taken in."""
        self._take_in()
        with contextlib.suppress(MigrationError):
            self.send(Pulse(heard=self.heard), POST_SECONDS)

    def tell_progress(self, progressed: Callable[[int, int, list[Numbered]], None]) -> None:
        """After COMMIT: call this with the number of the last message taken in, that of the last one posted, and what
        is not acknowledged: now, and before the peer hears of anything new."""
        with self._sending:
            self._progressed = progressed
            progressed(self.heard, self._serial, list(self._unheard))

    def go_on(self, heard: int, serial: int, unheard: list[Numbered]) -> None:
        """Take the place of a channel that has come so far, before the first connection that stands."""
        self.heard, self._serial, self._unheard = heard, serial, unheard

    @property
    def is_heard(self) -> bool:
        """Whether the peer has taken in everything that was posted."""
        return not self._unheard

    def lost(self, cause: str) -> None:
        """The connection is of no use any more: what is posted waits for the next one."""
        with self._sending:
            self._broken = self._broken or cause

    def renew(self, connection: Stream) -> None:
        """Go on with another connection, and send again what the peer has not acknowledged. The old one stays the
        caller's, to close."""
        with self._sending:
            self._connection, self._broken = connection, None
            self._reader, self._pongs = FrameReader(), []
            self._has_pulsed, self._quiet, self._at_hand = False, 0.0, 0
            with contextlib.suppress(MigrationError):
                for message in (Pulse(heard=self.heard), *self._unheard):
                    self._send_bytes(encode(message), POST_SECONDS)

    def check_silence(self) -> None:
        """Call it a few times a second while waiting for messages elsewhere. Raises ConnectionLost when the peer, which
        has sent pulses, says nothing any more."""
        now = time.monotonic_ns()
        # Whoever was stopped himself has not listened.
        passed, self._quiet_since_ns = min((now - self._quiet_since_ns) / 1e9, LOOK_SECONDS), now
        self._quiet += passed
        if not self._has_pulsed or self._quiet <= self.patience:
            return
        if self._wait(select.POLLIN, time.monotonic()):
            self._quiet = 0.0
            return
        self._broken = self._broken or f"the other side has said nothing for {self.patience:g} s"
        raise _lost(self._broken)

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """Within, whoever waits for a message calls this twice a second: what it raises ends the wait."""
        before, self._look = self._look, look
        try:
            yield
        finally:
            self._look = before

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

        A message counts as taken in when the next one is asked for: what goes wrong with it before that ends the
        connection, and it comes again. Raises ProtocolError when nobody can tell any more where a message begins."""
        self._take_in()
        try:
            message = self._receive(time.monotonic())
            if message is None or isinstance(message, due):
                return message if message is None else self._in_order(message)
            name = type(message).__name__
            cause = f"{'an' if name[0] in 'AEIOU' else 'a'} {name} is not due any more"
        except ProtocolError as error:
            if not self._reader.is_empty():
                raise
            cause = error.cause
        self._odd += 1
        return Odd(cause) if self._odd <= MOST_ODD else None

    def _in_order(self, message: Message) -> Message | None:
        """The message if it is the next of its sender's or has no serial; None if it was taken in already. Raises
        ProtocolError if one is missing before it."""
        serial = getattr(message, "serial", 0)
        if serial > self.heard + 1:
            raise broken(f"its number is {serial} where {self.heard + 1} is due")
        if 0 < serial <= self.heard:
            return None
        self._at_hand = serial
        return message

    def _take_in(self) -> None:
        if self._at_hand > self.heard:
            # The peer forgets what it hears to be taken in.
            self._progressed(self._at_hand, self._serial, list(self._unheard))
        self.heard, self._at_hand = max(self.heard, self._at_hand), 0

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
                elif isinstance(message, Pulse):
                    self._take_pulse(message)
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

    def _take_pulse(self, pulse: Pulse) -> None:
        self._has_pulsed = True
        if self._unheard and self._unheard[0].serial <= pulse.heard:
            with self._sending:
                self._unheard = [message for message in self._unheard if message.serial > pulse.heard]

    def _receive(self, deadline: float | None) -> Message | None:
        """The next message that is neither Ping, Pong nor Pulse; None when the deadline passed."""
        while True:
            # Here as well: pulses come as often as a wait ends.
            self._look()
            message = self._next(deadline)
            if isinstance(message, Ping):
                self.send(Pong(number=message.number))
            elif isinstance(message, Pong):
                self._pongs.append(message)
            elif isinstance(message, Pulse):
                self._take_pulse(message)
            else:
                return message

    def _next(self, deadline: float | None) -> Message | None:
        """The next message of any kind; None when the deadline passed. What came of it so far is kept."""
        while True:
            try:
                data = self._connection.receive(min(self._reader.wanted(), 1 << 20))
            except BlockingIOError:
                if not self._wait_for_bytes(deadline):
                    return None
                continue
            except OSError as error:
                raise _lost(error.strerror or str(error)) from None
            if not data:
                whole = self._reader.is_empty()
                raise _lost("it was closed" if whole else "it was closed in the middle of a message")
            self._quiet = 0.0
            message = self._reader.receive(data)
            if message is not None:
                return message

    def _wait_for_bytes(self, deadline: float | None) -> bool:
        """Wait for the peer; False when the deadline passed. Raises ConnectionLost when it is silent for too long."""
        while True:
            look = time.monotonic() + LOOK_SECONDS
            if self._wait(select.POLLIN, look if deadline is None else min(look, deadline)):
                return True
            self._look()
            self.check_silence()
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _wait(self, events: int, deadline: float | None) -> bool:
        """Wait for the socket; False when the deadline passed."""
        poll = select.poll()
        poll.register(self._connection, events)
        if events == select.POLLIN and self._connection.pending():
            return True
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if poll.poll(None if left is None else max(0.0, left * 1000 + 1)):
                return True
            if left is not None and left <= 0:
                return False


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
