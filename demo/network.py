"""The demo's network: a client with a link to each of two machines, and a service address that is routed to one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from live_migration.experiments.machines import Machine, add_namespace, two_machines

SERVICE = "10.99.9.9"


@dataclass(frozen=True)
class Network:
    """Source and destination with a link of their own between them, and the client."""

    source: Machine
    destination: Machine
    client: Machine

    def route_service_to(self, machine: Machine) -> None:
        """From now on the service address leads to this machine, as a router or a load balancer would do it."""
        via = gateway(self, machine)
        self.client.ip("route", "replace", f"{SERVICE}/32", "via", via)


def gateway(network: Network, machine: Machine) -> str:
    """The machine's address on its link to the client."""
    return "10.99.1.1" if machine is network.source else "10.99.2.1"


@contextlib.contextmanager
def demo_network() -> Iterator[Network]:
    """Build it; removed on every way out. The service address exists on both machines, and is routed to the source."""
    name = f"lm-client-{os.getpid()}"
    with two_machines() as (source, destination), contextlib.ExitStack() as stack:
        add_namespace(stack, name)
        network = Network(source, destination, Machine(name, "", ""))
        network.client.ip("link", "set", "lo", "up")
        for number, machine in enumerate((source, destination), 1):
            link = f"to-{number}"
            network.client.ip(
                "link", "add", link, "type", "veth", "peer", "name", "client", "netns", machine.namespace
            )  # fmt: skip
            network.client.ip("address", "add", f"10.99.{number}.254/24", "dev", link)
            network.client.ip("link", "set", link, "up")
            machine.ip("address", "add", f"10.99.{number}.1/24", "dev", "client")
            machine.ip("link", "set", "client", "up")
            machine.ip("address", "add", f"{SERVICE}/32", "dev", "lo")
        network.route_service_to(source)
        yield network
