"""Packets that came in the gap are made anew, and only for what has moved."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_migration.kernel.addresses import checksum
from live_migration.kernel.packet_rules import Ends, key_of, place_of
from live_migration.process.descriptors.tcp_packets import Admitted, packed, rebuilt
from live_migration.wire.taken import TakenAddress, parse_taken

OWN, PEER = "192.0.2.5", "192.0.2.9"
OWN6, PEER6 = "2001:db8::5", "2001:db8::9"
KNOWN = Admitted(
    frozenset(key_of(Ends(place_of(own, 80), place_of(peer, 4000))) for own, peer in ((OWN, PEER), (OWN6, PEER6))),
    (place_of("0.0.0.0", 80), place_of(OWN6, 81)),
)
SYN, ACK = 0x02, 0x10


def packet(own: str, peer: str, port: int, peer_port: int, flags: int, data: bytes = b"") -> bytes:
    """A segment to `own`."""
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    addresses = socket.inet_pton(family, peer) + socket.inet_pton(family, own)
    head = struct.pack(">HHIIHHHH", peer_port, port, 7, 8, 6 << 12 | flags, 500, 0, 0)
    return packed(6 if ":" in own else 4, addresses, head + b"\x01\x01\x01\x00" + data)


@pytest.mark.parametrize(("own", "peer"), [(OWN, PEER), (OWN6, PEER6)])
def test_what_has_moved_is_taken_in(own: str, peer: str) -> None:
    wrong = bytearray(packet(own, peer, 80, 4000, ACK, b"hello"))
    length = len(wrong)
    # As a network interface leaves it to be computed later.
    wrong[-len(b"hello") - 8 : -len(b"hello") - 6] = b"\0\0"
    made = rebuilt(bytes(wrong) + b"padding", KNOWN)
    assert made == packet(own, peer, 80, 4000, ACK, b"hello")
    assert len(made) == length
    segment, addresses = (made[40:], made[8:40]) if ":" in own else (made[20:], made[12:20])
    assert checksum(addresses + struct.pack(">II", len(segment), 6) + segment) == 0


def test_nothing_else_is() -> None:
    assert rebuilt(packet(OWN, PEER, 80, 4001, ACK), KNOWN) is None
    assert rebuilt(packet(OWN, PEER, 80, 4001, SYN), KNOWN) is not None
    assert rebuilt(packet(OWN, PEER, 80, 4001, SYN | ACK), KNOWN) is None
    assert rebuilt(packet(OWN, PEER, 82, 4001, SYN), KNOWN) is None
    assert rebuilt(packet(OWN6, PEER6, 81, 4001, SYN), KNOWN) is not None
    assert rebuilt(packet("2001:db8::6", PEER6, 81, 4001, SYN), KNOWN) is None
    # Every address of IPv4 is none of IPv6.
    assert rebuilt(packet(OWN6, PEER6, 80, 4001, SYN), KNOWN) is None


@given(st.binary(max_size=120))
def test_anything_may_come(data: bytes) -> None:
    assert rebuilt(data, KNOWN) is None


@given(st.integers(0, 63), st.integers(0, 255))
def test_a_changed_byte_is_no_harm(at: int, value: int) -> None:
    changed = bytearray(packet(OWN, PEER, 80, 4000, ACK, b"0123456789" * 2))
    changed[at] = value
    made = rebuilt(bytes(changed), KNOWN)
    assert made is None or made[12:20] == bytes(changed[12:20])


def test_what_may_be_taken() -> None:
    assert parse_taken("10.0.0.5/24@eth0") == TakenAddress("10.0.0.5", 24, "eth0")
    assert parse_taken("FD00::5/64@br-lan.7") == TakenAddress("fd00::5", 64, "br-lan.7")
    for text in ("10.0.0.5@eth0", "10.0.0.5/24", "10.0.0.5/33@eth0", "127.0.0.1/8@lo", "fe80::1/64@eth0", "::/0@a"):
        with pytest.raises(ValueError, match=r"is no address|is not ADDRESS|does not appear|not a valid|not permitted"):
            parse_taken(text)
