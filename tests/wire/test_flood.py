"""One attacker connects as often as it can: whoever has the ticket gets in all the same, and soon."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_migration.experiments.network import Network, network
from live_migration.experiments.results import Link

LISTENING = """
import sys
from live_migration.wire.connection import Listener
from live_migration.wire.handshake import Side
from live_migration.wire.reception import accept_roles
from live_migration.wire.ticket import make_ticket
listener = Listener(sys.argv[1], 0)
ticket = make_ticket(sys.argv[1], listener.port)
print(ticket, flush=True)
assert accept_roles(listener, ticket.secret, Side.SOURCE)
sys.stdin.read()
"""
COMING = """
import sys, time
from live_migration.wire.connection import connect_roles
from live_migration.wire.handshake import Side
from live_migration.wire.ticket import parse_ticket
ticket, begin = parse_ticket(sys.argv[1]), time.monotonic()
connect_roles(ticket, Side.DESTINATION)
print(time.monotonic() - begin)
"""
RATE = 15_000


@pytest.fixture(scope="module")
def between() -> Iterator[Network]:
    """Two namespaces, 5 ms there and back."""
    with network(Link(name="flooded", asked_rtt_ms=5)) as made:
        yield made


def come(between: Network, flood: Path) -> float:
    """How long the holder of the ticket takes to connect, in seconds, while somebody else does so all the time."""
    source, destination = between.source, between.destination
    words = source.command(sys.executable, "-c", LISTENING, source.address)
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as listening:
        assert listening.stdin
        assert listening.stdout
        ticket = listening.stdout.readline().strip()
        port = ticket.rpartition(":")[2].partition("/")[0]
        with subprocess.Popen(
            destination.command(str(flood), source.address, port, str(RATE)), stdout=-1, text=True
        ) as flooding:
            assert flooding.stdout
            # The flood is on.
            assert int(flooding.stdout.readline()) > 100
            words = destination.command(sys.executable, "-c", COMING, ticket)
            came = subprocess.run(words, capture_output=True, text=True, timeout=60)
            flooding.kill()
        listening.stdin.close()
    assert came.returncode == 0, came.stderr
    return float(came.stdout)


@pytest.mark.alone
def test_a_flood_of_connections_does_not_close_the_port(between: Network, tmp_path: Path) -> None:
    flood = tmp_path / "flood"
    source = Path(__file__).parent / "flood.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(flood), str(source)], check=True)
    took = [come(between, flood) for _ in range(3)]
    print(took)
    assert statistics.median(took) < 1
