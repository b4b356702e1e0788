"""Meeting again: after COMMIT, when one of the three connections of a session is lost, all three are made anew.

Whoever dialled first dials again, in a thread (`Redialling`), until it gets through; the other one keeps its port open
and lets it in (`Readmission` in wire/reception.py). Each try has the next attempt's number, and the keys come from the
session's secret. Neither side tells the other what was lost:

- Pages: the page server remembers nothing of what it has sent (source_server/pages/client.h). The pager's tables know
  which pages are missing, and what was requested and did not come is requested again (pager/pager.h). A page that is
  there is not requested, so none is sent twice that is there.
- Messages that must neither be lost nor come twice have numbers (wire/messages.py). Each side tells from time to time
  up to which number it has taken in the other's (Pulse). What was not acknowledged is sent again, and what comes again
  is passed over (wire/control.py).

So whoever has a session's id, secret and attempt, its page tables, and the number of the last message that was taken
in, goes on where another one has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from live_migration.wire.addresses import Address
from live_migration.wire.connection import Caller, CutOffError, Roles, closed_unless_done, introduce, prepare
from live_migration.wire.control import PATIENCE_AFTER_COMMIT_SECONDS, ControlChannel
from live_migration.wire.errors import MigrationError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Done, Hello, Role, Side
from live_migration.wire.keys import derive_keys
from live_migration.wire.reception import Readmission
from live_migration.wire.stream import Stream, TlsContext

FIRST_PAUSE_SECONDS = 0.02
# A packet that a cut network has swallowed is sent again by the kernel after seconds only; so a new connection is tried
# beside those that are under way. A page is to be there within 200 ms once the network is back.
LONGEST_PAUSE_SECONDS = 0.05
CONNECT_SECONDS = 3.0
# Connections that end again and again, as soon as they stand, are made less often.
SHORT_LIVED_SECONDS = 5.0
LONGEST_REST_SECONDS = 2.0
HANDSHAKES_SECONDS = 5.0


def connect_again(first: socket.socket, address: Address, known: Roles, side: Side, attempt: int) -> Roles:
    """The three connections of attempt `attempt` of a session: CONTROL on `first`, which leads to the other side, and
    two more. Of `known`, session, secret, form and context count. Takes HANDSHAKES_SECONDS at most.

    Raises MigrationError, OSError."""
    deadline = time.monotonic() + HANDSHAKES_SECONDS
    context = known.context or TlsContext()
    streams: dict[Role, Stream] = {}
    with closed_unless_done(streams):
        for role in Role:
            streams[role] = stream = Stream(first) if role is Role.CONTROL else _connect(address, deadline)
            keys, hello = derive_keys(known.secret, side, role), Hello(side, role, attempt, known.session)
            _introduced(stream, Caller(context, known.form, keys, hello), deadline)
            prepare(stream.socket)
    control, fault, bulk = (streams[role] for role in Role)
    return Roles(known.session, attempt, control, fault, bulk, known.secret, None, known.form, context, address)


def _introduced(stream: Stream, caller: Caller, deadline: float) -> Done:
    try:
        return introduce(stream, caller, deadline)
    except CutOffError as error:
        raise error.error from None


def _connect(address: Address, deadline: float) -> Stream:
    connection = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        connection.connect(address.where)
    except BaseException:
        connection.close()
        raise
    return Stream(connection)


class Redialling:
    """Dials until the three connections of a newer attempt stand, in a thread between `begin` and `take`.

    `roles` are those that are used. `fileno` is readable when there is something to take."""

    def __init__(self, address: Address, roles: Roles, side: Side) -> None:
        self.address = address
        self.cause = ""
        self._known = roles
        self._side = side
        self._attempt = roles.attempt
        self._stood_since = time.monotonic()
        self._rest = 0.0
        self._refused_since: float | None = None
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._halt = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._found: Roles | None = None

    def fileno(self) -> int:
        """To wait on."""
        return self._event

    def begin(self) -> None:
        """Dial, unless that is under way."""
        if self._thread is None:
            short = time.monotonic() - self._stood_since < SHORT_LIVED_SECONDS
            self._rest = min(max(2 * self._rest, LONGEST_PAUSE_SECONDS), LONGEST_REST_SECONDS) if short else 0.0
            self._refused_since = None
            self._thread = threading.Thread(target=self._dial, name="lm-dial", daemon=True)
            self._thread.start()

    def take(self) -> Roles | None:
        """The connections, once they stand."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
            if self._thread:
                self._thread.join()
            self._thread, self._stood_since = None, time.monotonic()
            found, self._found = self._found, None
            return found
        return None

    def close(self) -> None:
        """Dial no more, and let go what nobody has taken."""
        os.eventfd_write(self._halt, 1)
        if self._thread:
            self._thread.join()
        if self._found:
            self._found.close()
        os.close(self._event)
        os.close(self._halt)

    @property
    def refused_for(self) -> float:
        """Seconds since which nobody has listened there, and nothing else was found out; 0 if somebody may."""
        since = self._refused_since
        return 0.0 if since is None else time.monotonic() - since

    def _failed(self, error: int) -> None:
        self.cause = os.strerror(error)
        if error != errno.ECONNREFUSED:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = time.monotonic()

    def _dial(self) -> None:
        if self._rest and self._is_halted(self._rest):
            return
        pause = FIRST_PAUSE_SECONDS
        while (connection := self._reach()) is not None:
            self._attempt += 1
            self._refused_since = None
            try:
                self._found = connect_again(connection, self.address, self._known, self._side, self._attempt)
                os.eventfd_write(self._event, 1)
                return
            except MigrationError as error:
                self.cause = error.cause
                # Somebody else has the port, who is not to be bothered.
                pause = LONGEST_REST_SECONDS if error.code is ExitCode.BAD_TICKET else pause
            except OSError as error:
                self.cause = error.strerror or str(error)
            if self._is_halted(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _is_halted(self, seconds: float) -> bool:
        return bool(watched(self._halt).poll(seconds * 1000))

    def _reach(self) -> socket.socket | None:
        """A connection to the other side, as soon as one can be made; None when nobody wants it any more."""
        under_way: dict[socket.socket, float] = {}
        pause, begun = FIRST_PAUSE_SECONDS, 0.0
        try:
            while True:
                now = time.monotonic()
                if now >= begun + pause or not begun:
                    begun, pause = now, min(2 * pause, LONGEST_PAUSE_SECONDS) if begun else pause
                    self._start_one(under_way)
                poll = watched(self._halt, under_way)
                ready = {number for number, _ in poll.poll(max(0.0, begun + pause - now) * 1000)}
                if self._halt in ready:
                    return None
                for one in [one for one in under_way if one.fileno() in ready]:
                    del under_way[one]
                    if not (error := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        return one
                    self._failed(error)
                    one.close()
                for one, since in [*under_way.items()]:
                    if time.monotonic() > since + CONNECT_SECONDS:
                        del under_way[one]
                        self._failed(errno.ETIMEDOUT)
                        one.close()
        finally:
            for one in under_way:
                one.close()

    def _start_one(self, under_way: dict[socket.socket, float]) -> None:
        """Begin to connect. What cannot even begin is tried again."""
        try:
            one = socket.socket(self.address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._failed(error.errno or 0)
            return
        try:
            one.connect(self.address.where)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(error.errno or 0)
            one.close()
            return
        under_way[one] = time.monotonic()


def watched(halt: int, under_way: Iterable[socket.socket] = ()) -> select.poll:
    """What tells when that number can be read, or a connection stands or has failed. select(2) knows no number above
    1023, and the process may have more descriptors than that."""
    found = select.poll()
    found.register(halt, select.POLLIN)
    for one in under_way:
        found.register(one, select.POLLOUT)
    return found


class Doorway:
    """Where connections come from at the side that listens: its custodian, which listens at the same port, passes on
    what is not its own; and when it has left (`is_left`), they come to the port itself.
    """

    def __init__(self, passed: socket.socket, listener: socket.socket, is_left: Callable[[], bool]) -> None:
        self._passed = passed
        self._listener = listener
        self._is_left = is_left
        self._listens = False
        self._epoll = select.epoll()
        self._epoll.register(passed, select.EPOLLIN)

    def fileno(self) -> int:
        """To wait on."""
        return self._epoll.fileno()

    def look(self) -> None:
        """Listen at the port itself, if the custodian has left. Call it from time to time."""
        if not self._listens and self._is_left():
            self._listens = True
            self._epoll.register(self._listener, select.EPOLLIN)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next one, and its address. Raises BlockingIOError if there is none, OSError for one that has gone."""
        with contextlib.suppress(BlockingIOError):
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            _, passed, _, _ = self._passed.recvmsg(1, socket.CMSG_LEN(4), flags)
            for _, _, number in passed:
                made = socket.socket(fileno=int.from_bytes(number, sys.byteorder))
                try:
                    return made, made.getpeername()
                except OSError:
                    made.close()
                    raise
        if self._listens:
            return self._listener.accept()
        raise BlockingIOError

    def close(self) -> None:
        """What it waits on stays its owner's."""
        self._epoll.close()


def doorway_of_our_own(address: Address) -> Doorway:
    """A port that a killed command of ours had, as soon as its custodian has left too. Raises OSError."""
    nobody, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Its end would be something to wait for.
    other.detach()
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def listens() -> bool:
        try:
            listener.bind(address.where)
            listener.listen()
        except OSError:
            return False
        return True

    return Doorway(nobody, listener, listens)


class Link:
    """The three connections of a side after COMMIT, which may be lost and come again. `control` goes on with each. They
    come through `door`, or are made to the other side's address (`roles.peer`). Of those that `roles` has nothing is
    asked: they may have ended already.

    Nothing here waits. `fileno` is readable when there may be something for `take`; call that from time to time, too.
    """

    def __init__(self, roles: Roles, side: Side, control: ControlChannel, door: Doorway | None) -> None:
        self.control = control
        self.since: float | None = None
        self._roles = roles
        self._door = door
        self._meeting: Redialling | Readmission
        if door is None:
            assert roles.peer, "one side listens, and the other one knows where"
            self._meeting = Redialling(roles.peer, roles, side)
        else:
            self._meeting = Readmission(door, roles, side)
        control.patience = PATIENCE_AFTER_COMMIT_SECONDS

    def fileno(self) -> int:
        """To wait on; it changes when `take` has given something."""
        return self._meeting.fileno()

    @property
    def stands(self) -> bool:
        """Whether it is not known that it is lost."""
        return self.since is None

    @property
    def lost_for(self) -> float:
        """Seconds since it was lost; 0 while it stands."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    @property
    def waits_for(self) -> str:
        """What ends the wait, as a sentence's end."""
        if isinstance(self._meeting, Readmission):
            return "the other side, which connects again as soon as it can"
        why = f" ({self._meeting.cause.lower()})" if self._meeting.cause else ""
        return f"{self._meeting.address}, which is called again and again{why}"

    @property
    def refused_for(self) -> float:
        """Seconds since which nobody has listened where this side dials."""
        return self._meeting.refused_for if isinstance(self._meeting, Redialling) else 0.0

    def lose(self, cause: str) -> None:
        """It is of no use any more: end all three, for both sides, and see to it that there will be new ones."""
        self.since = self.since or time.monotonic()
        self.control.lost(cause)
        for stream in (self._roles.control, self._roles.fault, self._roles.bulk):
            with contextlib.suppress(OSError):
                stream.shutdown()
        if isinstance(self._meeting, Redialling):
            self._meeting.begin()

    def take(self) -> Roles | None:
        """New connections, if they stand: `control` goes on with its own, and FAULT and BULK are for the pages."""
        if self._door is not None:
            self._door.look()
        found = self._meeting.take()
        if found is not None:
            self.control.renew(found.control)
            self._roles.close()
            self._roles, self.since = found, None
        return found

    def close(self) -> None:
        """End everything. `control` has to have ended its pulses."""
        self._meeting.close()
        self._roles.close()
        if self._door is not None:
            self._door.close()
