"""Source, destination and a client on one LAN: a bridge in the client's namespace has a port for each of the two.

The service address is the source's at first, and moves. Everything that passes the bridge is captured.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from live_migration.experiments.machines import Machine, add_namespace

SERVICE, SERVICE6 = "10.98.0.50", "fd98::50"
NAMES = ("source", "destination", "client")
SYN, RST, ACK = 0x02, 0x04, 0x10
CLONE_NEWNET = 0x40000000


@dataclass
class Capture:
    """The TCP segments that passed: resets, and how often each beginning of a connection was sent.
    """

    frames: socket.socket
    stop: int
    resets: list[bytes] = field(default_factory=list)
    beginnings: Counter[bytes] = field(default_factory=Counter)
    seen: int = 0

    def run(self) -> None:
        """Until it is told to stop."""
        while True:
            ready = select.select([self.frames.fileno(), self.stop], [], [])[0]
            if self.frames.fileno() in ready:
                self.take(self.frames.recv(1 << 16))
            elif ready:
                return

    def take(self, frame: bytes) -> None:
        """Note a reset."""
        (kind,) = struct.unpack_from(">H", frame, 12)
        at = {0x0800: 14 + (frame[14] & 15) * 4 if len(frame) > 14 else 0, 0x86DD: 54}.get(kind, 0)
        protocol = frame[23] if kind == 0x0800 else frame[20] if kind == 0x86DD else 0
        if protocol != socket.IPPROTO_TCP or len(frame) < at + 14:
            return
        self.seen += 1
        if frame[at + 13] & RST:
            self.resets.append(frame[: at + 20])
        if frame[at + 13] & (SYN | ACK) == SYN:
            self.beginnings[frame[at : at + 8]] += 1


@dataclass(frozen=True)
class Lan:
    """The three machines, and the namespace of the client as a descriptor."""

    source: Machine
    destination: Machine
    client: Machine
    opened: list[socket.socket] = field(default_factory=list)

    @contextlib.contextmanager
    def at(self, machine: Machine) -> Iterator[None]:
        """Within, this thread's new sockets are of that machine."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{machine.namespace}", os.O_RDONLY)
        try:
            set_namespace(there)
            yield
        finally:
            set_namespace(own)
            os.close(own)
            os.close(there)

    def connect(self, port: int, address: str = SERVICE) -> socket.socket:
        """A connection of the client's."""
        with self.at(self.client):
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self.opened.append(made)
        made.settimeout(20)
        made.connect((address, port))
        return made

    @contextlib.contextmanager
    def captured(self) -> Iterator[Capture]:
        """What passes on the client's bridge meanwhile."""
        with self.at(self.client):
            frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        frames.bind(("lan", 3))
        stopped, stop = os.pipe()
        found = Capture(frames, stopped)
        thread = threading.Thread(target=found.run)
        thread.start()
        try:
            yield found
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)
            frames.close()


def set_namespace(number: int) -> None:
    """setns(2)."""
    if ctypes.CDLL(None, use_errno=True).setns(number, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def lan() -> Iterator[Lan]:
    """Build it; removed on every way out."""
    unique = f"{os.getpid()}-{secrets.token_hex(2)}"
    machines = [Machine(f"lm-{name}-{unique}", "lan", f"10.98.0.{number}") for number, name in enumerate(NAMES, 1)]
    source, destination, client = machines
    with contextlib.ExitStack() as stack:
        for machine in machines:
            add_namespace(stack, machine.namespace)
            machine.ip("link", "set", "lo", "up")
        client.ip("link", "add", "lan", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        for number, machine in enumerate((source, destination)):
            client.ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "lan", "netns", machine.namespace)
            client.ip("link", "set", f"port{number}", "master", "lan", "up")
        for number, machine in enumerate(machines, 1):
            machine.ip("link", "set", "lan", "up")
            machine.ip("address", "add", f"10.98.0.{number}/24", "dev", "lan")
            machine.ip("address", "add", f"fd98::{number}/64", "dev", "lan", "nodad")
        source.ip("address", "add", f"{SERVICE}/24", "dev", "lan")
        source.ip("address", "add", f"{SERVICE6}/64", "dev", "lan", "nodad")
        found = Lan(source, destination, client)
        try:
            yield found
        finally:
            for one in found.opened:
                one.close()
