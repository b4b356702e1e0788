"""Tables of nftables for many connections, of which most are known beforehand."""

from __future__ import annotations

import contextlib
import os
import secrets

from live_migration.experiments.machines import add_namespace
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


PAIRS = (("192.0.2.5", "192.0.2.9"), ("2001:db8::5", "2001:db8::9"))
