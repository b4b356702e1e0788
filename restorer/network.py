"""What lm-restore changes in its network when the process runs here: addresses that it takes, connections that go on.

Everything is ready before READY. What is left is written down as rows (process/descriptors/held_table.h) for the worker
or, if that has died, the custodian: both have the same sockets, so that rules that hold packets back go when both have
ended. A husk that is dropped leaves nothing: its connections are in repair, and send nothing when they are closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from live_migration.kernel.addresses import (
    addition,
    announcements,
    hardware_address,
    host_addresses,
    open_link,
)
from live_migration.kernel.injection.syscall_numbers import SYS_sendto
from live_migration.kernel.named_network import inside
from live_migration.kernel.netlink import ROUTE, open_netlink
from live_migration.kernel.packet_rules import PacketRules, open_rules
from live_migration.kernel.socket_in import opened_if_possible
from live_migration.process.descriptors.held import ROUTES, RULES, Held, Row
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.descriptors.tcp_packets import Admitted, admitted, give_to_host
from live_migration.process.descriptors.tcp_traffic import connections_of, ends_of, places_of, rules_blocker, sockets_of
from live_migration.wire.blockers import Blocker
from live_migration.wire.taken import TakenAddress

ANNOUNCED_AGAIN = (0.05, 0.3, 1.0)
"""Seconds after the resume: an announcement may be lost, or come while the source still answers for the address."""


@dataclass
class Network:
    """Sockets to this host's kernel. `namespace` is the network namespace of the process, -1: our own."""

    namespace: int
    rules: PacketRules
    routes: socket.socket
    links: dict[str, socket.socket]
    taken: tuple[TakenAddress, ...]
    table: int
    link: socket.socket
    known: Admitted = field(default_factory=Admitted)
    prepared: bool = False
    again: list[float] = field(default_factory=list)

    @property
    def shared(self) -> list[int]:
        """The descriptors that the custodian needs."""
        sockets = (self.rules.kernel, self.routes, *self.links.values())
        return [self.table, *(one.fileno() for one in sockets)]

    @property
    def sockets(self) -> tuple[int, int]:
        """Those of the rules and of the addresses."""
        return self.rules.kernel.fileno(), self.routes.fileno()

    def close(self) -> None:
        """Close the sockets here, after a last announcement if some were still to come."""
        if self.again:
            self.again = [0.0]
            self.announce()
        for one in (self.rules.kernel, self.routes, self.link, *self.links.values()):
            one.close()
        os.close(self.table)

    def resumed(self) -> list[str]:
        """The process runs: when to announce again, and addresses that are not here although they should be."""
        now = time.monotonic()
        if self.links:
            self.again = [now + seconds for seconds in ANNOUNCED_AGAIN]
        with inside(self.namespace):
            here = {one.address for one in host_addresses()} if self.taken else set()
        return [one.address for one in self.taken if one.address not in here]

    def prepare(self, table: DescriptorTable) -> None:
        """Have rules that hold nothing back yet, for a process with sockets of IP. Where that is not possible, no
        connection moves: one that the process makes meanwhile ends the migration."""
        if sockets_of(table):
            with contextlib.suppress(OSError):
                self.rules.prepare(ends_of(table))
                self.prepared = True

    def take_in(self, packets: Sequence[bytes]) -> None:
        """Give this host the packets that came to the source for what runs here now."""
        give_to_host(self.link, packets, self.known)

    def announce(self) -> None:
        """Announce the taken addresses again when it is time. What cannot be sent is left."""
        if not self.again or time.monotonic() < self.again[0]:
            return
        del self.again[0]
        for row in announcement_rows(self):
            number, frame = row.arguments[:2]
            assert isinstance(number, int)
            assert isinstance(frame, bytes)
            try:
                os.write(number, frame)
            except OSError:
                continue


def taken_blockers(taken: Sequence[TakenAddress]) -> list[Blocker]:
    """Why this host cannot take addresses. Raises OSError."""
    found = []
    here = {one.address for one in host_addresses()}
    for one in taken:
        name = f"--take-address {one.address}/{one.prefix}@{one.interface}"
        if one.interface not in {each for _, each in socket.if_nameindex()}:
            found.append(Blocker(name, "this host has no such interface", "name one that it has (ip link)"))
        elif one.address in here:
            found.append(Blocker(name, "this host has the address already", "leave out the option"))
    return found


def rules_blockers(table: DescriptorTable) -> list[Blocker]:
    """Why packets of the connections of a table cannot be held back here, if it has any. It is tried."""
    if not connections_of(table):
        return []
    tried = open_rules(f"live-migration-preflight-{os.getpid()}")
    try:
        tried.prepare()
        return []
    except OSError as error:
        return [rules_blocker(error)]
    finally:
        tried.kernel.close()


def open_network(taken: Sequence[TakenAddress], namespace: int) -> Network:
    """What is needed, in that network namespace; nothing is changed yet. Raises OSError."""
    with inside(namespace):
        links = {
            one.interface: open_link(one.interface) for one in taken if hardware_address(one.interface) is not None
        }
        return Network(
            namespace,
            open_rules(f"live-migration-destination-{os.getpid()}"),
            opened_if_possible(lambda: open_netlink(ROUTE)),
            links,
            tuple(taken),
            os.memfd_create("begun", os.MFD_CLOEXEC),
            opened_if_possible(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)),
        )


def hold(network: Network, table: DescriptorTable) -> None:
    """Hold the packets of connections and listeners back until the process runs. Raises OSError."""
    network.known = admitted(table)
    network.rules.hold(ends_of(table), places_of(table))


def begun_tables(network: Network, begun: Sequence[Held]) -> list[Held]:
    """What is done when the process runs here: packets get through, the addresses come and are announced, and the
    connections go on."""
    message = network.rules.let_go()
    # What comes here from the announcement on must get through.
    rows = [
        Row(SYS_sendto, (RULES, message, len(message), 0, 0, 0)),
        *address_rows(network),
        *announcement_rows(network),
    ]
    return [Held(-1, 0, commit=tuple(rows)), *begun]


def address_rows(network: Network) -> list[Row]:
    """The addresses come."""
    with inside(network.namespace):
        messages = [addition(one.address, one.prefix, socket.if_nametoindex(one.interface)) for one in network.taken]
    return [Row(SYS_sendto, (ROUTES, one, len(one), 0, 0, 0)) for one in messages]


def announcement_rows(network: Network) -> list[Row]:
    """Everybody on their links hears of it."""
    rows = []
    for one in network.taken:
        link = network.links.get(one.interface)
        with inside(network.namespace):
            hardware = hardware_address(one.interface)
        if link is not None and hardware is not None:
            for frame in announcements(one.address, hardware):
                rows.append(Row(SYS_sendto, (link.fileno(), frame, len(frame), 0, 0, 0)))
    return rows
