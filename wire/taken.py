"""--take-address: an address that moves with the process."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TakenAddress:
    """An address that the destination gets: its network has `prefix` bits, and `interface` is the destination's."""

    address: str
    prefix: int
    interface: str


def parse_taken(text: str) -> TakenAddress:
    """ADDR/LEN@IFACE. Raises ValueError."""
    found = re.fullmatch(r"([0-9a-fA-F.:]+)/([0-9]{1,3})@([^\s/]{1,15})", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not ADDRESS/LENGTH@INTERFACE")
    address = ipaddress.ip_interface(f"{found[1]}/{found[2]}")
    if address.ip.is_unspecified or address.ip.is_multicast or address.ip.is_loopback or address.ip.is_link_local:
        raise ValueError(f"{address.ip} is no address that can move to another host")
    return TakenAddress(str(address.ip), address.network.prefixlen, found[3])
