"""A relay between the two commands that ends, cuts, delays or garbles what goes through it, as a bad network or tunnel
does, or somebody on the path."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

CHUNK = 1 << 16
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST (socket(7))


class Fault(enum.Enum):
    """What a relay does to a connection."""

    FIN = "end it in order, on both sides"
    RST = "reset it, on both sides"
    CUT = "take what comes and pass nothing on"
    DELAY = "hold everything back for a while"
    GARBLE = "change a byte of what goes through next"


@dataclass
class Link:
    """One connection through the relay: the side that dialled, and the side that listens."""

    dialled: socket.socket
    listening: socket.socket
    held_until: float = 0.0
    open: bool = True
    garbled: bool = False

    def close(self, *, abort: bool = False) -> None:
        """Close both sides, once."""
        if self.open:
            self.open = False
            for side in (self.dialled, self.listening):
                with contextlib.suppress(OSError):
                    if abort:
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                    else:
                        side.shutdown(socket.SHUT_WR)
                side.close()


@dataclass
class Relay:
    """Passes on what comes to `port` of 127.0.0.1; `links` in the order in which they were made."""

    target: tuple[str, int]
    listener: socket.socket
    links: list[Link] = field(default_factory=list)
    refusing: bool = False
    ended: bool = False
    thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    def strike(self, fault: Fault, which: int, seconds: float) -> None:
        """Do `fault` to the link number `which`, or to all of them if it is negative. A delay lasts `seconds`. After a
        cut, what was held back is lost; and if it was of all, no new link is made before mend()."""
        struck = self.links if which < 0 else [self.links[which % len(self.links)]] if self.links else []
        for link in list(struck):
            if fault in (Fault.FIN, Fault.RST):
                link.close(abort=fault is Fault.RST)
            elif fault is Fault.DELAY:
                link.held_until = time.monotonic() + seconds
            elif fault is Fault.GARBLE:
                link.garbled = True
            else:
                link.held_until = float("inf")
        if fault is Fault.CUT and which < 0:
            self.refusing = True

    def mend(self) -> None:
        """A network that was cut is back: new links are made. What was cut stays so until its ends give it up."""
        self.refusing = False

    def close(self) -> None:
        """End the relay and every link."""
        self.ended = True
        if self.thread:
            self.thread.join(5)
        self.listener.close()
        for link in self.links:
            link.close()

    def _accept(self) -> None:
        dialled, _ = self.listener.accept()
        listening = socket.socket()
        listening.settimeout(2)
        try:
            if self.refusing:
                raise ConnectionError
            listening.connect(self.target)
        except OSError:
            dialled.close()
            listening.close()
            return
        for side in (dialled, listening):
            side.settimeout(5)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.links.append(Link(dialled, listening))

    def _pass_on(self, link: Link, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(CHUNK)
            if data:
                if link.garbled:
                    place, link.garbled = len(data) // 2, False
                    data = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
                sink.sendall(data)
            else:
                link.close()
        except OSError:
            link.close(abort=True)

    def run(self) -> None:
        """Pass on until it is ended."""
        while not self.ended:
            now = time.monotonic()
            passing = {}
            for link in [link for link in self.links if link.open and now >= link.held_until]:
                passing[link.dialled] = (link, link.listening)
                passing[link.listening] = (link, link.dialled)
            try:
                ready, _, _ = select.select([self.listener, *passing], [], [], 0.005)
            except (OSError, ValueError):
                continue
            for each in ready:
                if each is self.listener:
                    self._accept()
                elif passing[each][0].open:
                    self._pass_on(passing[each][0], each, passing[each][1])


def start_relay(target: tuple[str, int], port: int = 0) -> Relay:
    """A running relay to an address; where it listens, unless that is all the same."""
    relay = Relay(target, socket.create_server(("127.0.0.1", port)))
    relay.thread = threading.Thread(target=relay.run, daemon=True)
    relay.thread.start()
    return relay
