"""What of connections is compared in the freeze, before they are repaired."""

from __future__ import annotations

import os
import socket

import pytest

from live_migration.kernel.packet_rules import Place, overlap
from live_migration.process.descriptors.kind import SnapshotContext
from live_migration.process.descriptors.socket_options import read_options
from live_migration.process.descriptors.tcp_connection import repaired_options
from live_migration.source_server.connections import are_others

TCP_USER_TIMEOUT = 18


@pytest.mark.parametrize(
    ("level", "option", "value"),
    [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 900),
    ],
)
def test_options_that_repair_changes_itself_are_compared(level: int, option: int, value: int) -> None:
    context = SnapshotContext(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        before = read_options(one, context)
        assert not are_others(repaired_options(one.fileno()), before)
        one.setsockopt(level, option, value)
        assert are_others(repaired_options(one.fileno()), before)
        assert not are_others(repaired_options(one.fileno()), read_options(one, context))
        one.setsockopt(level, option, 0)
        assert not are_others(repaired_options(one.fileno()), before)


def test_which_places_overlap() -> None:
    four, every, wild = Place(4, b"\x0a\0\0\1", 80), Place(4, None, 80), Place(0, None, 80)
    six = Place(6, bytes(15) + b"\1", 80)
    assert overlap(four, every)
    assert overlap(four, wild)
    assert overlap(six, wild)
    assert not overlap(six, every)
    assert not overlap(four, Place(4, b"\x0a\0\0\2", 80))
    assert not overlap(four, Place(4, None, 81))
