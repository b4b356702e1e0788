"""The addresses of this host's interfaces: which there are, and messages that take one away, give one, or announce it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from live_migration.kernel.netlink import (
    ACKNOWLEDGED,
    CREATE,
    EXCLUSIVE,
    ROUTE,
    attribute,
    attributes,
    dump,
    message,
    open_netlink,
)

NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
SECONDARY, NO_DETECTION = 0x01, 0x02
HEADER = struct.Struct("=BBBBI")
SIOCGIFHWADDR = 0x8927
ETHERNET = 1
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
EVERYBODY = b"\xff" * 6
ARP_REQUEST, ARP_REPLY = 1, 2


@dataclass(frozen=True)
class HostAddress:
    """An address of an interface, by the interface's number. `flags` are those of rtnetlink(7), `body` is how the
    kernel tells it.
    """

    interface: int
    address: str
    prefix: int
    flags: int
    body: bytes

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """The network that it is in."""
        return ipaddress.ip_network(f"{self.address}/{self.prefix}", strict=False)


def host_addresses(pid: int | None = None) -> list[HostAddress]:
    """All addresses in the network namespace of process `pid`, or in this one. Raises OSError."""
    found = []
    with open_netlink(ROUTE, pid) as kernel:
        told = dump(kernel, GET_ADDRESS, HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    for answer in told:
        family, prefix, flags, _, interface = HEADER.unpack_from(answer.body)
        if answer.kind != NEW_ADDRESS or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        known = attributes(answer.body, HEADER.size)
        packed = known.get(IFA_LOCAL, known.get(IFA_ADDRESS, b""))
        if IFA_FLAGS in known:
            (flags,) = struct.unpack("=I", known[IFA_FLAGS])
        found.append(HostAddress(interface, socket.inet_ntop(family, packed), prefix, flags, answer.body))
    return found


def plain(address: str) -> str:
    """An address of a socket in the form in which all others are written: without a zone, and one of IPv4 as such."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found)


def removal(one: HostAddress) -> bytes:
    """The message that takes an address away from this host."""
    return message(DELETE_ADDRESS, 0, one.body)


def addition(address: str, prefix: int, interface: int) -> bytes:
    """The message that gives an interface an address, which can be used at once (IPv6: nobody is asked whether it is a
    duplicate)."""
    found = ipaddress.ip_address(address)
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    parts = [attribute(IFA_LOCAL, found.packed), attribute(IFA_ADDRESS, found.packed)]
    flags = 0
    if found.version == 6:
        flags = NO_DETECTION
    elif prefix < 31:
        network = ipaddress.IPv4Network(f"{address}/{prefix}", strict=False)
        parts.append(attribute(IFA_BROADCAST, network.broadcast_address.packed))
    body = HEADER.pack(family, prefix, flags, 0, interface) + b"".join(parts)
    return message(NEW_ADDRESS, CREATE | EXCLUSIVE | ACKNOWLEDGED, body)


def hardware_address(interface: str) -> bytes | None:
    """The address of an interface on its link, None where it is not Ethernet's. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        answer = fcntl.ioctl(asked, SIOCGIFHWADDR, struct.pack("16sH14x", os.fsencode(interface), 0))
    kind, found = struct.unpack("16xH6s8x", answer)
    return bytes(found) if kind == ETHERNET else None


def open_link(interface: str) -> socket.socket:
    """A socket that sends frames of that interface, and receives none. Raises OSError."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.bind((interface, 0))
    return found


def announcements(address: str, hardware: bytes) -> list[bytes]:
    """The frames that tell everybody on a link where an address is now: gratuitous ARP, as a request and as an answer,
    or an unsolicited neighbour advertisement."""
    found = ipaddress.ip_address(address)
    if found.version == 4:
        head = EVERYBODY + hardware + struct.pack(">H", ETH_P_ARP)
        own = hardware + found.packed
        return [
            head + struct.pack(">HHBBH", ETHERNET, ETH_P_IP, 6, 4, kind) + own + target + found.packed
            for kind, target in ((ARP_REQUEST, bytes(6)), (ARP_REPLY, hardware))
        ]
    return [_advertisement(found.packed, hardware)]


def _advertisement(address: bytes, hardware: bytes) -> bytes:
    """RFC 4861, 4.4: to all nodes, with the flag that what they know is overridden."""
    everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
    advertised = struct.pack(">BBHI", 136, 0, 0, 0x20000000) + address + struct.pack(">BB", 2, 1) + hardware
    pseudo = address + everybody + struct.pack(">II", len(advertised), socket.IPPROTO_ICMPV6)
    advertised = advertised[:2] + struct.pack(">H", checksum(pseudo + advertised)) + advertised[4:]
    head = struct.pack(">IHBB", 6 << 28, len(advertised), socket.IPPROTO_ICMPV6, 255)
    link = bytes.fromhex("333300000001") + hardware + struct.pack(">H", ETH_P_IPV6)
    return link + head + address + everybody + advertised


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def is_promoted(interface: str) -> bool:
    """Whether addresses of the same network stay when the first of them goes."""
    return any(
        Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries").read_text().strip() == "1"
        for name in ("all", interface)
    )
