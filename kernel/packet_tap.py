"""Packets that are held back (packet_rules.py), for whoever wants to bring them where they belong.

A packet socket sees what arrives before any rule does. It is a help and nothing more: whatever is missed is sent again
by its sender.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from live_migration.kernel.addresses import ETH_P_IP, ETH_P_IPV6
from live_migration.kernel.socket_in import receive_everywhere, socket_in

SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
ROOM = 8 << 20
LARGEST = 1 << 16
MOST_PORTS = 200
# linux/bpf_common.h: load a byte or half a word at an offset, or beyond the header; jump; return.
LOAD_BYTE, LOAD_HALF, LOAD_HALF_BEYOND, LOAD_HEADER_LENGTH = 0x30, 0x28, 0x48, 0xB1
JUMP_EQUAL, JUMP_SET, RETURN = 0x15, 0x45, 0x06
INSTRUCTION = struct.Struct("=HBBI")
# linux/filter.h, linux/if_packet.h: where a filter finds for whom a packet is, and that it is for this host.
PACKET_TYPE, PACKET_HOST = 0xFFFFF004, 0


@dataclass
class PacketTap:
    """The sockets, of IPv4 and IPv6; none: nothing is seen."""

    pid: int | None
    sockets: tuple[socket.socket, ...] = ()

    def start(self, ports: Collection[int]) -> None:
        """From the return on, keep TCP packets that arrive for these ports. Raises OSError."""
        self.stop()
        if not 0 < len(ports) <= MOST_PORTS:
            return
        found = []
        for protocol in (ETH_P_IP, ETH_P_IPV6):
            one = socket_in(self.pid, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            found.append(one)
            self.sockets = tuple(found)
            one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
            attach(one, program_for(protocol, sorted(ports)))
            receive_everywhere(one, protocol)

    def take(self, most: int) -> list[bytes]:
        """What has come, oldest first, without what is beyond so many bytes: that is thrown away."""
        found, size = [], 0
        for one in self.sockets:
            with contextlib.suppress(OSError):
                while packet := one.recv(LARGEST, socket.MSG_DONTWAIT):
                    if size + len(packet) <= most:
                        found.append(packet)
                        size += len(packet)
        return found

    def stop(self) -> None:
        """Keep nothing any more."""
        for one in self.sockets:
            one.close()
        self.sockets = ()


def attach(one: socket.socket, program: bytes) -> None:
    """Give a socket a filter. Raises OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // INSTRUCTION.size
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", count, ctypes.addressof(code)))


def program_for(protocol: int, ports: list[int]) -> bytes:
    """A filter for TCP to these ports: whole packets of IPv4, or packets of IPv6 without further headers. What a bridge
    or a switch sends to everybody, while the other host already has the address, is that host's to answer."""
    head = [(LOAD_BYTE, PACKET_TYPE), (JUMP_EQUAL, PACKET_HOST)]
    if protocol == ETH_P_IP:
        # No later fragments; the header's length is in X.
        head += [(LOAD_BYTE, 9), (JUMP_EQUAL, socket.IPPROTO_TCP), (LOAD_HALF, 6), (JUMP_SET, 0x1FFF)]
        head += [(LOAD_HEADER_LENGTH, 0), (LOAD_HALF_BEYOND, 2)]
    else:
        head += [(LOAD_BYTE, 6), (JUMP_EQUAL, socket.IPPROTO_TCP), (LOAD_HALF, 42)]
    length = len(head) + len(ports)
    found = []
    for at, (code, value) in enumerate(head):
        refuse = length - at - 1
        where = {JUMP_EQUAL: (0, refuse), JUMP_SET: (refuse, 0)}.get(code, (0, 0))
        found.append(INSTRUCTION.pack(code, *where, value))
    for at, port in enumerate(ports, len(head)):
        found.append(INSTRUCTION.pack(JUMP_EQUAL, length - at, 0, port))
    return b"".join([*found, INSTRUCTION.pack(RETURN, 0, 0, 0), INSTRUCTION.pack(RETURN, 0, 0, LARGEST)])
