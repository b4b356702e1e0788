"""The sentences of errors, and the table of exit codes."""

from __future__ import annotations

from pathlib import Path

from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import LocalError, ProtocolError, Refused, RemoteError
from live_migration.wire.exit_codes import ExitCode, as_markdown

ROOT = Path(__file__).resolve().parents[2]


def test_a_local_error_is_one_sentence() -> None:
    error = LocalError(
        step="freezing", object="process 12", cause="it did not stop within 5 s", remedy="raise --max-freeze"
    )
    assert str(error) == "freezing: process 12: it did not stop within 5 s; raise --max-freeze"
    assert error.code == ExitCode.SYSTEM


def test_the_other_kinds_say_whose_fault_it_is() -> None:
    remote = RemoteError(step="staging", object="port 80", cause="it is taken", remedy="free it")
    assert str(remote) == "the other side failed, staging: port 80: it is taken; free it"
    assert remote.code == ExitCode.PEER_FAILED
    protocol = ProtocolError(step="staging", object="a frame", cause="too long", remedy="update it")
    assert str(protocol) == "the peer is at fault, staging: a frame: too long; update it"
    assert protocol.code == ExitCode.PROTOCOL


def test_a_refusal_lists_every_blocker() -> None:
    refused = Refused(
        [
            Blocker("descriptor 7", "a terminal", "redirect it"),
            Blocker("thread 3", "has a seccomp filter", "run it without"),
        ],
        object="process 12",
    )
    assert str(refused) == (
        "the preflight: process 12: 2 blockers in the way; remove each as it says\n"
        "  descriptor 7: a terminal; redirect it\n"
        "  thread 3: has a seccomp filter; run it without"
    )
    assert refused.code == ExitCode.REFUSED


def test_the_documented_table_is_the_one_in_use() -> None:
    assert (ROOT / "docs/exit-codes.md").read_text() == as_markdown()
