"""Connections: the three of a session, authenticated, whichever side listens.

`accept_roles` and `connect_roles` end with the same thing, a `Roles`: connected blocking sockets for
control, fault and bulk, of which nothing was read beyond the handshake (wire/handshake.py).

Strangers on the listening port cannot get in the way: each has a few seconds, at most MOST_STRANGERS are
heard at a time (the oldest is dropped), none takes a place before it has proven that it has the secret, and
once the three connections stand the port is closed.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from live_migration.wire.addresses import show_address
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import (
    NO_SESSION,
    SESSION_BYTES,
    Claimed,
    Connecting,
    Hello,
    Listening,
    Proven,
    Role,
    Side,
    Verdict,
    wrong,
)
from live_migration.wire.ticket import Ticket

HANDSHAKE_SECONDS = 5.0
SET_UP_SECONDS = 15.0
MOST_STRANGERS = 64
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}


@dataclass(frozen=True)
class Roles:
    """The connections of one session."""

    session: bytes
    attempt: int
    control: socket.socket
    fault: socket.socket
    bulk: socket.socket

    def close(self) -> None:
        for connection in (self.control, self.fault, self.bulk):
            connection.close()


class Listener:
    """A listening TCP socket; port 0 picks a free one. LocalError (CANNOT_LISTEN) when it cannot be had."""

    def __init__(self, host: str, port: int) -> None:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self.socket = socket.socket(family, kind, protocol)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and host == "::":
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self.socket.bind(address)
            self.socket.listen(MOST_STRANGERS)
        except OSError as error:
            self.socket.close()
            raise _cannot_listen(host, port, error) from None
        self.socket.setblocking(False)
        self.host = host or "0.0.0.0"
        self.port = int(self.socket.getsockname()[1])

    def close(self) -> None:
        self.socket.close()


def _cannot_listen(host: str, port: int, error: OSError) -> LocalError:
    remedy = {
        errno.EADDRINUSE: "give another port with --listen, or 0 for a free one",
        errno.EADDRNOTAVAIL: "give an address of this host with --listen",
        errno.EACCES: "give a port from 1024 on with --listen",
    }.get(error.errno or 0, "give an address of this host with --listen")
    return LocalError(
        step="listening",
        object=show_address(host, port),
        cause=(error.strerror or str(error)).lower(),
        remedy=remedy,
        code=ExitCode.CANNOT_LISTEN,
    )


def _prepare(connection: socket.socket) -> socket.socket:
    """Blocking, without delay, and with keep-alive: a host that vanished is noticed after half a minute."""
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def connect_roles(ticket: Ticket, side: Side, *, attempt: int = 1, session: bytes = NO_SESSION) -> Roles:
    """Connect to the side that made the ticket and authenticate, three times.

    LocalError (NO_PEER) when nobody is there, ProtocolError when the peer is not the right one. Takes
    at most SET_UP_SECONDS.
    """
    deadline = time.monotonic() + SET_UP_SECONDS
    connections: dict[Role, socket.socket] = {}
    try:
        for role in Role:
            connection = _connect(ticket, deadline)
            connections[role] = connection
            session = _introduce(connection, Connecting(ticket.secret, side, role, session, attempt), deadline).session
        control, fault, bulk = (_prepare(connections[role]) for role in Role)
    except BaseException:
        for connection in connections.values():
            connection.close()
        raise
    return Roles(session, attempt, control, fault, bulk)


def _connect(ticket: Ticket, deadline: float) -> socket.socket:
    try:
        return socket.create_connection((ticket.host, ticket.port), timeout=max(0.1, deadline - time.monotonic()))
    except OSError as error:
        cause = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise LocalError(
            step="connecting",
            object=show_address(ticket.host, ticket.port),
            cause=cause,
            remedy="check that the other side is waiting there and that no firewall is between",
            code=ExitCode.NO_PEER,
        ) from None


def _introduce(connection: socket.socket, handshake: Connecting, deadline: float) -> Hello:
    """Drive the connecting side's handshake to its end; the peer's hello."""
    try:
        while True:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            connection.sendall(handshake.to_send())
            done = handshake.receive(connection.recv(handshake.wanted()))
            if done:
                return done.hello
    except TimeoutError:
        cause, remedy = "it did not answer", "check that the port is the one of the ticket"
        raise wrong(cause, remedy, ExitCode.TIMEOUT) from None
    except OSError as error:
        cause = f"it broke off the connection ({error.strerror})"
        raise wrong(cause, "look at what the other side says") from None
    except ProtocolError:
        with contextlib.suppress(OSError):
            connection.sendall(handshake.to_send())
        raise


@dataclass
class _Stranger:
    """A connection whose handshake is under way."""

    connection: socket.socket
    handshake: Listening
    deadline: float


class _Reception:
    """The state of one accept_roles: strangers in their handshakes, and the places taken so far."""

    def __init__(self, secret: bytes, side: Side, on_refused: Callable[[MigrationError], None]) -> None:
        self.secret = secret
        self.side = side
        self.on_refused = on_refused
        self.strangers: dict[int, _Stranger] = {}
        self.places: dict[Role, socket.socket] = {}
        self.session = b""
        self.deadline = 0.0
        self.start_over()

    def start_over(self) -> None:
        """Discard the peer that had begun; a new session for the next one."""
        for connection in self.places.values():
            connection.close()
        self.places = {}
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.deadline = 0.0

    def close(self) -> None:
        for stranger in self.strangers.values():
            stranger.connection.close()
        self.strangers = {}

    def admit(self, connection: socket.socket) -> None:
        """Begin a handshake; the one that has waited longest makes room if there are too many."""
        if len(self.strangers) >= MOST_STRANGERS:
            self.drop(next(iter(self.strangers)))
        connection.setblocking(False)
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        self.strangers[connection.fileno()] = _Stranger(connection, Listening(self.secret, self.side), deadline)

    def drop(self, number: int) -> None:
        self.strangers.pop(number).connection.close()

    def hear(self, number: int) -> None:
        """Bytes of a stranger are there: go on with its handshake, or let it go."""
        stranger = self.strangers[number]
        handshake = stranger.handshake
        try:
            event = handshake.receive(stranger.connection.recv(handshake.wanted()))
            refusal = self.verdict(event.hello) if event else None
            if refusal:
                raise handshake.refuse(refusal)
            if isinstance(event, Claimed):
                handshake.welcome(self.session)
            elif isinstance(event, Proven):
                handshake.accept()
            # A few dozen bytes into an empty buffer: they fit, or the stranger does not want them.
            answer = handshake.to_send()
            if stranger.connection.send(answer) != len(answer):
                raise OSError(errno.EPIPE, "it does not read")
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(number)
            self.on_refused(wrong(f"it broke off the connection ({error.strerror})", "connect again"))
            return
        except ProtocolError as error:
            with contextlib.suppress(OSError):
                stranger.connection.send(handshake.to_send())
            self.drop(number)
            self.on_refused(error)
            return
        if isinstance(event, Proven):
            del self.strangers[number]
            self.places[event.hello.role] = stranger.connection
            if event.hello.role == Role.CONTROL:
                self.deadline = time.monotonic() + SET_UP_SECONDS

    def verdict(self, hello: Hello) -> Verdict | None:
        """Why this hello cannot have its place, or None."""
        if hello.role in self.places:
            return Verdict.TAKEN
        begins = hello.role == Role.CONTROL
        if hello.attempt != 1 or hello.session != (NO_SESSION if begins else self.session):
            return Verdict.OTHER_SESSION
        return None if begins or Role.CONTROL in self.places else Verdict.OTHER_SESSION

    def expire(self) -> float | None:
        """Drop who took too long; the seconds until the next one will have."""
        now = time.monotonic()
        for number in [number for number, stranger in self.strangers.items() if stranger.deadline <= now]:
            self.drop(number)
            self.on_refused(wrong(f"it said nothing for {HANDSHAKE_SECONDS:.0f} s", "connect again"))
        if self.deadline and self.deadline <= now:
            self.start_over()
        deadlines = [stranger.deadline for stranger in self.strangers.values()]
        if self.deadline:
            deadlines.append(self.deadline)
        return max(0.0, min(deadlines) - now) if deadlines else None


def accept_roles(
    listener: Listener,
    secret: bytes,
    side: Side,
    *,
    watch: Sequence[int] = (),
    timeout: float | None = None,
    on_refused: Callable[[MigrationError], None] = lambda error: None,
) -> Roles | None:
    """Wait for the peer that has the ticket, and hand out its three connections; the port is then closed.

    None when a descriptor of `watch` became readable first (a pidfd: the process ended). `on_refused` hears
    of everybody who was turned away, which is no reason to stop. `timeout` in seconds: LocalError
    (TIMEOUT).
    """
    reception = _Reception(secret, side, on_refused)
    end = None if timeout is None else time.monotonic() + timeout
    complete = False
    try:
        while len(reception.places) < len(Role):
            pause = reception.expire()
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    raise _nobody_came(listener, timeout)
                pause = left if pause is None else min(left, pause)
            ready = _wait(listener, reception, watch, pause)
            if any(number in watch for number, _ in ready):
                return None
            _serve_ready(listener, reception, ready)
        complete = True
    finally:
        reception.close()
        if complete:
            listener.close()
        else:
            reception.start_over()
    control, fault, bulk = (_prepare(reception.places[role]) for role in Role)
    return Roles(reception.session, 1, control, fault, bulk)


def _nobody_came(listener: Listener, timeout: float | None) -> LocalError:
    return LocalError(
        step="waiting for the other side",
        object=show_address(listener.host, listener.port),
        cause=f"nobody with the ticket came within {timeout} s",
        remedy="start the other side with this ticket",
        code=ExitCode.TIMEOUT,
    )


def _wait(
    listener: Listener, reception: _Reception, watch: Sequence[int], pause: float | None
) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(listener.socket, select.POLLIN)
    for number in [*watch, *reception.strangers]:
        poll.register(number, select.POLLIN)
    for connection in reception.places.values():
        poll.register(connection, select.POLLRDHUP)
    return poll.poll(None if pause is None else int(pause * 1000) + 1)


def _serve_ready(listener: Listener, reception: _Reception, ready: list[tuple[int, int]]) -> None:
    if any(number in [place.fileno() for place in reception.places.values()] for number, _ in ready):
        reception.start_over()
        return
    for number, _ in ready:
        if number == listener.socket.fileno():
            with contextlib.suppress(OSError):
                reception.admit(listener.socket.accept()[0])
        elif number in reception.strangers:
            reception.hear(number)
