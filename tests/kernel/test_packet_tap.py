"""What arrives for a port is kept, on whatever interface."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from live_migration.experiments.machines import wait_for
from live_migration.kernel.packet_tap import PacketTap

SYN, ACK = 0x02, 0x10


@contextlib.contextmanager
def tapped(port: int) -> Iterator[PacketTap]:
    tap = PacketTap(None)
    tap.start({port})
    try:
        yield tap
    finally:
        tap.stop()


FAMILIES = ((socket.AF_INET, "127.0.0.1", 20), (socket.AF_INET6, "::1", 40))


@pytest.mark.parametrize(("family", "address", "head"), FAMILIES)
def test_what_comes_for_a_port_is_kept(family: int, address: str, head: int) -> None:
    kept: list[bytes] = []
    with socket.socket(family) as server, socket.socket(family) as other:
        for one in (server, other):
            one.bind((address, 0))
            one.listen()
        port = server.getsockname()[1]

        def three() -> bool:
            kept.extend(tap.take(1 << 20))
            return len(kept) > 2

        with tapped(port) as tap, socket.socket(family) as client, socket.socket(family) as stranger:
            stranger.connect(other.getsockname()[:2])
            client.connect((address, port))
            client.sendall(b"the last")
            wait_for("the packets", lambda: three() or None, 10)
    segments = [packet[head:] for packet in kept]
    # The beginning, its acknowledgement, and what was sent; nothing of the other port, and no answer.
    assert [int.from_bytes(one[2:4], "big") for one in segments] == [port] * 3
    assert [one[13] & (SYN | ACK) for one in segments] == [SYN, ACK, ACK]
    assert segments[2].endswith(b"the last")
