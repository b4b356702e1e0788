"""Packets that came for a connection or a listener while it was on its way: checked, made anew, and given to this host.

What comes from the other side is not trusted: a packet is made of checked fields, and only for connections and
listeners that have moved.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from live_migration.kernel.addresses import ETH_P_IP, ETH_P_IPV6, checksum
from live_migration.kernel.packet_rules import Ends, Place, key_of
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.descriptors.tcp_traffic import ends_of, places_of

MOST_PACKETS = 1024
MOST_BYTES = 1 << 20
ACCEPTED_FLAGS, SYN = 0x1F, 0x02
FIN_SYN_RST_ACK = 0x17
HOPS = 64


@dataclass(frozen=True)
class Admitted:
    """For which connections and listeners packets are taken in."""

    connections: frozenset[bytes] = frozenset()
    listeners: tuple[Place, ...] = ()

    @property
    def ports(self) -> set[int]:
        """Where they go to."""
        ports = {struct.unpack_from(">H", key, 4 if len(key) == 16 else 16)[0] for key in self.connections}
        return ports | {one.port for one in self.listeners}


def admitted(table: DescriptorTable) -> Admitted:
    """The connections and listeners of a table."""
    return Admitted(frozenset(key_of(one) for one in ends_of(table)), tuple(places_of(table)))


def rebuilt(packet: bytes, known: Admitted) -> bytes | None:
    """A packet, made anew; None if it is none that is taken in."""
    version = packet[0] >> 4 if len(packet) >= 40 else 0
    if version == 4:
        start, (end,) = (packet[0] & 15) * 4, struct.unpack_from(">H", packet, 2)
        protocol, addresses = packet[9], packet[12:20]
    elif version == 6:
        start, end = 40, 40 + struct.unpack_from(">H", packet, 4)[0]
        protocol, addresses = packet[6], packet[8:40]
    else:
        return None
    segment = packet[start:end]
    if protocol != socket.IPPROTO_TCP or end > len(packet) or len(segment) < 20:
        return None
    peer_port, port, sequence, acknowledged, where, window = struct.unpack_from(">HHIIHH", segment)
    if not 20 <= (where >> 12) * 4 <= len(segment):
        return None
    length = len(addresses) // 2
    peer, own = Place(version, addresses[:length], peer_port), Place(version, addresses[length:], port)
    begins = where & FIN_SYN_RST_ACK == SYN and any(
        one.port == port and one.address in (None, own.address) and one.family in (0, version)
        for one in known.listeners
    )
    if not begins and key_of(Ends(own, peer)) not in known.connections:
        return None
    head = struct.pack(">HHIIHH", peer_port, port, sequence, acknowledged, where & (0xF000 | ACCEPTED_FLAGS), window)
    return packed(version, addresses, head + bytes(4) + segment[20:])


def packed(version: int, addresses: bytes, segment: bytes) -> bytes:
    """A packet with a segment, whose checksum is filled in."""
    pseudo = addresses + struct.pack(">II", len(segment), socket.IPPROTO_TCP)
    segment = segment[:16] + struct.pack(">H", checksum(pseudo + segment)) + segment[18:]
    if version == 6:
        return struct.pack(">IHBB", 6 << 28, len(segment), socket.IPPROTO_TCP, HOPS) + addresses + segment
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0x4000, HOPS, socket.IPPROTO_TCP, 0)
    summed = checksum(head + addresses)
    return head[:10] + struct.pack(">H", summed) + addresses + segment


def give_to_host(link: socket.socket, packets: Iterable[bytes], known: Admitted) -> None:
    """Give packets to the host of a packet socket, as if they had come there. What it does not take is left."""
    for packet in packets:
        found = rebuilt(packet, known)
        if found is not None:
            protocol = ETH_P_IP if found[0] >> 4 == 4 else ETH_P_IPV6
            # TypeError: there is no packet socket, and the address is none of what stands for it.
            with contextlib.suppress(OSError, TypeError):
                link.sendto(found, ("lo", protocol, 0, 0, bytes(6)))
