"""The command lines of lm-serve and lm-restore: every option, its default, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import live_migration.cli.restore_options
import live_migration.cli.serve_options
from live_migration.cli.command_line import parse_descriptor, parse_rate, parse_seconds
from live_migration.restorer.options import RestoreOptions
from live_migration.source_server.options import ServeOptions
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.meeting_point import Certificates, Meeting
from live_migration.wire.strategy import Parameters
from live_migration.wire.taken import TakenAddress
from live_migration.wire.ticket import Ticket, make_ticket, write_ticket_file

ROOT = Path(__file__).resolve().parents[2]
TICKET = make_ticket("192.0.2.7", 5555)


def serve(*arguments: str, **environment: str) -> ServeOptions:
    return live_migration.cli.serve_options.parse_options(arguments, environment)


def restore(*arguments: str, **environment: str) -> RestoreOptions:
    return live_migration.cli.restore_options.parse_options(arguments, environment)


def refusal(command: str, *arguments: str, **environment: str) -> str:
    """The one sentence with which a command line is refused as such."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LM_")}
    command_line = [sys.executable, "-m", command, *arguments]
    run = subprocess.run(command_line, cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    assert run.returncode == ExitCode.USAGE
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    return run.stderr.rstrip("\n")


def test_the_defaults_of_lm_serve() -> None:
    assert serve("12") == ServeOptions(
        pid=12,
        meeting=Meeting(listen=("127.0.0.1", 0)),
        check=False,
        bandwidth_limit=None,
        compress="auto",
        max_freeze=5.0,
        exit_status=0,
        report=None,
        json=False,
        verbose=0,
    )


def test_the_defaults_of_lm_restore() -> None:
    assert restore(str(TICKET)) == RestoreOptions(
        meeting=Meeting(ticket=TICKET),
        parameters=Parameters(),
        pid="auto",
        detach=False,
        stdio="attach",
        files="strict",
        map_path=(),
        tcp="keep",
        cpu="strict",
        report=None,
        json=False,
        verbose=0,
    )


def test_every_option_of_lm_serve(tmp_path: Path) -> None:
    words = "12 --listen [::1]:5 --ticket-file t --bandwidth-limit 1.5M --compress 3 --max-freeze 500ms"
    options = serve(*words.split(), *f"--exit-status 3 --report {tmp_path}/r --json -vv".split())
    assert options.meeting == Meeting(listen=("::1", 5), ticket_file="t")
    assert (options.bandwidth_limit, options.compress, options.max_freeze) == (3 << 19, 3, 0.5)
    assert (options.exit_status, options.report) == (3, f"{tmp_path}/r")
    assert (options.json, options.verbose) == (True, 2)
    assert serve("12", "--to", str(TICKET)).meeting == Meeting(ticket=TICKET)
    assert serve("12", "--listen", ":5").meeting == Meeting(listen=("127.0.0.1", 5))
    assert serve("12", "--check").check


def test_every_option_of_lm_restore(tmp_path: Path) -> None:
    words = "--stop-and-copy --listen 0.0.0.0:0 --ticket-file t --pid namespace --detach --stdio null"
    more = f"--files trust --map-path /a=/b --map-path /c/=/d --tcp close --cpu trust --report {tmp_path}/r -v"
    taking = "--take-address 10.0.0.5/24@eth0 --take-address fd00::5/64@br-lan.7 --netns web"
    options = restore(*words.split(), *more.split(), *taking.split())
    assert options.take_address == (
        TakenAddress("10.0.0.5", 24, "eth0"),
        TakenAddress("fd00::5", 64, "br-lan.7"),
    )
    assert (options.netns, restore(str(TICKET)).netns) == ("web", "")
    assert options.parameters.strategy == "stop-and-copy"
    assert not options.parameters.resume_at_once
    assert options.meeting == Meeting(listen=("0.0.0.0", 0), ticket_file="t")
    assert (options.pid, options.detach, options.stdio, options.files) == ("namespace", True, "null", "trust")
    assert options.map_path == (("/a", "/b"), ("/c", "/d"))
    assert (options.tcp, options.cpu, options.verbose) == ("close", "trust", 1)
    assert restore("--post-copy", str(TICKET)).parameters.resume_at_once
    assert restore("--strategy", "stop-and-copy", str(TICKET)).parameters.strategy == "stop-and-copy"


def test_limits_of_rounds() -> None:
    words = "--pre-copy --max-rounds 7 --max-downtime 20 --round-timeout 3s --on-no-convergence abort"
    assert restore(*words.split(), "--bandwidth-limit", "2M", str(TICKET)).parameters == Parameters(
        strategy="pre-copy",
        rounds=7,
        resume_at_once=False,
        max_downtime_ms=20,
        round_timeout=3,
        no_convergence="abort",
        bandwidth_limit=2 << 20,
    )
    assert restore("--hybrid", "--max-downtime", "1.5s", str(TICKET)).parameters.max_downtime_ms == 1500
    given = restore("--strategy", "auto", str(TICKET)).parameters
    assert given == Parameters(strategy="auto", rounds=30, resume_at_once=False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--post-copy --max-rounds 3", "--max-rounds and --post-copy"),
        ("--stop-and-copy --max-downtime 3", "--max-downtime and --stop-and-copy"),
        ("--hybrid --on-no-convergence abort", "--on-no-convergence and --hybrid"),
    ],
)
def test_limits_of_rounds_that_there_are_none_of(words: str, sentence: str) -> None:
    with pytest.raises(LocalError, match=sentence) as error:
        restore(*words.split(), str(TICKET))
    assert error.value.code is ExitCode.USAGE


@pytest.mark.parametrize("option", ["--max-rounds", "--max-downtime", "--round-timeout", "--bandwidth-limit"])
def test_a_limit_of_nothing(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        restore("--pre-copy", option, "0", str(TICKET))
    assert error.value.code == ExitCode.USAGE
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "..", "a/b", "n" * 256])
def test_a_network_namespace_that_there_cannot_be(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        restore(f"--netns={name}", str(TICKET))
    assert error.value.code == ExitCode.USAGE
    assert "is no name of a network namespace" in capsys.readouterr().err


def test_a_network_namespace_that_there_is_not() -> None:
    assert "--netns none: there is no such" in refusal("live_migration.cli.restore", "--netns=none", str(TICKET))


def test_the_ticket_from_a_file(tmp_path: Path) -> None:
    write_ticket_file(f"{tmp_path}/ticket", TICKET)
    assert restore(f"@{tmp_path}/ticket").meeting.ticket == TICKET
    assert serve("12", "--to", f"@{tmp_path}/ticket").meeting.ticket == TICKET


def test_the_way_round_of_the_environment(tmp_path: Path) -> None:
    path = f"{tmp_path}/ticket"
    assert restore(LM_DEST_PORT="5555").meeting == Meeting(listen=("127.0.0.1", 5555))
    waiting = restore(LM_DEST_PORT="5555", LM_TICKET_FILE=path)
    assert waiting.meeting == Meeting(listen=("0.0.0.0", 5555), ticket_file=path)
    insecure = Meeting(listen=("127.0.0.1", 5555), with_secret=False)
    assert restore("--insecure", LM_DEST_PORT="5555").meeting == insecure
    assert serve("12", "--insecure", "--listen", ":5555").meeting == insecure
    write_ticket_file(path, TICKET)
    pushing = serve("12", LM_DEST_IP="192.0.2.9", LM_DEST_PORT="6666", LM_TICKET_FILE=path)
    assert pushing.meeting == Meeting(ticket=Ticket("192.0.2.9", 6666, TICKET.secret))
    assert serve("12", "--insecure", LM_DEST_PORT="5555").meeting.ticket == Ticket("127.0.0.1", 5555, b"")
    to_here = serve("12", "--insecure", LM_DEST_IP="::1", LM_DEST_PORT="5555").meeting
    assert to_here == Meeting(ticket=Ticket("::1", 5555, b""), with_secret=False)
    assert serve("12", LM_TICKET_FILE=path).meeting.ticket_file == path
    assert serve("12", "--check", LM_DEST_PORT="5555").meeting.ticket is None


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["12"], {"LM_DEST_IP": "192.0.2.9", "LM_DEST_PORT": "1"}),
        (["12", "--to", "lm://192.0.2.9:1/"], {}),
    ],
)
def test_without_a_secret_beyond_this_machine(arguments: list[str], environment: dict[str, str]) -> None:
    for words in ([], ["--insecure"]):
        with pytest.raises(LocalError, match=r"192\.0\.2\.9:1: without a secret nothing is encrypted"):
            serve(*arguments, *words, **environment)


def test_insecure_beyond_this_machine_is_refused(tmp_path: Path) -> None:
    for words in (["--listen", "0.0.0.0:1"], [str(TICKET)]):
        with pytest.raises(LocalError, match=r"nothing (is|would be) encrypted"):
            restore("--insecure", *words)
    with pytest.raises(LocalError, match="nothing is encrypted"):
        serve("12", "--insecure", "--listen", "0.0.0.0:1")


def test_certificates_are_given_all_or_none() -> None:
    files = ["--tls-cert", "/c", "--tls-key", "/k", "--tls-ca", "/a"]
    certificates = Certificates("/c", "/k", "/a")
    assert restore(str(TICKET), *files).meeting.certificates == certificates
    assert serve("12", *files).meeting.certificates == certificates
    assert serve("12", "--to", str(TICKET), *files).meeting.certificates == certificates
    with pytest.raises(LocalError, match="one of them is missing"):
        serve("12", *files[2:])
    with pytest.raises(LocalError, match="one asks for TLS"):
        serve("12", "--insecure", *files)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("0", "argument PID: '0' is not a process id (1 to 4194304)"),
        ("-5", "argument PID: '-5' is not a process id (1 to 4194304)"),
        ("12 --max-freeze 0", "argument --max-freeze: a limit of 0 leaves no time at all; give a longer one"),
        ("12 --max-freeze x", "argument --max-freeze: 'x' is not a time such as 5, 0.5 or 500ms"),
        ("12 --bandwidth-limit 0", "argument --bandwidth-limit: a rate of 0 would never move anything; "
         "leave the option out for no limit"),
        ("12 --bandwidth-limit -1", "argument --bandwidth-limit: '-1' is not a rate such as 800K, 50M or 1.5G "
         "(bytes per second)"),
        ("12 --compress 20", "argument --compress: '20' is not auto, none or a level from 1 to 19"),
        ("12 --exit-status 256", "argument --exit-status: '256' is not an exit status (0 to 255)"),
        ("12 --listen host", "argument --listen: 'host' names no port"),
        ("12 --listen ::1:5", "argument --listen: the IPv6 address '::1' needs brackets: [::1]:PORT"),
        ("12 --json-fd 900", "argument --json-fd: '900' is not an open descriptor"),
        ("12 --lis 127.0.0.1:5", "unrecognized arguments: --lis 127.0.0.1:5"),
    ],
)  # fmt: skip
def test_lm_serve_refuses(arguments: str, sentence: str) -> None:
    text = refusal("live_migration.cli.serve", *arguments.split())
    assert text == f"lm-serve: {sentence}; lm-serve --help lists the options"


def test_lm_serve_wants_one_process() -> None:
    for arguments in ("", "12 --reattach 13"):
        text = refusal("live_migration.cli.serve", *arguments.split())
        assert text == "lm-serve: the options: PID: there is none, or there are two; give PID, or --reattach PID"


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        ("serve", "12 --to lm://127.0.0.1:5/ --listen 127.0.0.1:5",
         "--to and --listen: one connects, the other waits; give one of them"),
        ("serve", "12 --to lm://127.0.0.1:5/ --ticket-file t",
         "--to and --ticket-file: the side that listens makes the ticket; leave one out"),
        ("serve", "12 --check --listen :5",
         "--check: it needs no other side; leave --to, --listen and --ticket-file out"),
        ("restore", "lm://127.0.0.1:5/ --listen :5",
         "TICKET and --listen: one connects, the other waits; give one of them"),
        ("restore", "lm://127.0.0.1:5/ --ticket-file t",
         "TICKET and --ticket-file: the side that listens makes the ticket; leave one out"),
        ("restore", "",
         "TICKET: there is none; give the one that lm-serve printed, or wait for lm-serve with --listen"),
    ],
)  # fmt: skip
def test_contradictions_are_one_sentence(command: str, arguments: str, sentence: str) -> None:
    assert refusal(f"live_migration.cli.{command}", *arguments.split()) == f"lm-{command}: the options: {sentence}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--post-copy --stop-and-copy x", "argument --stop-and-copy: not allowed with argument --post-copy"),
        ("--map-path a=b x", "argument --map-path: 'a=b' is not OLD=NEW with two absolute paths"),
        ("--pid other x", "argument --pid: invalid choice: 'other' (choose from 'auto', 'keep', 'namespace')"),
    ],
)
def test_lm_restore_refuses(arguments: str, sentence: str) -> None:
    text = refusal("live_migration.cli.restore", *arguments.split())
    assert text == f"lm-restore: {sentence}; lm-restore --help lists the options"


def test_the_environment_is_checked_too() -> None:
    assert refusal("live_migration.cli.serve", "12", LM_DEST_IP="h") == (
        "lm-serve: the options: LM_DEST_IP: it is set without LM_DEST_PORT; set both"
    )
    assert refusal("live_migration.cli.restore", LM_DEST_PORT="http") == (
        "lm-restore: the options: LM_DEST_IP and LM_DEST_PORT: 'http' is not a port (0 to 65535); "
        "give an address and a port"
    )


def test_a_bad_ticket_has_its_own_status() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "live_migration.cli.restore", "lm://h:5/abc", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == ExitCode.BAD_TICKET
    assert run.stdout.startswith('{"event":"failed","pid":0,"time":')
    assert run.stderr.startswith("lm-restore: reading the ticket: the ticket: its secret has 3 characters")


def test_a_descriptor_must_be_open_for_writing() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    assert serve("12", "--json-fd", str(write_end)).json_fd == write_end
    assert not os.get_inheritable(write_end)
    with pytest.raises(argparse.ArgumentTypeError, match="not open for writing"):
        parse_descriptor(str(read_end))
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(argparse.ArgumentTypeError, match="not an open descriptor"):
        parse_descriptor(str(write_end))


def test_errors_go_to_the_descriptor_alone() -> None:
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "live_migration.cli.restore", "lm://h:5/abc", f"--json-fd={write_end}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, pass_fds=[write_end])
    os.close(write_end)
    with open(read_end, encoding="utf-8") as told:
        events = [json.loads(line) for line in told]
    assert run.returncode == ExitCode.BAD_TICKET
    assert (run.stdout, run.stderr) == ("", "")
    assert [event["event"] for event in events] == ["failed", "note"]
    assert events[0]["code"] == ExitCode.BAD_TICKET
    assert events[1]["text"] == f"lm-restore: {events[0]['error']}"


def test_the_report_must_be_possible() -> None:
    with pytest.raises(LocalError, match="the folder /none does not exist or cannot be written to"):
        serve("12", "--report", "/none/report")


def test_help_needs_nothing_built() -> None:
    for command in ("live_migration.cli.serve", "live_migration.cli.restore"):
        run = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0
        assert run.stdout.startswith("usage: lm-")
        for module in ("live_migration._lm", "rich", "zstandard"):
            assert f" {module}\n" not in run.stderr


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1", 1), ("800K", 800 << 10), ("50M", 50 << 20), ("1.5G", 3 << 29), ("2g", 2 << 30), ("3MiB/s", 3 << 20)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "seconds"), [("5", 5.0), ("0.5", 0.5), ("5s", 5.0), ("500ms", 0.5)])
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
