"""`python -m tests.fuzz.make_corpus`: what lm-serve tells of a small process in a real move, as the corpus of
descriptions and messages. Needs root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

import live_migration.cli.restore
import live_migration.cli.serve
from live_migration.experiments.machines import adopt_orphans, wait_for
from live_migration.process.member import Layout, Runs
from live_migration.process.memory.mappings import AddressSpace, Mapping, MappingKind
from live_migration.process.migration import Migration
from live_migration.wire import handshake, messages
from live_migration.wire.keys import derive_keys
from tests.fuzz.targets import CORPUS
from tests.support import laws
from tests.support.started import end_everything
from tests.wire.test_messages import EVERY

LONGEST = 1 << 12


def keep(target: str, name: str, data: bytes) -> None:
    """One input, unless it is there already."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    if data not in {path.read_bytes() for path in folder.iterdir()}:
        (folder / name).write_bytes(data)


def serve(arguments: Sequence[str]) -> int:
    """lm-serve, which writes into the corpus what it describes."""
    pack, kept = messages.pack, set[bool]()

    def packed(value: object) -> msgspec.Raw:
        found = pack(value)
        if isinstance(value, Migration) and (live := not value.frozen) not in kept:
            kept.add(live)
            keep("description", "01-live" if live else "02-frozen", bytes(found))
        return found

    messages.pack = packed
    return live_migration.cli.serve.main(arguments)


def make_words() -> None:
    """Everything else, one of each kind."""
    for message in EVERY:
        if len(body := msgspec.msgpack.encode(message)) < LONGEST:
            keep("control", type(message).__name__.lower(), body)
    frames = [messages.encode(message) for message in EVERY]
    keep("control", "stream", b"".join(frame for frame in frames if len(frame) < LONGEST))
    keep("control", "compressed", messages.encode(messages.Final(payload=messages.pack([1] * 900)), compress=True))
    mapping = Mapping(0x1000, 0x3000, MappingKind.ANONYMOUS, 3, 0, "00:00", 0, "", False, frozenset({"rd", "wr"}))
    layout = Layout(space=0, memory=AddressSpace(mappings=[mapping]), files=[])
    for name, value in (("layouts", [layout]), ("hot", {0: [Runs(4096, 2)]}), ("inodes", [1, 2]), ("none", None)):
        keep("payloads", name, bytes(messages.pack(value)))
    keys = derive_keys(bytes(32), handshake.Side.SOURCE, handshake.Role.CONTROL)
    keep("opening", "knock", handshake.encode_knock(handshake.Form.TICKET, keys))
    hello = handshake.Hello(handshake.Side.SOURCE, handshake.Role.CONTROL, 1, handshake.NO_SESSION)
    connecting = handshake.Connecting(keys, bytes(32), hello)
    listening = handshake.Listening(keys, bytes(32), handshake.Side.DESTINATION, handshake.Role.CONTROL)
    keep("opening", "hello", connecting.hello)
    listening.receive(connecting.hello)
    keep("opening", "welcome", listening.welcome(hello, bytes(range(16)), bytes(32)))
    for verdict in handshake.Verdict:
        keep("opening", verdict.name.lower(), handshake.encode_verdict(verdict))
    secret = "tqSgOxXlo-V5QutjJgDn8rcNrz86_diFigaX4Vkvu-c"
    for name, text in (("plain", f"lm://127.0.0.1:5555/{secret}"), ("six", "lm://[::1]:65535/"), ("cut", "lm://h:1/x")):
        keep("ticket", name, text.encode())


def main() -> None:
    """Write all of it."""
    make_words()
    adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = laws.start_subject(laws.build(folder), folder / "subject", warm=16)
        ticket = folder / "ticket"
        serving = laws.fork_command(serve, [str(subject.pid), "--ticket-file", str(ticket)], folder / "serve.txt")
        wait_for("the ticket", lambda: ticket.exists() or None, 60)
        words = [f"@{ticket}", "--hybrid", "--pid", "namespace", "--detach", "--stdio", "null"]
        restoring = laws.fork_command(live_migration.cli.restore.main, words, folder / "restore.txt")
        print([os.waitpid(pid, 0)[1] for pid in (restoring, serving)], (folder / "serve.txt").read_text())
        end_everything()


if __name__ == "__main__":
    main()
