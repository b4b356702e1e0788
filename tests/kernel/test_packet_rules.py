"""Tables of nftables for many connections, of which most are known beforehand."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

import pytest

from live_migration.experiments.machines import Machine, add_namespace
from live_migration.kernel.named_network import inside, open_named
from live_migration.kernel.packet_rules import Ends, open_rules, place_of
from tests.conftest import skip


def test_thousands_of_connections_are_one_change() -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")
    ends = [Ends(place_of(own, 80), place_of(peer, port)) for own, peer in PAIRS for port in range(1, 5_001)]
    name = f"lm-rules-{os.getpid()}-{secrets.token_hex(2)}"
    with contextlib.ExitStack() as stack:
        add_namespace(stack, name)
        network = open_named(name)
        stack.callback(os.close, network)
        with inside(network):
            rules = open_rules("many")
        stack.enter_context(rules.kernel)
        rules.prepare(ends[:9_000])
        assert len(rules.known) == 9_000
        rules.hold(ends, [place_of("::", 80)])
        assert len(rules.known) == 10_000
        rules.prepare()
        assert rules.known == set()


def test_what_a_host_passes_on_to_others_is_not_held_back() -> None:
    """A listener at every address is this host's, though others listen at the same port beyond it."""
    if os.geteuid() != 0:
        skip("network namespaces need root")
    unique = f"{os.getpid()}-{secrets.token_hex(2)}"
    near, router, far = (Machine(f"lm-{name}-{unique}", "", "") for name in ("near", "router", "far"))
    with contextlib.ExitStack() as stack:
        for one in (near, router, far):
            add_namespace(stack, one.namespace)
        for number, one in ((1, near), (2, far)):
            words = ("type", "veth", "peer", "name", "lan", "netns", one.namespace)
            router.ip("link", "add", f"to{number}", *words)
            router.ip("link", "set", f"to{number}", "up")
            router.ip("address", "add", f"192.0.2.{number * 64 + 1}/26", "dev", f"to{number}")
            one.ip("link", "set", "lan", "up")
            one.ip("address", "add", f"192.0.2.{number * 64 + 2}/26", "dev", "lan")
            one.ip("route", "add", "default", "via", f"192.0.2.{number * 64 + 1}")
        networks = [open_named(one.namespace) for one in (near, router, far)]
        for network in networks:
            stack.callback(os.close, network)
        with inside(networks[1]):
            # Of the network namespace that this thread is in.
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            rules = open_rules("listener")
            stack.enter_context(rules.kernel)
            stack.enter_context(socket.create_server(("0.0.0.0", 80)))
        with inside(networks[2]):
            stack.enter_context(socket.create_server(("0.0.0.0", 80)))
        rules.prepare()
        rules.hold((), [place_of("0.0.0.0", 80)])
        with inside(networks[0]):
            socket.create_connection(("192.0.2.130", 80), 10).close()
            with pytest.raises(TimeoutError):
                socket.create_connection(("192.0.2.65", 80), 0.3)


PAIRS = (("192.0.2.5", "192.0.2.9"), ("2001:db8::5", "2001:db8::9"))
