"""Holding packets back, by a table of nftables that is ours alone.

The table has the owner flag: only the socket that made it can change it, and it goes when the last holder of that
socket has ended, however that comes about. What it holds back is dropped in both directions, and never answered.
Connections are elements of two sets, so that a packet costs the same however many there are, and so that these can be
filled beforehand: only the rules that look into them hold anything back. Of a listener only what begins a connection is
held back.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from live_migration.kernel.netlink import (
    ACKNOWLEDGED,
    CREATE,
    NETFILTER,
    attribute,
    joined,
    message,
    nested,
    open_netlink,
    request,
)
from live_migration.kernel.socket_in import opened_if_possible

# linux/netfilter/nfnetlink.h, nf_tables.h
SUBSYSTEM, BATCH_BEGIN, BATCH_END = 10, 16, 17
NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENTS = 0, 2, 3, 6, 9, 12
OWNER_FLAG = 2
INET = 1
PREROUTING, INPUT, OUTPUT = 0, 1, 3
PRIORITY = -350
"""Before the tables of others: raw is at -300, connection tracking at -200."""
REGISTER = 8
NETWORK, TRANSPORT = 1, 2
PROTOCOL_FAMILY, LAYER_4 = 15, 16
ELEMENT = 1
MOST_ELEMENTS = 500
MOST_PLACES = 1 << 14
SO_SNDBUFFORCE, LARGEST_BATCH = 32, 16 << 20
FLAGS_OFFSET, FIN_SYN_RST_ACK, SYN = 13, 0x17, 0x02
SETS = {4: ("connections4", 16), 6: ("connections6", 40)}
INCOMING, BEGINNING, OUTGOING = "incoming", "beginning", "outgoing"


@dataclass(frozen=True)
class Place:
    """An address, None for every address of the `family` (4, 6; 0: both), and a port."""

    family: int
    address: bytes | None
    port: int


def overlap(one: Place, other: Place) -> bool:
    """Whether some packet is for both."""
    families = one.family == other.family or 0 in (one.family, other.family)
    addresses = one.address == other.address or None in (one.address, other.address)
    return one.port == other.port and families and addresses


@dataclass(frozen=True)
class Ends:
    """The ends of a connection: this host's and the peer's."""

    own: Place
    peer: Place


@functools.lru_cache(MOST_PLACES)
def place_of(address: str, port: int) -> Place:
    """An address of a socket as packets have it: one of IPv4 that is written as one of IPv6 is of IPv4.

    Kept, since in a freeze they are asked for that were asked for before."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_unspecified:
        return Place(4 if found.version == 4 else 0, None, port)
    return Place(found.version, found.packed, port)


@dataclass(frozen=True)
class PacketRules:
    """The socket to which the table belongs, the table's name, and the connections that it has: how its sets name them.
    """

    kernel: socket.socket
    name: str
    known: set[bytes] = field(default_factory=set)

    def prepare(self, connections: Iterable[Ends] = ()) -> None:
        """Make the table, in which nothing is held back yet, and which has these connections already; one that is there
        is made anew. Raises OSError."""
        self.known.clear()
        request(self.kernel, batch([*self._gone(), *self._table(), *self._elements(connections)]))

    def hold(self, connections: Iterable[Ends], listeners: Iterable[Place]) -> None:
        """Hold the packets of these back, from the return on. Raises OSError."""
        parts = [*self._elements(connections), *self._listener_rules(listeners)]
        if self.known:
            parts += self._connection_rules()
        if parts:
            request(self.kernel, batch(parts))

    def let_go(self) -> bytes:
        """The messages that take the table away."""
        return batch([self._change(DELETE_TABLE, 0, _name(1, self.name))], acknowledged=False)

    def _change(self, kind: int, flags: int, *parts: bytes) -> bytes:
        return message(SUBSYSTEM << 8 | kind, flags, struct.pack("=BBH", INET, 0, 0) + b"".join(parts))

    def _gone(self) -> list[bytes]:
        # That there is one to be deleted is made sure of first.
        named = (_name(1, self.name), _number(2, OWNER_FLAG))
        return [self._change(NEW_TABLE, CREATE, *named), self._change(DELETE_TABLE, 0, _name(1, self.name))]

    def _table(self) -> Iterator[bytes]:
        yield self._change(NEW_TABLE, CREATE, _name(1, self.name), _number(2, OWNER_FLAG))
        for number, (name, length) in SETS.items():
            described = (_name(2, name), _number(3, 0), _number(4, 0), _number(5, length), _number(10, number))
            yield self._change(NEW_SET, CREATE, _name(1, self.name), *described)
        for chain, hook in ((INCOMING, PREROUTING), (BEGINNING, INPUT), (OUTGOING, OUTPUT)):
            hooked = nested(4, _number(1, hook), attribute(2, struct.pack(">i", PRIORITY)))
            yield self._change(NEW_CHAIN, CREATE, _name(1, self.name), _name(3, chain), hooked, _name(7, "filter"))

    def _connection_rules(self) -> Iterator[bytes]:
        for chain in (INCOMING, OUTGOING):
            for family in SETS:
                yield self._rule(chain, _is_tcp(family), _in_set(family, outgoing=chain == OUTGOING))

    def _rule(self, chain: str, *expressions: Sequence[bytes]) -> bytes:
        every = [*(one for group in expressions for one in group), _drop()]
        return self._change(NEW_RULE, CREATE, _name(1, self.name), _name(2, chain), nested(4, *every))

    def _elements(self, connections: Iterable[Ends]) -> Iterator[bytes]:
        keys: dict[int, list[bytes]] = {4: [], 6: []}
        for one in connections:
            key = key_of(one)
            if key not in self.known:
                self.known.add(key)
                keys[one.own.family].append(key)
        for family, found in keys.items():
            for first in range(0, len(found), MOST_ELEMENTS):
                some = [nested(ELEMENT, nested(1, attribute(1, key))) for key in found[first : first + MOST_ELEMENTS]]
                where = (_name(1, self.name), _name(2, SETS[family][0]))
                yield self._change(NEW_ELEMENTS, CREATE, *where, nested(3, *some))

    def _listener_rules(self, listeners: Iterable[Place]) -> Iterator[bytes]:
        for one in listeners:
            # What is answered already goes on: such a connection can be found (sock_diag). What this host only passes
            # on to others may be for the same port, and is none of it.
            yield self._rule(BEGINNING, _is_tcp(one.family), _to(one), _begins())


def open_rules(name: str, pid: int | None = None) -> PacketRules:
    """Rules under this name, of which nothing is there yet, in the network namespace of process `pid`, or in this one.
    """
    kernel = opened_if_possible(lambda: open_netlink(NETFILTER, pid))
    with contextlib.suppress(OSError):
        # Thousands of connections are one change.
        kernel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, LARGEST_BATCH)
    return PacketRules(kernel, name)


def key_of(ends: Ends) -> bytes:
    """How a set names a connection: each part begins a register."""
    parts = (ends.own.address, struct.pack(">HH", ends.own.port, 0))
    peer = (ends.peer.address, struct.pack(">HH", ends.peer.port, 0))
    return b"".join(part or b"" for part in (*parts, *peer))


def batch(parts: Sequence[bytes], *, acknowledged: bool = True) -> bytes:
    """These changes as one: all of them or none."""
    frame = struct.pack(">BBH", 0, 0, SUBSYSTEM)
    changes = list(parts)
    if acknowledged:
        changes[-1] = _acknowledged(changes[-1])
    return joined([message(BATCH_BEGIN, 0, frame), *changes, message(BATCH_END, 0, frame)])


def _acknowledged(one: bytes) -> bytes:
    (flags,) = struct.unpack_from("=H", one, 6)
    return one[:6] + struct.pack("=H", flags | ACKNOWLEDGED) + one[8:]


def _name(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(ELEMENT, _name(1, name), nested(2, *parts))


def _load(layer: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    where = (_number(1, register), _number(2, layer), _number(3, offset), _number(4, length))
    return _expression("payload", *where)


def _equals(value: bytes) -> bytes:
    return _expression("cmp", _number(1, REGISTER), _number(2, 0), nested(3, attribute(1, value)))


def _is_tcp(family: int) -> list[bytes]:
    """Whether it is TCP over this family; 0: over either."""
    found = [_expression("meta", _number(1, REGISTER), _number(2, LAYER_4)), _equals(bytes([socket.IPPROTO_TCP]))]
    if family:
        number = socket.AF_INET if family == 4 else socket.AF_INET6
        found += [_expression("meta", _number(1, REGISTER), _number(2, PROTOCOL_FAMILY)), _equals(bytes([number]))]
    return found


def _address_offset(family: int, *, destination: bool) -> int:
    first, length = (12, 4) if family == 4 else (8, 16)
    return first + length if destination else first


def _in_set(family: int, *, outgoing: bool) -> list[bytes]:
    """Whether the set has the connection: its own end is where an incoming packet goes."""
    length = 4 if family == 4 else 16
    found, register = [], REGISTER
    for own in (True, False):
        destination = own is not outgoing
        found.append(_load(NETWORK, _address_offset(family, destination=destination), length, register))
        register += length // 4
        found.append(_load(TRANSPORT, 2 if destination else 0, 2, register))
        register += 1
    return [*found, _expression("lookup", _name(1, SETS[family][0]), _number(2, REGISTER))]


def _to(place: Place) -> list[bytes]:
    found = [_load(TRANSPORT, 2, 2), _equals(struct.pack(">H", place.port))]
    if place.address is not None:
        offset = _address_offset(place.family, destination=True)
        found += [_load(NETWORK, offset, len(place.address)), _equals(place.address)]
    return found


def _begins() -> list[bytes]:
    """Of FIN, SYN, RST and ACK it has SYN alone."""
    masked = (nested(4, attribute(1, bytes([FIN_SYN_RST_ACK]))), nested(5, attribute(1, b"\0")))
    return [
        _load(TRANSPORT, FLAGS_OFFSET, 1),
        _expression("bitwise", _number(1, REGISTER), _number(2, REGISTER), _number(3, 1), *masked),
        _equals(bytes([SYN])),
    ]


def _drop() -> bytes:
    return _expression("immediate", _number(1, 0), nested(2, nested(2, _number(1, 0))))
