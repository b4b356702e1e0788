"""A link between the client and the others that loses, delays and reorders packets, and sends some twice.

A relay between two ends of veth pairs: netem is not in every kernel. It takes frames as the sender's kernel has them,
unfinished checksums and segments that are still to be cut included (PACKET_VNET_HDR, packet(7)), and gives them on so.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.lan import Lan

PACKET_VNET_HDR, SOL_PACKET, PACKET_IGNORE_OUTGOING = 15, 263, 23
LARGEST = 1 << 17
LOST, TWICE = 0.01, 0.005
SHORTEST, LONGEST = 0.0002, 0.003
"""Seconds: a frame that takes less than the one before overtakes it."""


@dataclass
class Relay:
    """Two ends, and what is on its way. `dropped` and `overtaken` are counts."""

    ends: tuple[socket.socket, socket.socket]
    stop: int
    random: random.Random
    waiting: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    dropped: int = 0
    overtaken: int = 0
    latest: float = 0.0

    def run(self) -> None:
        """Until it is told to stop."""
        numbers = itertools.count()
        while True:
            pause = max(0.0, self.waiting[0][0] - time.monotonic()) if self.waiting else None
            watched = [self.stop, *(end.fileno() for end in self.ends)]
            ready = select.select(watched, [], [], pause)[0]
            if self.stop in ready:
                return
            for index, end in enumerate(self.ends):
                if end.fileno() in ready:
                    self.take(1 - index, end.recv(LARGEST), numbers)
            self.pass_on()

    def take(self, to: int, frame: bytes, numbers: Iterator[int]) -> None:
        """Decide what becomes of a frame."""
        if self.random.random() < LOST:
            self.dropped += 1
            return
        for _ in range(2 if self.random.random() < TWICE else 1):
            due = time.monotonic() + self.random.uniform(SHORTEST, LONGEST)
            self.overtaken += due < self.latest
            self.latest = max(self.latest, due)
            heapq.heappush(self.waiting, (due, next(numbers), to, frame))

    def pass_on(self) -> None:
        """Give on what has waited for long enough. What the other end does not take is lost, too."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(self.waiting)
            with contextlib.suppress(OSError):
                self.ends[to].send(frame)


def open_end(interface: str) -> socket.socket:
    """What comes at an interface, and what leaves there, with the header of its checksum and segments."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, struct.pack("@i", 1))
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, struct.pack("@i", 1))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    end.bind((interface, 3))
    return end


@contextlib.contextmanager
def bad_link(net: Lan, seed: int) -> Iterator[Relay]:
    """Put the source's port of the bridge, and the destination's, behind one such link."""
    with contextlib.ExitStack() as stack:
        client = net.client
        # far - near: what leaves the client's addresses goes out at `far`, and comes in to the bridge from `near`.
        for name in ("far", "near"):
            client.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-relay")
            stack.callback(client.ip, "link", "delete", name)
            for each in (name, f"{name}-relay"):
                client.ip("link", "set", each, "up")
        client.ip("link", "set", "near", "master", "lan")
        client.ip("link", "add", "outer", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        stack.callback(client.ip, "link", "delete", "outer")
        client.ip("link", "set", "outer", "up")
        for port in ("port0", "port1"):
            client.ip("link", "set", port, "master", "outer")
        client.ip("link", "set", "far", "master", "outer")
        with net.at(client):
            ends = (open_end("far-relay"), open_end("near-relay"))
        stopped, stop = os.pipe()
        relay = Relay(ends, stopped, random.Random(seed))
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            yield relay
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)
            for end in ends:
                end.close()
