"""The proof of one host: who may trace the process with the secret can answer, and nobody else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import pytest

from live_migration.wire.same_host import NAME, SECRET_BYTES, Challenge, Secret, answer, make_secret

SESSION = b"s" * 16
NOBODY = 65534


@pytest.fixture
def secret() -> Secret:
    return make_secret()


def test_an_answer_proves_its_session_and_its_claim(secret: Secret) -> None:
    with contextlib.closing(secret):
        proof = answer(secret.challenge(), SESSION, b"claim")
        assert secret.is_proven(SESSION, b"claim", proof)
        assert not secret.is_proven(SESSION, b"another claim", proof)
        assert not secret.is_proven(b"t" * 16, b"claim", proof)
        assert not secret.is_proven(SESSION, b"claim", b"")
        assert secret.value not in proof
        other = make_secret()
        with contextlib.closing(other):
            assert not other.is_proven(SESSION, b"claim", proof)


def test_who_may_not_trace_us_cannot_answer(secret: Secret) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs another user")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(write_end, b"%d" % len(answer(secret.challenge(), SESSION, b"claim")))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 8) == b"0"
    os.close(read_end)
    os.close(write_end)
    secret.close()


def test_only_secrets_are_read(tmp_path: Path) -> None:
    """Who asks may name any descriptor of any process: what is behind it stays what it is, and is not told."""
    path = tmp_path / f"memfd:{NAME} (deleted)"
    path.write_bytes(bytes(SECRET_BYTES))
    read_end, write_end = os.pipe()
    os.write(write_end, bytes(SECRET_BYTES))
    short = os.memfd_create(NAME)
    os.write(short, b"short")
    others = [os.open(path, os.O_RDONLY), read_end, os.memfd_create("other"), short, os.open("/dev/zero", os.O_RDONLY)]
    for number in others:
        assert answer(Challenge(pid=os.getpid(), descriptor=number), SESSION, b"claim") == b""
    assert os.read(read_end, 64) == bytes(SECRET_BYTES)
    for number in [*others, write_end]:
        os.close(number)
    for challenge in (Challenge(pid=os.getpid(), descriptor=-1), Challenge(pid=0, descriptor=1 << 62)):
        assert answer(challenge, SESSION, b"claim") == b""


def test_a_challenge_travels(secret: Secret) -> None:
    with contextlib.closing(secret):
        told = msgspec.msgpack.encode(secret.challenge())
        assert msgspec.msgpack.decode(told, type=Challenge) == secret.challenge()
