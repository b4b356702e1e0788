"""Established TCP connections that move with the process, and the addresses that it takes along.

Before the freeze everything is checked, and rules are ready that hold nothing back yet. In the freeze the packets of
all connections and listeners are held back, and only then each connection is read, so that nothing is acknowledged here
that does not move. What is to be done after COMMIT, or to let everything go on, is written down before: lm-serve or its
custodian does it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel.addresses import SECONDARY, HostAddress, host_addresses, is_promoted, plain, removal
from live_migration.kernel.injection.syscall_numbers import SYS_sendto
from live_migration.kernel.packet_rules import overlap, place_of
from live_migration.kernel.pidfd import fetch_descriptor, open_pidfd
from live_migration.process.descriptors.held import ROUTES, RULES, Held, Row
from live_migration.process.descriptors.holding import hold_descriptors
from live_migration.process.descriptors.open_file import OpenFile
from live_migration.process.descriptors.socket_options import made_with
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.descriptors.tcp_connection import (
    CLOSING,
    FIN_WAIT1,
    KEPT,
    LAST_ACK,
    SYN_RECV,
    ended_at_source,
    extra_blockers,
    goes_on,
    read_connection,
    repaired_options,
)
from live_migration.process.descriptors.tcp_packets import MOST_BYTES as MOST_PACKET_BYTES
from live_migration.process.descriptors.tcp_packets import MOST_PACKETS, admitted
from live_migration.process.descriptors.tcp_sockets import LISTEN, tcp_sockets
from live_migration.process.descriptors.tcp_traffic import (
    connections_of,
    ends_of,
    listeners_of,
    places_of,
    rules_blocker,
    sockets_of,
    with_connections,
)
from live_migration.source_server.custody import Custody
from live_migration.source_server.network import Network
from live_migration.source_server.snapshot import FrozenSource
from live_migration.wire import messages
from live_migration.wire.blockers import Blocker
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import MigrationError, Refused

STEP = "the frozen process"
FORWARD_SECONDS = 0.2
MOST_BYTES = 48 << 20
"""All connections together: a message has no room for more."""


@dataclass(frozen=True)
class Keeping:
    """What moves besides the process: addresses, and if `connections`, those too."""

    network: Network
    addresses: tuple[HostAddress, ...]
    connections: bool


def listed_addresses(pid: int, wanted: Sequence[str]) -> tuple[list[HostAddress], list[Blocker]]:
    """The addresses that the destination takes, as the process's network namespace has them, and blockers. Raises
    OSError."""
    here = {one.address: one for one in host_addresses(pid)}
    found, blockers = [], []
    for address in wanted:
        one = here.get(address)
        if one is None:
            cause = "the source does not have it, in the network namespace of the process"
            blockers.append(Blocker(f"address {address}", cause, "leave out that --take-address"))
            continue
        found.append(one)
        if followers := _followers(one, list(here.values())):
            names = ", ".join(followers)
            cause = f"{names} would go with it (secondary addresses of the same network)"
            remedy = "set net.ipv4.conf.INTERFACE.promote_secondaries=1 at the source, or take them along too"
            if not set(followers) <= set(wanted):
                blockers.append(Blocker(f"address {address}", cause, remedy))
    return found, blockers


def _followers(one: HostAddress, here: Sequence[HostAddress]) -> list[str]:
    """The addresses that the kernel takes away with this one."""
    if one.flags & SECONDARY or ":" in one.address or is_promoted(socket.if_indextoname(one.interface)):
        return []
    return [
        each.address
        for each in here
        if each.flags & SECONDARY and each.interface == one.interface and each.network == one.network
    ]


def used_blockers(
    keeping: Keeping, pid: int, table: DescriptorTable, own: Collection[int]
) -> list[Blocker]:
    """Who else uses an address that goes: other processes' sockets, or this migration, whose sockets are `own`. Raises
    OSError."""
    if not keeping.addresses:
        return []
    taken = {one.address for one in keeping.addresses}
    blockers = []
    for address in sorted({_local_address(number) for number in own} & taken):
        cause, remedy = "the migration itself uses it", "listen at another address: lm-serve --listen"
        blockers.append(Blocker(f"address {address}", cause, remedy))
    known = {one.object.inode for one in sockets_of(table)} | {os.fstat(number).st_ino for number in own}
    found = _strange_sockets(keeping, pid, taken, known)
    if found and not table.frozen:
        # A running process makes connections and ends them while the list is read.
        again = _strange_sockets(keeping, pid, taken, known)
        found = {inode: what for inode, what in found.items() if inode in again}
    for inode, (address, what) in found.items():
        cause = f"another process uses it ({what}, socket {inode})"
        blockers.append(Blocker(f"address {address}", cause, "end that process, or let it use another address"))
    return blockers


def shared_port_blockers(keeping: Keeping, pid: int, table: DescriptorTable) -> list[Blocker]:
    """Other sockets that listen where the process does (SO_REUSEPORT, IPV6_V6ONLY): what begins a connection would be
    held back from them as well. Raises OSError."""
    places = places_of(table)
    if not places:
        return []
    known = {one.object.inode for one in sockets_of(table)}
    others = [
        one
        for one in tcp_sockets(keeping.network.diagnosis, 1 << LISTEN)
        if one.inode not in known and any(overlap(place_of(one.address, one.port), place) for place in places)
    ]
    # A running process begins to listen while the list is read.
    own = _inodes_of(pid) if others else set()
    return [
        Blocker(
            f"port {one.port}",
            f"another process listens there too (socket {one.inode}), and would get no connections during the move",
            "end that process first, or use --tcp close",
        )
        for one in others
        if one.inode not in own
    ]


def _strange_sockets(
    keeping: Keeping, pid: int, taken: Collection[str], known: set[int]
) -> dict[int, tuple[str, str]]:
    """The sockets with one of those addresses that neither are known nor process `pid` has: address and name, by inode.
    """
    found = {
        one.inode: (plain(one.address), f"TCP port {one.port}")
        for one in tcp_sockets(keeping.network.diagnosis)
        if one.inode and one.inode not in known and plain(one.address) in taken
    }
    for protocol in ("udp", "udplite", "raw"):
        for address, port, inode in _datagram_sockets(pid, protocol):
            if address in taken and inode not in known:
                found[inode] = (address, f"{protocol} port {port}")
    own = _inodes_of(pid) if found else set()
    return {inode: what for inode, what in found.items() if inode not in own}


def _inodes_of(pid: int) -> set[int]:
    """The sockets that a process has now."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            if link.startswith("socket:["):
                found.add(int(link[8:-1]))
    return found


def _local_address(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as one:
        name = one.getsockname()
    return plain(str(name[0])) if isinstance(name, tuple) else ""


def closing_blockers(keeping: Keeping) -> list[Blocker]:
    """Connections from an address that goes, which their process has closed and which still have something to send.
    Raises OSError."""
    taken = {one.address for one in keeping.addresses}
    states = 1 << FIN_WAIT1 | 1 << LAST_ACK | 1 << CLOSING
    return [
        Blocker(
            f"address {plain(one.address)}",
            f"a connection to {one.peer}:{one.peer_port} that was closed still has something to send",
            "try again when it has ended",
        )
        for one in (tcp_sockets(keeping.network.diagnosis, states) if taken else ())
        if one.inode == 0 and plain(one.address) in taken
    ]


def _datagram_sockets(pid: int, protocol: str) -> Iterator[tuple[str, int, int]]:
    """Address, port and inode of the sockets that /proc/PID/net tells of."""
    for name, family in ((protocol, socket.AF_INET), (f"{protocol}6", socket.AF_INET6)):
        path = Path(f"/proc/{pid}/net/{name}")
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            words = line.split()
            host, _, port = words[1].partition(":")
            # Each 32 bits are printed as a number of this machine.
            packed = b"".join(int(host[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(host), 8))
            yield plain(socket.inet_ntop(family, packed)), int(port, 16), int(words[9])


def signed_blockers(keeping: Keeping, pid: int, table: DescriptorTable) -> list[Blocker]:
    """Connections and listeners with keys that nobody can read. Raises OSError."""
    names = {one.object.inode: one.name for one in sockets_of(table)}
    found = {
        one.inode: "TCP_MD5SIG"
        for one in tcp_sockets(keeping.network.diagnosis)
        if one.signed and one.inode in names
    }
    found |= dict.fromkeys(_with_keys(pid, [*connections_of(table), *listeners_of(table)]), "TCP-AO")
    remedy = "let it end before the move, or use --tcp close"
    return [Blocker(names[inode], f"it has keys that cannot be read ({what})", remedy) for inode, what in found.items()]


def _with_keys(pid: int, those: Sequence[OpenFile[Any]]) -> list[int]:
    """The inodes of those with keys of TCP-AO. What the running process has closed meanwhile has none. Raises OSError.
    """
    found = []
    pidfd = open_pidfd(pid)
    try:
        for one in those:
            with contextlib.suppress(OSError):
                duplicate = fetch_descriptor(pidfd, one.number)
                if lib.lm_tcp_has_keys(duplicate):
                    found.append(one.object.inode)
                os.close(duplicate)
    finally:
        os.close(pidfd)
    return found


def prepare(keeping: Keeping, table: DescriptorTable) -> None:
    """Have rules ready that hold nothing back yet. Raises Refused."""
    try:
        keeping.network.prepare(ends_of(table) if keeping.connections else ())
    except OSError as error:
        raise Refused([rules_blocker(error)], object="the connections") from None


def hold(keeping: Keeping, source: FrozenSource, custody: Custody) -> list[Blocker]:
    """Hold the packets back, and write down what lets everything go on again; then the connections move: read them.

    Returns blockers that pass when the process runs. Raises OSError, Refused."""
    table, duplicates = source.descriptors.table, source.descriptors.duplicates
    those = connections_of(table) if keeping.connections else []
    options = {one.identity: repaired_options(duplicates[one.identity]) for one in those}
    # What repair changes by itself can be compared only before.
    if changed := [one.name for one in those if are_others(options[one.identity], one.object.options)]:
        return [Blocker(name, "its options changed at the moment of the freeze", "try again") for name in changed]
    held = [
        Held(one.number, one.object.inode, ended_at_source(), goes_on(*options[one.identity])) for one in those
    ]
    # Whoever finds this written down takes the rules away, also where nothing is touched yet.
    written = [*held, let_go(keeping), *_of_others(table, those), address_rows(keeping)]
    custody.prepare(source.threads.pid, written)
    custody.hold(())
    keeping.network.listen(admitted(table))
    keeping.network.rules.hold(ends_of(table) if keeping.connections else (), places_of(table))
    if found := passing(keeping, source, those):
        return found
    read = {one.identity: read_connection(duplicates[one.identity]) for one in those}
    if sum(len(one.received) + len(one.written) for one in read.values()) > MOST_BYTES:
        cause = f"they have more than {MOST_BYTES >> 20} MiB on their way"
        return [Blocker("the connections", cause, "try again when less is on the way")]
    late = [one for one in those if read[one.identity].state not in KEPT]
    if late:
        return [Blocker(one.name, "its connection has ended just now", "try again") for one in late]
    source.descriptors.table = with_connections(table, read)
    source.description = replace(source.description, table=source.descriptors.table)
    return []


def are_others(now: tuple[int, int, int, int], described: bytes) -> bool:
    """Whether a connection's options (`repaired_options`) are others than those that were described."""
    reused, _, keepalive, user_timeout = now
    return (reused, keepalive, user_timeout) != (
        made_with(described, socket.SOL_SOCKET, socket.SO_REUSEADDR),
        made_with(described, socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        made_with(described, socket.IPPROTO_TCP, lib.TCP_USER_TIMEOUT),
    )


def _of_others(table: DescriptorTable, those: Sequence[OpenFile[Any]]) -> list[Held]:
    """What is held of everything but the connections that move: those that do not are ended while the address is here.
    """
    moved = {one.object.inode for one in those}
    return [held for held in hold_descriptors(table) if held.inode not in moved]


def address_rows(keeping: Keeping) -> Held:
    """After COMMIT the addresses go."""
    # Secondary addresses before the one with which they would go.
    ordered = sorted(keeping.addresses, key=lambda one: not one.flags & SECONDARY)
    messages = [removal(one) for one in ordered]
    return Held(-1, 0, commit=tuple(Row(SYS_sendto, (ROUTES, one, len(one), 0, 0, 0)) for one in messages))


def let_go(keeping: Keeping) -> Held:
    """Nothing is held back any more."""
    message = keeping.network.rules.let_go()
    return Held(-1, 0, undo=(Row(SYS_sendto, (RULES, message, len(message), 0, 0, 0)),))


def passing(
    keeping: Keeping, source: FrozenSource, those: Sequence[OpenFile[Any]]
) -> list[Blocker]:
    """What does not move now, but when the process has run on for a while. Raises OSError."""
    duplicates, table = source.descriptors.duplicates, source.descriptors.table
    found = [
        blocker
        for one in those
        for blocker in (
            [Blocker(one.name, "its connection has ended just now", "try again")]
            if one.object.peer is None
            else extra_blockers(one.name, one.object.state, duplicates[one.identity])
        )
    ]
    found += [
        Blocker(one.name, "its connection has ended, and not everything of it was read", "try again when it was")
        for one in sockets_of(table)
        if one.object.ended == lib.LM_TCP_HAS_UNREAD
    ]
    return [*found, *queue_blockers(keeping, table, duplicates), *closing_blockers(keeping)]


def queue_blockers(keeping: Keeping, table: DescriptorTable, duplicates: dict[int, int]) -> list[Blocker]:
    """Connections that wait in a listener's queue, or are not complete: they have no descriptor. Raises OSError."""
    listeners = listeners_of(table)
    if not listeners:
        return []
    found = []
    state = ffi.new("struct lm_tcp_state *")
    for one in listeners:
        if lib.lm_tcp_state(duplicates[one.identity], state) == 0 and state.waiting:
            cause = f"{state.waiting} connections wait in its queue"
            found.append(Blocker(one.name, cause, "try again when the process has accepted them"))
    places = places_of(table)
    for half in tcp_sockets(keeping.network.diagnosis, 1 << SYN_RECV):
        own = place_of(half.address, half.port)
        if any(one.port == own.port and one.address in (None, own.address) for one in places):
            cause = f"a connection of {half.peer}:{half.peer_port} to port {half.port} is being made"
            found.append(Blocker("a listener", cause, "try again when it stands"))
    return found


def forward(network: Network, control: ControlChannel) -> None:
    """After COMMIT: send on what came here for the process. It is a help: no failure of it counts."""
    packets = network.tap.take(MOST_PACKET_BYTES)
    for first in range(0, len(packets), MOST_PACKETS):
        with contextlib.suppress(MigrationError):
            control.send(messages.Packets(packets=packets[first : first + MOST_PACKETS]), FORWARD_SECONDS)


def late_blockers(keeping: Keeping, source: FrozenSource) -> None:
    """Before COMMIT: what came in the instant in which the packets were beginning to be held back. Raises OSError,
    Refused."""
    found = queue_blockers(keeping, source.descriptors.table, source.descriptors.duplicates)
    if found:
        raise Refused(found, object=f"process {source.threads.pid}", step=STEP)
