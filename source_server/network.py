"""What lm-serve and its custodian have open to change the network of the process: both have the same sockets, so that
rules that hold packets back go when both have ended, however that comes about.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from live_migration.kernel.netlink import ROUTE, SOCK_DIAG, open_netlink
from live_migration.kernel.packet_rules import PacketRules, open_rules


@dataclass(frozen=True)
class Network:
    """Sockets to the kernel about the network namespace of the process."""

    rules: PacketRules
    routes: socket.socket
    diagnosis: socket.socket

    @property
    def shared(self) -> tuple[int, int]:
        """The descriptors that the custodian needs."""
        return self.rules.kernel.fileno(), self.routes.fileno()

    def close(self) -> None:
        """Close the sockets here."""
        for one in (self.rules.kernel, self.routes, self.diagnosis):
            one.close()


def open_network(pid: int) -> Network:
    """What is needed for process `pid`; nothing of it is changed yet. Raises OSError."""
    return Network(
        open_rules(f"live-migration-source-{os.getpid()}", pid),
        open_netlink(ROUTE, pid),
        open_netlink(SOCK_DIAG, pid),
    )
