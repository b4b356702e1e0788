"""Connections: the three of a session, authenticated, whichever side listens.

`connect_roles` here and `accept_roles` (wire/reception.py) end with the same thing, a `Roles`: streams for control,
fault and bulk, of which nothing was read beyond the handshake (wire/handshake.py).
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from live_migration.wire.addresses import Address, show_address
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import (
    NO_SESSION,
    VERDICT_BYTES,
    Connecting,
    Done,
    Form,
    Hello,
    Role,
    Side,
    Verdict,
    encode_knock,
    foreign,
    read_refusal,
    refused,
    wrong,
)
from live_migration.wire.keys import Keys, derive_keys
from live_migration.wire.stream import Stream, TlsContext
from live_migration.wire.ticket import Ticket

SET_UP_SECONDS = 15.0
TRY_AGAIN_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5
WAITING_FOR_ACCEPT = 4096
SILENT_SECONDS = 3
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
FIRST_OF_TLS = range(20, 25)
"""What a record of TLS begins with (RFC 8446, B.1)."""


@dataclass(frozen=True)
class Roles:
    """The connections of one session.

    secret     the session's: the keys of more connections come from it
    listener   of the side that listens, for connections that come later (wire/decision.py, wire/again.py); None at the
               other one
    peer       where the other side listens, to connect to it again; None at the side that listens. It is known from the
               first: of a connection that was reset, the kernel tells it no more
    form       how they are protected, and `context` by what; so are those of later attempts
    """

    session: bytes
    attempt: int
    control: Stream
    fault: Stream
    bulk: Stream
    secret: bytes = field(default=b"", repr=False)
    listener: socket.socket | None = None
    form: Form = Form.NONE
    context: TlsContext | None = None
    peer: Address | None = None

    def numbers(self) -> list[int]:
        """The descriptors of its sockets."""
        those = (self.control, self.fault, self.bulk, self.listener)
        return [number for one in those if one is not None and (number := one.fileno()) >= 0]

    def close(self) -> None:
        for connection in (self.control, self.fault, self.bulk, self.listener):
            if connection is not None:
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
            # Who connects and says nothing waits in the kernel, and takes no place in the queue of those who do.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENT_SECONDS)
            self.socket.bind(address)
            self.socket.listen(WAITING_FOR_ACCEPT)
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


def prepare(connection: socket.socket) -> socket.socket:
    """Blocking, without delay, and with keep-alive: a host that vanished is noticed after half a minute."""
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def form_of(secret: bytes, context: TlsContext) -> Form:
    """How the connections of a ticket with this secret are protected."""
    if context.certified:
        return Form.CERTIFICATES
    return Form.TICKET if secret else Form.NONE


def connect_roles(ticket: Ticket, side: Side, *, context: TlsContext | None = None) -> Roles:
    """Connect to the side that made the ticket and authenticate, three times.

    LocalError (NO_PEER) when nobody is there, ProtocolError when the peer is not the right one. Whoever is cut off on
    the way tries again for TRY_AGAIN_SECONDS. Takes at most SET_UP_SECONDS.
    """
    deadline = time.monotonic() + SET_UP_SECONDS
    context = context or TlsContext()
    form = form_of(ticket.secret, context)
    streams: dict[Role, Stream] = {}
    session, secret = NO_SESSION, ticket.secret
    peer: Address | None = None
    with closed_unless_done(streams):
        for role in Role:
            caller = Caller(context, form, derive_keys(secret, side, role), Hello(side, role, 1, session))
            streams[role], done = _call(ticket, caller, deadline)
            session, secret = done.hello.session, done.secret
            peer = peer or _peer_of(streams[role])
    control, fault, bulk = (streams[role] for role in Role)
    return Roles(session, 1, control, fault, bulk, secret, None, form, context, peer)


def _peer_of(stream: Stream) -> Address:
    """Where a connection leads to. Raises ProtocolError where it has been reset."""
    try:
        return Address(stream.socket.family, stream.socket.getpeername())
    except OSError as error:
        raise wrong(f"it broke off the connection ({error.strerror})", "connect again") from None


@contextlib.contextmanager
def closed_unless_done(streams: dict[Role, Stream]) -> Iterator[None]:
    """Within, an exception closes the streams that were made so far."""
    try:
        yield
    except BaseException:
        for stream in streams.values():
            stream.close()
        raise


@dataclass(frozen=True)
class Caller:
    """Who makes one connection, and what is needed for that."""

    context: TlsContext
    form: Form
    keys: Keys
    hello: Hello


class CutOffError(Exception):
    """The connection ended before the peer said anything that counts; `error` says so."""

    def __init__(self, error: ProtocolError) -> None:
        super().__init__(error)
        self.error = error


def _call(ticket: Ticket, caller: Caller, deadline: float) -> tuple[Stream, Done]:
    """Connect and go through the handshake, again where it is cut off: a listener that is flooded drops some."""
    pause, end = FIRST_PAUSE_SECONDS, min(deadline, time.monotonic() + TRY_AGAIN_SECONDS)
    cut_off: MigrationError | None = None
    while True:
        try:
            stream = Stream(_connect(ticket, deadline))
        except LocalError as error:
            raise cut_off or error from None
        try:
            return stream, introduce(stream, caller, deadline)
        except CutOffError as error:
            stream.close()
            cut_off = error.error
        except BaseException:
            stream.close()
            raise
        if time.monotonic() + pause > end:
            raise cut_off
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _connect(ticket: Ticket, deadline: float) -> socket.socket:
    try:
        left = max(0.1, deadline - time.monotonic())
        return prepare(socket.create_connection((ticket.host, ticket.port), timeout=left))
    except OSError as error:
        cause = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise LocalError(
            step="connecting",
            object=show_address(ticket.host, ticket.port),
            cause=cause,
            remedy="check that the other side is waiting there and that no firewall is between",
            code=ExitCode.NO_PEER,
        ) from None


def introduce(stream: Stream, caller: Caller, deadline: float) -> Done:
    """Drive the connecting side's handshake to its end, at most until `deadline` (CLOCK_MONOTONIC, seconds). Raises
    CutOffError, ProtocolError."""
    try:
        knock = encode_knock(caller.form, caller.keys)
        if caller.form is Form.NONE:
            stream.socket.sendall(knock)
        else:
            stream.socket.send(knock, socket.MSG_MORE)
            _secure(stream, caller, deadline)
        handshake = Connecting(caller.keys, stream.exported(), caller.hello)
        stream.send(handshake.hello)
        while True:
            try:
                done = handshake.receive(_or_cut_off(stream.receive(handshake.wanted()), handshake.wanted()))
            except BlockingIOError:
                _wait(stream, deadline)
                continue
            if done:
                return done
    except OSError as error:
        cause = f"it broke off the connection ({error.strerror})"
        raise CutOffError(wrong(cause, "look at what the other side says")) from None


def _secure(stream: Stream, caller: Caller, deadline: float) -> None:
    """Go through TLS's handshake, unless a refusal comes in its place."""
    keys = caller.keys
    stream.secure(caller.context, listening=False, identity=keys.tag, key=keys.key)
    begun = False
    while True:
        try:
            stream.handshake()
            return
        except BlockingIOError:
            _wait(stream, deadline)
        except OSError as error:
            raise insecure_peer(error, caller.form) from None
        if not begun:
            begin = _or_cut_off(stream.socket.recv(VERDICT_BYTES, socket.MSG_PEEK), VERDICT_BYTES)
            begun = begin[0] in FIRST_OF_TLS
            if not begun:
                raise read_refusal(begin)


def insecure_peer(error: OSError, form: Form) -> OSError | ProtocolError:
    """What a failed TLS handshake says about the peer; the error itself if it was cut off."""
    if error.errno == errno.EPROTO:
        return foreign()
    if error.errno != errno.EACCES:
        return error
    if form is Form.TICKET:
        return refused(Verdict.WRONG_TICKET)
    cause = "it has no certificate that counts here, or does not take ours"
    return wrong(cause, "look at --tls-cert and --tls-ca on both sides", ExitCode.BAD_TICKET)


def _or_cut_off(data: bytes, missing: int) -> bytes:
    if not data:
        cause = f"it closed the connection with {missing} bytes of the handshake missing"
        raise CutOffError(wrong(cause, "look at what the other side says, and that nothing else uses its port"))
    return data


def _wait(stream: Stream, deadline: float) -> None:
    """Wait for bytes. ProtocolError (TIMEOUT) when none come."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    if not poll.poll(max(0.1, deadline - time.monotonic()) * 1000):
        raise wrong("it did not answer", "check that the port is the one of the ticket", ExitCode.TIMEOUT)
