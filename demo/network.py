"""The demo's network: source, destination and client on one LAN, and a service address that the source has at first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from live_migration.experiments.machines import Machine, add_namespace, two_machines

SERVICE = "10.99.1.9"
TAKEN = f"{SERVICE}/24@lan"


@dataclass(frozen=True)
class Network:
    """Source and destination, which also have a link of their own between them, and the client."""

    source: Machine
    destination: Machine
    client: Machine


@contextlib.contextmanager
def demo_network() -> Iterator[Network]:
    """Build it; removed on every way out. A bridge at the client is the LAN, on which each has an interface `lan`."""
    name = f"lm-client-{os.getpid()}"
    with two_machines() as (source, destination), contextlib.ExitStack() as stack:
        add_namespace(stack, name)
        client = Machine(name, "lan", "10.99.1.254")
        client.ip("link", "set", "lo", "up")
        client.ip("link", "add", "lan", "type", "bridge", "forward_delay", "0")
        client.ip("address", "add", f"{client.address}/24", "dev", "lan")
        client.ip("link", "set", "lan", "up")
        for number, machine in enumerate((source, destination), 1):
            port = f"port{number}"
            client.ip("link", "add", port, "type", "veth", "peer", "name", "lan", "netns", machine.namespace)
            client.ip("link", "set", port, "master", "lan", "up")
            machine.ip("address", "add", f"10.99.1.{number}/24", "dev", "lan")
            machine.ip("link", "set", "lan", "up")
        source.ip("address", "add", f"{SERVICE}/24", "dev", "lan")
        yield Network(source, destination, client)
