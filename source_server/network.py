"""What lm-serve and its custodian have open to change the network of the process: both have the same sockets, so that
rules that hold packets back go when both have ended, however that comes about.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from live_migration.kernel.netlink import ROUTE, SOCK_DIAG, open_netlink
from live_migration.kernel.packet_rules import Ends, PacketRules, open_rules
from live_migration.kernel.packet_tap import PacketTap
from live_migration.kernel.socket_in import opened_if_possible, socket_in
from live_migration.process.descriptors.tcp_packets import MOST_BYTES, Admitted, give_to_host


@dataclass
class Network:
    """Sockets to the kernel about the network namespace of the process. `deaf`: why no packets could be kept."""

    rules: PacketRules
    routes: socket.socket
    diagnosis: socket.socket
    tap: PacketTap
    link: socket.socket
    known: Admitted = field(default_factory=Admitted)
    prepared: bool = False
    deaf: str = ""

    @property
    def shared(self) -> tuple[int, int]:
        """The descriptors that the custodian needs."""
        return self.rules.kernel.fileno(), self.routes.fileno()

    def prepare(self, connections: Iterable[Ends]) -> None:
        """Have rules that hold nothing back yet, and that know these connections. Raises OSError."""
        if not self.prepared:
            self.rules.prepare(connections)
            self.prepared = True

    def listen(self, known: Admitted) -> None:
        """Keep the packets that come for these. It is a help: where it is not possible, they are sent again, and `deaf`
        says why."""
        self.known = known
        try:
            self.tap.start(known.ports)
            self.deaf = ""
        except OSError as error:
            self.tap.stop()
            self.deaf = error.strerror or str(error)

    def give_back(self) -> None:
        """The process does not move, and nothing is held back any more: what came meanwhile comes now."""
        self.prepared = False
        packets = self.tap.take(MOST_BYTES)
        self.tap.stop()
        give_to_host(self.link, packets, self.known)

    def close(self) -> None:
        """Close the sockets here."""
        self.tap.stop()
        for one in (self.rules.kernel, self.routes, self.diagnosis, self.link):
            one.close()


def open_network(pid: int) -> Network:
    """What is needed for process `pid`; nothing of it is changed yet. Raises OSError."""
    return Network(
        open_rules(f"live-migration-source-{os.getpid()}", pid),
        opened_if_possible(lambda: open_netlink(ROUTE, pid)),
        opened_if_possible(lambda: open_netlink(SOCK_DIAG, pid)),
        PacketTap(pid),
        opened_if_possible(lambda: socket_in(pid, socket.AF_PACKET, socket.SOCK_DGRAM, 0)),
    )
