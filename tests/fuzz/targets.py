"""What is fuzzed in Python: whatever takes in bytes of a peer or a stranger. A target takes bytes and raises nothing:
errors that its caller turns into a sentence are expected."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from live_migration.kernel.arch.arch import cpu
from live_migration.process import task_restore
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.member import Layout, Runs
from live_migration.process.memory.layout_change import layout_difference
from live_migration.process.memory.mappings import AddressSpace
from live_migration.process.migration import claim_of, out_of_reach, table_of, whole_table
from live_migration.process.rehearsal import rehearse_restoring
from live_migration.restorer.allowed import allowed_blockers
from live_migration.restorer.migrate import IMPOSSIBLE, only_member, take_final, unpack_migration
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.preflight import Peer, preflight
from live_migration.wire import handshake, messages
from live_migration.wire.errors import MigrationError
from live_migration.wire.host import HostFacts, snapshot_host
from live_migration.wire.keys import derive_keys
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.report import Round
from live_migration.wire.strategy import Parameters
from live_migration.wire.ticket import parse_ticket

OPTIONS = DescriptorOptions(stdio="null", allowed_paths=("/usr", "/lib", "/tmp"))
CORPUS = Path(__file__).resolve().parent / "corpus"


def ticket(data: bytes) -> None:
    """A ticket as a user types it."""
    try:
        found = parse_ticket(data.decode("utf-8", "surrogateescape"))
    except MigrationError:
        return
    assert parse_ticket(str(found)) == found


def opening(data: bytes) -> None:
    """The first bytes of a stranger, and what a stranger says within TLS."""
    keys, exported = derive_keys(bytes(32), handshake.Side.SOURCE, handshake.Role.CONTROL), bytes(32)
    own = handshake.Hello(handshake.Side.SOURCE, handshake.Role.CONTROL, 1, handshake.NO_SESSION)
    handshake.read_refusal(data)
    try:
        handshake.check_beginning(data)
        if len(data) >= handshake.KNOCK_BYTES:
            handshake.parse_knock(data[: handshake.KNOCK_BYTES], handshake.Form.TICKET)
    except MigrationError:
        pass
    for side in (
        handshake.Connecting(keys, exported, own),
        handshake.Listening(keys, exported, handshake.Side.DESTINATION, handshake.Role.CONTROL),
    ):
        left = data
        try:
            while (done := side.receive(left[: side.wanted()])) is None:
                left = left[min(len(left), side.wanted()) :]
        except MigrationError:
            continue
        assert done.hello.role == handshake.Role.CONTROL


def control(data: bytes) -> None:
    """A stream of control messages, or what is in one."""
    _read_stream(data)
    if data:
        _read_stream(messages.HEADER.pack(len(data), len(data), messages.PLAIN, bytes(3)) + data)


def _read_stream(data: bytes) -> None:
    reader = messages.FrameReader()
    try:
        while data:
            size = min(reader.wanted(), len(data))
            message = reader.receive(data[:size])
            data = data[size:]
            if isinstance(message, messages.Greeting):
                messages.parameters_of(message)
                cpu.lacking(message.host.cpu, message.host.cpu)
            elif isinstance(message, messages.Abort):
                assert str(messages.error_of(message)).isprintable()
            elif isinstance(message, messages.Blockers):
                str(messages.refusal_of(message))
            if message is not None:
                messages.encode(message)
    except MigrationError:
        pass


def payloads(data: bytes) -> None:
    """The payloads that are no descriptions."""
    for kind in (list[Layout], list[Round], dict[int, list[Runs]], list[int]):
        try:
            messages.unpack(msgspec.Raw(data), kind)
        except MigrationError:
            continue


@functools.lru_cache
def _host() -> HostFacts:
    return snapshot_host(cpu.describe(), "")


@functools.lru_cache
def _staged() -> bytes:
    """The first description of the corpus, to which a final one belongs."""
    return min((CORPUS / "description").iterdir()).read_bytes()


def description(data: bytes) -> None:
    """A description: read, checked, compared with this host, and made into what would run in the husk."""
    options = RestoreOptions(
        Meeting(), Parameters(), "auto", True, "null", "trust", (), "refuse", "trust", None, False, 0
    )
    try:
        migration = unpack_migration(msgspec.Raw(data))
        member = only_member(migration)
        claim_of(out_of_reach(migration))
        str(allowed_blockers(migration, [os.getuid() + 1], OPTIONS))
        descriptor_blockers(whole_table(migration), OPTIONS)
        table_of(migration, member)
        layout_difference(AddressSpace(mappings=[]), member.memory)
        assert len(member.memory.paged_on_demand) <= len(member.memory.mappings)
        assert len(member.memory.eager) <= len(member.memory.mappings)
        for one in preflight(migration, Peer(_host(), _host()), options, OPTIONS):
            assert str(one).isprintable()
        rehearse_restoring(member.task, task_restore.present_credentials(), True)
        take_final(unpack_migration(msgspec.Raw(_staged())), migration)
    except (MigrationError, OSError, *IMPOSSIBLE):
        # restorer/migrate.py turns them into a sentence (naming_failures).
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (ticket, opening, control, payloads, description)
}
