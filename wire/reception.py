"""The reception: whoever listens lets in the three connections of one peer, whatever else comes to the port.

A stranger proves nothing by connecting, a little by a knock with a tag that only holders of the ticket have seen, and
all of it by a whole handshake. There are places for so many strangers at a time. When all are taken, a silent one
makes room before one that has knocked, and the address (of IPv6, the network) that has most of them before the others;
the oldest first. A connection that has proven itself gives its place to nobody. Each stranger has a few seconds. Once
the three connections stand, nobody is let in but for the connection of the decision (wire/decision.h), and after COMMIT
for newer attempts of the same session (`Readmission`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import resource
import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from live_migration.wire.addresses import show_address
from live_migration.wire.connection import (
    SET_UP_SECONDS,
    Listener,
    Roles,
    form_of,
    insecure_peer,
    prepare,
)
from live_migration.wire.errors import LocalError, MigrationError, ProtocolError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import (
    KNOCK_BYTES,
    NO_SESSION,
    SECRET_BYTES,
    SESSION_BYTES,
    Form,
    Hello,
    Listening,
    Role,
    Side,
    Verdict,
    check_beginning,
    encode_verdict,
    is_ours,
    parse_knock,
    refused,
    wrong,
)
from live_migration.wire.keys import Keys, derive_keys
from live_migration.wire.stream import Stream, TlsContext

HANDSHAKE_SECONDS = 5.0
MOST_STRANGERS = 512
ACCEPTED_AT_ONCE = 64
NO_ROOM_SECONDS = 0.1
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
NOTES_AT_ONCE = 5
NOTE_SECONDS = 1.0
NETWORK_BITS = 64
UNREAD_BYTES = 4096


class _Notes:
    """Tells of those who were turned away: the first few, then one in a second, and how many it was not told of."""

    def __init__(self, tell: Callable[[MigrationError], None]) -> None:
        self._tell = tell
        self._room = float(NOTES_AT_ONCE)
        self._since = time.monotonic()
        self._untold = 0

    def tell(self, error: MigrationError) -> None:
        now = time.monotonic()
        self._room = min(self._room + (now - self._since) / NOTE_SECONDS, NOTES_AT_ONCE)
        self._since = now
        if self._room < 1:
            self._untold += 1
            return
        self._room -= 1
        if self._untold:
            error = wrong(f"{error.cause} (and {self._untold} more were turned away)", error.remedy, error.code)
            self._untold = 0
        self._tell(error)


@dataclass(frozen=True)
class _Door:
    """What a tag opens."""

    role: Role
    keys: Keys


@dataclass
class _Stranger:
    """A connection that has not proven itself. `share`: whose part of the places it takes."""

    stream: Stream
    share: str
    deadline: float
    knock: bytes = b""
    door: _Door | None = None
    handshake: Listening | None = None


@dataclass
class _Share:
    """The strangers of one address, oldest first."""

    silent: dict[int, _Stranger] = field(default_factory=dict)
    knocked: dict[int, _Stranger] = field(default_factory=dict)


@functools.lru_cache(1024)
def share_of(address: str) -> str:
    """Whose share of the places a stranger from `address` takes: one who has an IPv6 network has all its addresses."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, NETWORK_BITS), strict=False))


class Door(Protocol):
    """Where connections come from: a listening socket, or whoever has one and passes on what is not its own."""

    def fileno(self) -> int: ...

    def accept(self) -> tuple[socket.socket, Any]: ...


@dataclass(frozen=True)
class _Known:
    """The session that the other side names, and the attempt that stands: only newer ones are let in."""

    session: bytes
    secret: bytes
    attempt: int


class _Reception:
    """Strangers in their handshakes, and the places taken so far; those of a session that is `known`, or of a new one.
    """

    def __init__(
        self,
        door: Door,
        secret: bytes,
        side: Side,
        context: TlsContext,
        form: Form,
        on_refused: Callable[[MigrationError], None],
        known: _Known | None = None,
    ) -> None:
        self.door = door
        self.ticket_secret = secret
        self.side = side
        self.context = context
        self.form = form
        self.known = known
        self.attempt = 1
        self.notes = _Notes(on_refused)
        self.most = min(MOST_STRANGERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self.strangers: dict[int, _Stranger] = {}
        self.shares: dict[str, _Share] = {}
        self.places: dict[Role, Stream] = {}
        self.session = b""
        self.secret = b""
        self.doors: dict[bytes, _Door | None] = {}
        self.deadline = 0.0
        self.no_room_until = 0.0
        self.epoll = select.epoll()
        self.epoll.register(door, select.EPOLLIN)
        self.start_over()

    @property
    def is_complete(self) -> bool:
        """Whether all connections stand; whoever comes then is not for the reception."""
        return len(self.places) == len(Role)

    def start_over(self) -> None:
        """Discard the peer that had begun; a new session for the next one, unless it is known. The ticket is good for
        it."""
        for stream in self.places.values():
            stream.close()
        self.places = {}
        self.session = self.known.session if self.known else secrets.token_bytes(SESSION_BYTES)
        self.secret = self.known.secret if self.known else secrets.token_bytes(SECRET_BYTES)
        self.deadline = 0.0
        theirs, first = self.side.other, Role.CONTROL
        entrance = self.secret if self.known else self.ticket_secret
        # Another one of our own side can have the ticket, and gets a fitting answer.
        self.doors = {derive_keys(entrance, self.side, first).tag: None}
        for role in Role:
            keys = derive_keys(entrance if role is first else self.secret, theirs, role)
            self.doors[keys.tag] = _Door(role, keys)

    def close(self) -> None:
        """Let all strangers go."""
        for number in [*self.strangers]:
            self.drop(number)
        self.epoll.close()

    def accept(self) -> None:
        """Let in those who wait at the port, as many as a moment has room for."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self.is_complete:
                return
            try:
                connection, address = self.door.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM and not self.make_room():
                    self.wait_for_room()
                    return
                continue
            if len(self.strangers) >= self.most:
                self.make_room()
            self.admit(_Stranger(Stream(connection), share_of(address[0]), time.monotonic() + HANDSHAKE_SECONDS))

    def admit(self, stranger: _Stranger) -> None:
        """Give a stranger a place, and hear at once what it may have sent already."""
        number = stranger.stream.fileno()
        self.strangers[number] = stranger
        self.shares.setdefault(stranger.share, _Share()).silent[number] = stranger
        self.hear(number)
        if number in self.strangers:
            self.epoll.register(number, select.EPOLLIN)

    def make_room(self) -> bool:
        """Drop one stranger, a silent one if there is any; False if there is none at all."""
        for kind in ("silent", "knocked"):
            places: list[dict[int, _Stranger]] = [getattr(share, kind) for share in self.shares.values()]
            most = max(places, key=len, default=None)
            if most:
                self.drop(next(iter(most)))
                return True
        return False

    def wait_for_room(self) -> None:
        """There are no descriptors or no memory, and not for strangers' sake: who comes waits in the kernel's queue."""
        self.epoll.unregister(self.door)
        self.no_room_until = time.monotonic() + NO_ROOM_SECONDS

    def forget(self, number: int) -> _Stranger:
        """Take a stranger off the lists."""
        stranger = self.strangers.pop(number)
        share = self.shares[stranger.share]
        share.silent.pop(number, None)
        share.knocked.pop(number, None)
        if not share.silent and not share.knocked:
            del self.shares[stranger.share]
        return stranger

    def drop(self, number: int) -> None:
        """Let a stranger go. (Closed, it leaves the epoll.)"""
        self.forget(number).stream.close()

    def hear(self, number: int) -> None:
        """Bytes of a stranger are there: go on with its handshake, or let it go."""
        stranger = self.strangers[number]
        try:
            while number in self.strangers:
                if stranger.handshake:
                    self.take_hello(number, stranger, stranger.handshake)
                elif stranger.door:
                    self.secure(stranger, stranger.door)
                else:
                    self.take_knock(number, stranger)
        except BlockingIOError:
            return
        except OSError as error:
            self.turn_away(number, wrong(f"it broke off the connection ({error.strerror})", "connect again"))
        except ProtocolError as error:
            self.turn_away(number, error)

    def turn_away(self, number: int, error: ProtocolError, answer: bytes = b"") -> None:
        """Drop a stranger, with an answer where it has earned one. What is noted of it is noted when it hears that."""
        self.notes.tell(error)
        if answer:
            stream = self.strangers[number].stream
            with contextlib.suppress(OSError):
                stream.send(answer)
                # Closed with something unread, the connection would be reset, and the answer perhaps not read.
                stream.socket.recv(UNREAD_BYTES, socket.MSG_DONTWAIT)
        self.drop(number)

    def take_knock(self, number: int, stranger: _Stranger) -> None:
        """The first bytes, in clear."""
        data = stranger.stream.receive(KNOCK_BYTES - len(stranger.knock))
        if not data:
            missing = KNOCK_BYTES - len(stranger.knock)
            raise wrong(f"it closed the connection with {missing} bytes of the handshake missing", "connect again")
        stranger.knock += data
        try:
            check_beginning(stranger.knock)
        except ProtocolError as error:
            # Garbage gets no answer; another version of ourselves does.
            answer = encode_verdict(Verdict.OTHER_VERSION) if is_ours(stranger.knock) else b""
            self.turn_away(number, error, answer)
            return
        if len(stranger.knock) < KNOCK_BYTES:
            return
        found = self.open_door(stranger.knock)
        if isinstance(found, Verdict):
            refusal = refused(found)
            if found is Verdict.SAME_SIDE:
                refusal = wrong(f"it is a {self.side.name.lower()} too", refusal.remedy)
            self.turn_away(number, refusal, encode_verdict(found))
            return
        stranger.door = found
        share = self.shares[stranger.share]
        share.knocked[number] = share.silent.pop(number)
        if self.form is Form.NONE:
            self.expect_hello(stranger, found)
        else:
            keys = found.keys
            stranger.stream.secure(self.context, listening=True, identity=keys.tag, key=keys.key)

    def open_door(self, knock: bytes) -> _Door | Verdict:
        """What a knock opens, or why it opens nothing."""
        tag = parse_knock(knock, self.form)
        if isinstance(tag, Verdict):
            return tag
        if tag not in self.doors:
            return Verdict.WRONG_TICKET
        return self.doors[tag] or Verdict.SAME_SIDE

    def secure(self, stranger: _Stranger, door: _Door) -> None:
        """Go on with TLS's handshake."""
        try:
            stranger.stream.handshake()
        except BlockingIOError:
            raise
        except OSError as error:
            raise insecure_peer(error, self.form) from None
        self.expect_hello(stranger, door)

    def expect_hello(self, stranger: _Stranger, door: _Door) -> None:
        """What comes next is the hello."""
        stranger.handshake = Listening(door.keys, stranger.stream.exported(), self.side, door.role)

    def take_hello(self, number: int, stranger: _Stranger, handshake: Listening) -> None:
        """The proof: with it the stranger is none any more."""
        done = handshake.receive(stranger.stream.receive(handshake.wanted()))
        if not done:
            return
        refusal = self.verdict(done.hello)
        if refusal:
            self.turn_away(number, _refusal(refusal), encode_verdict(refusal))
            return
        if done.hello.attempt != self.attempt:
            self.start_over()
            self.attempt = done.hello.attempt
        stranger.stream.send(handshake.welcome(done.hello, self.session, self.secret))
        self.forget(number)
        self.places[done.hello.role] = stranger.stream
        with contextlib.suppress(FileNotFoundError):
            self.epoll.unregister(number)
        self.epoll.register(number, select.EPOLLRDHUP)
        if done.hello.role == Role.CONTROL:
            self.deadline = time.monotonic() + SET_UP_SECONDS

    def verdict(self, hello: Hello) -> Verdict | None:
        """Why this hello cannot have its place, or None."""
        if self.known:
            return self.verdict_on_known(hello, self.known)
        if hello.role in self.places:
            return Verdict.TAKEN
        begins = hello.role == Role.CONTROL
        if hello.attempt != 1 or hello.session != (NO_SESSION if begins else self.session):
            return Verdict.OTHER_SESSION
        return None if begins or Role.CONTROL in self.places else Verdict.OTHER_SESSION

    def verdict_on_known(self, hello: Hello, known: _Known) -> Verdict | None:
        """The same in a session that stands: a newer attempt takes the place of one that is not complete."""
        if hello.session != known.session:
            return Verdict.OTHER_SESSION
        if hello.attempt <= known.attempt or (self.places and hello.attempt < self.attempt):
            return Verdict.OLDER
        return Verdict.TAKEN if hello.attempt == self.attempt and hello.role in self.places else None

    def expire(self) -> float | None:
        """Drop who took too long; the seconds until the next one will have."""
        now = time.monotonic()
        for number, stranger in [*self.strangers.items()]:
            if stranger.deadline > now:
                break
            self.drop(number)
            self.notes.tell(wrong(f"it said nothing for {HANDSHAKE_SECONDS:.0f} s", "connect again"))
        if self.deadline and self.deadline <= now:
            self.start_over()
        if self.no_room_until and self.no_room_until <= now:
            self.no_room_until = 0.0
            self.epoll.register(self.door, select.EPOLLIN)
        oldest = next(iter(self.strangers.values()), None)
        times = [oldest.deadline if oldest else 0.0, self.deadline, self.no_room_until]
        return max(0.0, min(time for time in times if time) - now) if any(times) else None

    def serve(self, ready: Sequence[tuple[int, int]]) -> None:
        """Serve those who have something to say."""
        for number, _ in ready:
            if self.is_complete:
                return
            if number in self.strangers:
                self.hear(number)
            elif number == self.door.fileno():
                self.accept()
            elif number in [stream.fileno() for stream in self.places.values()]:
                self.start_over()


def _refusal(verdict: Verdict) -> ProtocolError:
    """The note of a refusal that a holder of the secret gets."""
    reasons = {
        Verdict.OTHER_SESSION: "it names another session",
        Verdict.TAKEN: "this side is busy with another peer",
        Verdict.OLDER: "it is older than the connections that are used",
    }
    return wrong(reasons[verdict], "start both commands again")


def accept_roles(
    listener: Listener,
    secret: bytes,
    side: Side,
    *,
    watch: Sequence[int] = (),
    timeout: float | None = None,
    context: TlsContext | None = None,
    on_refused: Callable[[MigrationError], None] = lambda error: None,
) -> Roles | None:
    """Wait for the peer that has the ticket, and hand out its three connections, with the port.

    None when a descriptor of `watch` became readable first (a pidfd: the process ended). `on_refused` hears
    of those who were turned away, not of all of them when they are many; it is no reason to stop. `timeout` in seconds:
    LocalError (TIMEOUT).
    """
    context = context or TlsContext()
    reception = _Reception(listener.socket, secret, side, context, form_of(secret, context), on_refused)
    for descriptor in watch:
        reception.epoll.register(descriptor, select.EPOLLIN)
    end = None if timeout is None else time.monotonic() + timeout
    complete = False
    try:
        while not reception.is_complete:
            pause = reception.expire()
            if end is not None:
                left = end - time.monotonic()
                if left <= 0:
                    raise _nobody_came(listener, timeout)
                pause = left if pause is None else min(left, pause)
            ready = reception.epoll.poll(None if pause is None else pause + 0.001)
            if any(number in watch for number, _ in ready):
                return None
            reception.serve(ready)
        kept = listener.socket.dup()
        complete = True
    finally:
        reception.close()
        if complete:
            listener.close()
        else:
            reception.start_over()
    return _roles_of(reception, kept)


def _roles_of(reception: _Reception, kept: socket.socket | None) -> Roles:
    """The connections of a reception that is complete."""
    for stream in reception.places.values():
        prepare(stream.socket)
    control, fault, bulk = (reception.places[role] for role in Role)
    return Roles(
        reception.session, reception.attempt, control, fault, bulk, reception.secret, kept, reception.form,
        reception.context,
    )  # fmt: skip


class Readmission:
    """Lets the other side of a session in again, as often as it comes with a newer attempt than the one that stands.

    Nothing here waits. `fileno` is readable when there may be something to do, and `take` does it; call it from time to
    time, too. `door`: where connections come from.
    """

    def __init__(
        self, door: Door, roles: Roles, side: Side, on_refused: Callable[[MigrationError], None] = lambda error: None
    ) -> None:
        self._door = door
        self._side = side
        self._on_refused = on_refused
        self._begin(roles)

    def _begin(self, roles: Roles) -> None:
        known = _Known(roles.session, roles.secret, roles.attempt)
        context = roles.context or TlsContext()
        self._reception = _Reception(self._door, b"", self._side, context, roles.form, self._on_refused, known)

    def fileno(self) -> int:
        """To wait on. It changes when `take` has given something."""
        return self._reception.epoll.fileno()

    def take(self) -> Roles | None:
        """The next three connections, once they stand."""
        reception = self._reception
        reception.expire()
        reception.serve(reception.epoll.poll(0))
        if not reception.is_complete:
            return None
        roles = _roles_of(reception, None)
        reception.close()
        self._begin(roles)
        return roles

    def close(self) -> None:
        """Let all strangers go, and those who were not complete."""
        self._reception.start_over()
        self._reception.close()


def _nobody_came(listener: Listener, timeout: float | None) -> LocalError:
    return LocalError(
        step="waiting for the other side",
        object=show_address(listener.host, listener.port),
        cause=f"nobody with the ticket came within {timeout} s",
        remedy="start the other side with this ticket",
        code=ExitCode.TIMEOUT,
    )
