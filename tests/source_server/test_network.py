"""Keeping packets is a help: where it is not possible, that is told."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from live_migration.kernel import packet_tap
from live_migration.kernel.packet_rules import place_of
from live_migration.process.descriptors.tcp_packets import Admitted
from live_migration.source_server.network import open_network


def test_why_no_packets_are_kept_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(packet_tap, "socket_in", forbidden)
    with contextlib.closing(open_network(os.getpid())) as network:
        network.listen(Admitted(listeners=(place_of("192.0.2.5", 80),)))
        assert network.deaf == "Operation not permitted"
        assert network.tap.sockets == ()
        network.listen(Admitted())
        assert network.deaf == ""
