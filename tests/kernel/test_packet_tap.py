"""What arrives for a port of this host is kept, on whatever interface."""

from __future__ import annotations

import contextlib
import socket
import struct
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
            wait_for("the packets", lambda: three() or None, 60)
    segments = [packet[head:] for packet in kept]
    # The beginning, its acknowledgement, and what was sent; nothing of the other port, and no answer.
    assert [int.from_bytes(one[2:4], "big") for one in segments] == [port] * 3
    assert [one[13] & (SYN | ACK) for one in segments] == [SYN, ACK, ACK]
    assert segments[2].endswith(b"the last")


def test_what_is_for_another_host_is_not_kept() -> None:
    """As a bridge floods it: with the address of another interface."""
    port = 40_000
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0, b"\x7f\0\0\1", b"\x7f\0\0\1")
    with tapped(port) as tap, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("lo", 0))
        for source_port, interface in ((1, b"\2\0\0\0\0\1"), (2, bytes(6))):
            segment = struct.pack("!HHIIBBHHH", source_port, port, 0, 0, 5 << 4, SYN, 0, 0, 0)
            wire.send(interface + bytes(6) + b"\x08\0" + header + segment)
        kept = wait_for("the packet", lambda: tap.take(1 << 20) or None, 60)
    assert [int.from_bytes(packet[20:22], "big") for packet in kept] == [2]
