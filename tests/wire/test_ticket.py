"""Tickets: their text, their file, and how the secret leaves the process list."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_migration.wire.addresses import is_loopback, split_address
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.ticket import (
    Ticket,
    blank_in_arguments,
    check_secret,
    make_ticket,
    parse_ticket,
    read_ticket,
    write_ticket_file,
)

ROOT = Path(__file__).resolve().parents[2]


def failure(text: str) -> str:
    with pytest.raises(LocalError) as caught:
        parse_ticket(text)
    assert caught.value.code == ExitCode.BAD_TICKET
    return str(caught.value)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 65535),
    st.sampled_from(["a.example", "10.0.0.1", "::1"]),
)
def test_text_and_back(secret: bytes, port: int, host: str) -> None:
    ticket = Ticket(host, port, secret)
    assert parse_ticket(str(ticket)) == ticket


def test_an_ipv6_address_stands_in_brackets() -> None:
    ticket = make_ticket("2001:db8::7", 5555)
    assert str(ticket).startswith("lm://[2001:db8::7]:5555/")
    assert len(ticket.secret) == 32
    assert repr(ticket) == "Ticket(host='2001:db8::7', port=5555)"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "it does not begin with lm://"),
        ("http://h:1/x", "it does not begin with lm://"),
        ("lm://h:1", "the part after the port is missing"),
        ("lm://h/x", "'h' names no port"),
        ("lm://:5/x", "it names no host"),
        ("lm://h:0/x", "port 0 is nowhere"),
        ("lm://h:65536/x", "'65536' is not a port (0 to 65535)"),
        ("lm://h:x/x", "'x' is not a port (0 to 65535)"),
        ("lm://::1:5/x", "the IPv6 address '::1' needs brackets: [::1]:PORT"),
        ("lm://[zz]:5/x", "'zz' in brackets is not an IPv6 address"),
        ("lm://h:5/a b", "its secret has characters that base64url does not have"),
        ("lm://h:5/abcd", "its secret has 4 characters where 43 are needed: it was cut or changed"),
    ],
)
def test_a_bad_ticket_says_what_is_wrong(text: str, cause: str) -> None:
    assert failure(text) == (
        f"reading the ticket: the ticket: {cause}; copy the whole line that the listening side printed"
    )


def test_an_error_never_shows_the_secret() -> None:
    secret = str(make_ticket("h", 5)).rpartition("/")[2]
    assert secret[:20] not in failure(f"lm://h:5/{secret[:-3]}")


@given(st.text(max_size=80))
def test_any_text_is_a_ticket_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(LocalError):
        parse_ticket("lm://" + text)


def test_the_file_is_private_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "ticket"
    ticket = make_ticket("h", 5)
    previous = os.umask(0)
    try:
        write_ticket_file(str(path), ticket)
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_ticket(f"@{path}") == ticket
    assert os.listdir(tmp_path) == ["ticket"]


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="No such file or directory"):
        write_ticket_file(str(tmp_path / "none" / "ticket"), make_ticket("h", 5))
    with pytest.raises(LocalError, match="cannot be read: No such file or directory"):
        read_ticket(f"@{tmp_path}/none")


def test_without_a_secret_only_over_loopback() -> None:
    check_secret(Ticket("127.0.0.1", 5, b""), insecure=True)
    check_secret(Ticket("::1", 5, b""), insecure=True)
    check_secret(Ticket("::1", 5, bytes(32)), insecure=True)
    check_secret(Ticket("192.0.2.1", 5, bytes(32)), insecure=False)
    for host, secret, insecure in (
        ("127.0.0.1", b"", False),
        ("192.0.2.1", b"", False),
        ("192.0.2.1", b"", True),
        ("192.0.2.1", bytes(32), True),
    ):
        with pytest.raises(LocalError, match=r"nothing (is|would be) encrypted") as caught:
            check_secret(Ticket(host, 5, secret), insecure=insecure)
        assert caught.value.code == ExitCode.USAGE


def test_addresses() -> None:
    assert split_address("5555") == ("", 5555)
    assert split_address(":5555") == ("", 5555)
    assert split_address("[::]:0") == ("::", 0)
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")


@pytest.mark.parametrize("form", ["{}", "--to={}"])
def test_the_secret_leaves_the_process_list(form: str) -> None:
    ticket = str(make_ticket("127.0.0.1", 5555))
    program = (
        "import sys\nfrom live_migration.wire.ticket import blank_in_arguments\n"
        f"print(blank_in_arguments({ticket!r}.replace('!', '')))\n"
        "print(open('/proc/self/cmdline').read().split('\\0')[-2])\nprint(sys.argv[1])"
    )
    program = program.replace(ticket, "!".join(ticket))
    run = subprocess.run(
        [sys.executable, "-c", program, form.format(ticket)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = form.format("lm://127.0.0.1:5555/" + "*" * 43)
    assert run.stdout.splitlines() == ["True", shown, form.format(ticket)]


def test_a_ticket_that_was_not_given_is_not_found() -> None:
    assert not blank_in_arguments("@/some/file")
    assert not blank_in_arguments("lm://127.0.0.1:5555/")
