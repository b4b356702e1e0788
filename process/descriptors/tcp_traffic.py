"""What of a table of descriptors is TCP: the connections that move, and the listeners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from live_migration.kernel.packet_rules import Ends, Place, place_of
from live_migration.process.descriptors.inet_sockets import TCP_LISTEN, InetSocket
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.registry import AnyObject
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.descriptors.tcp_connection import TcpConnection
from live_migration.wire.blockers import Blocker


def sockets_of(table: DescriptorTable) -> list[OpenFile[InetSocket]]:
    """The open files that are sockets of IP."""
    return [cast("OpenFile[InetSocket]", one) for one in table.open_files if isinstance(one.object, InetSocket)]


def connections_of(table: DescriptorTable) -> list[OpenFile[InetSocket]]:
    """The open files that are connections."""
    return [one for one in sockets_of(table) if one.object.is_established]


def listeners_of(table: DescriptorTable) -> list[OpenFile[InetSocket]]:
    """The open files that are listeners."""
    return [one for one in sockets_of(table) if one.object.state == TCP_LISTEN]


def ends_of(table: DescriptorTable) -> list[Ends]:
    """The ends of the connections."""
    return [
        Ends(_place(one.object.address), _place(one.object.peer))
        for one in connections_of(table)
        if one.object.peer is not None
    ]


def places_of(table: DescriptorTable) -> list[Place]:
    """Where the process listens."""
    return [_place(one.object.address) for one in listeners_of(table)]


def rules_blocker(error: OSError) -> Blocker:
    """Why packets cannot be held back."""
    cause = f"packets cannot be held back here while connections move (nftables: {error.strerror})"
    return Blocker("this host", cause, "run as root (CAP_NET_ADMIN) on a kernel with nf_tables, or use --tcp close")


def _place(address: list[str | int]) -> Place:
    return place_of(str(address[0]), int(address[1]))


def with_connections(table: DescriptorTable, read: Mapping[int, TcpConnection]) -> DescriptorTable:
    """The table with what was read of connections, by the open file's identity."""

    def described(one: OpenFile[AnyObject]) -> OpenFile[AnyObject]:
        connection = read.get(one.identity)
        if connection is None or not isinstance(one.object, InetSocket):
            return one
        moved = msgspec.structs.replace(one.object, state=connection.state, connection=connection)
        return msgspec.structs.replace(one, object=moved)

    return msgspec.structs.replace(table, open_files=[described(one) for one in table.open_files])
