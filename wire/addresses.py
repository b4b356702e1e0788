"""HOST:PORT as text, and what an address reaches."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any

WILDCARDS = ("0.0.0.0", "::", "")


def split_address(text: str) -> tuple[str, int]:
    """HOST and PORT of `HOST:PORT`, `[IPV6]:PORT`, `:PORT` or `PORT` alone (the host is then empty).

    ValueError with a sentence's part that says what is wrong.
    """
    if text.isascii() and text.isdecimal():
        host, port_text = "", text
    else:
        host, colon, port_text = text.rpartition(":")
        if not colon:
            raise ValueError(f"{text!r} names no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{host!r} in brackets is not an IPv6 address") from None
    elif ":" in host:
        raise ValueError(f"the IPv6 address {host!r} needs brackets: [{host}]:PORT")
    elif not re.fullmatch(r"[A-Za-z0-9._-]*", host):
        raise ValueError(f"{host!r} is not a host name or address")
    if not (port_text.isascii() and port_text.isdecimal()) or len(port_text) > 5 or int(port_text) > 65535:
        raise ValueError(f"{port_text!r} is not a port (0 to 65535)")
    return host, int(port_text)


def show_address(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Does every address of `host` stay on this machine? False for a name that cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def address_to_print(host: str) -> str:
    """The address that others can use for a listener bound to `host`: itself, unless it is a wildcard.

    For a wildcard it is the address from which packets to the outside would leave; connecting a UDP
    socket asks the routing table and sends nothing. Without a route it is the host's name.
    """
    if host not in WILDCARDS:
        return host
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if host == "::" else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True)
class Address:
    """Where a side listens: the socket's family and address."""

    family: int
    where: Any

    def __str__(self) -> str:
        return show_address(str(self.where[0]), int(self.where[1]))
