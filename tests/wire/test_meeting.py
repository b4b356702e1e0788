"""How the two sides meet: wrong tickets and strangers, files that the destination lacks, and every way round."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import live_migration.cli.restore
import live_migration.wire.handshake
from live_migration.cli.rendering import make_events
from live_migration.experiments.machines import Command, Move, descendants, start, wait_for
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import VERSION
from live_migration.wire.meeting import meet
from live_migration.wire.meeting_point import Meeting
from live_migration.wire.ticket import make_ticket, read_ticket_file
from tests.support import laws
from tests.support.authority import Authority
from tests.support.commands import RESTORE, SERVE, refused, stop, waiting_serve

NONE = "/nonexistent"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laws")
    return laws.build(folder)


@pytest.fixture
def subject(program: Path, tmp_path: Path, orphans: None) -> Iterator[laws.Subject]:
    """A process that is not touched by anything that is asked of it in vain."""
    subject = laws.start_subject(program, tmp_path / "subject")
    yield subject
    laws.assert_untouched(subject)


def test_the_wrong_ticket(subject: laws.Subject) -> None:
    serving, ticket = waiting_serve(subject)
    wrong = make_ticket(ticket.host, ticket.port)
    refused(
        RESTORE,
        [wrong],
        ExitCode.BAD_TICKET,
        "the peer is at fault, the handshake: the peer: has another ticket; "
        "use the ticket that the listening side printed this time",
    )
    stop(serving)


def test_a_ticket_that_cannot_be_one() -> None:
    begin, copy = "reading the ticket: the ticket: ", "; copy the whole line that the listening side printed"
    for text, cause in (
        ("hello", "it does not begin with lm://"),
        ("lm://127.0.0.1:5", "the part after the port is missing"),
        ("lm://127.0.0.1:0/", "port 0 is nowhere"),
        ("lm://127.0.0.1:5/abc", "its secret has 3 characters where 43 are needed: it was cut or changed"),
    ):
        refused(RESTORE, [text], ExitCode.BAD_TICKET, begin + cause + copy)
    missing = f"{begin}{NONE} cannot be read: No such file or directory; "
    missing += "give the path of the file that the listening side wrote"
    refused(RESTORE, [f"@{NONE}"], ExitCode.BAD_TICKET, missing)


def of_another_version(arguments: Sequence[str]) -> int:
    live_migration.wire.handshake.VERSION += 1
    return live_migration.cli.restore.main(arguments)


def test_another_version_of_the_protocol(subject: laws.Subject) -> None:
    serving, ticket = waiting_serve(subject)
    pid = laws.fork_command(of_another_version, [str(ticket)], subject.folder / "out")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.PROTOCOL
    assert (subject.folder / "out").read_text().splitlines() == [
        f"lm-restore: the peer is at fault, the handshake: the peer: it speaks version {VERSION} of the protocol, "
        f"this side version {VERSION + 1}; install the same version on both"
    ]
    assert stop(serving).splitlines()[0] == (
        f"lm-serve: the peer is at fault, the handshake: the peer: it speaks version {VERSION + 1} of the protocol, "
        f"this side version {VERSION}; install the same version on both"
    )


def test_somebody_else_listens_there() -> None:
    """A peer that is no lm-serve at all, and one that says nothing is not waited for without end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        words = [sys.executable, "-m", RESTORE, str(make_ticket("127.0.0.1", server.getsockname()[1]))]
        restoring = subprocess.Popen(words, cwd=laws.ROOT, env=laws.environment(), stderr=-1, text=True)
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" * 4)
            said = restoring.communicate(timeout=60)[1]
    assert restoring.returncode == ExitCode.PROTOCOL
    assert said == (
        "lm-restore: the peer is at fault, the handshake: the peer: it does not speak this protocol; "
        "check that the port is the one of the ticket\n"
    )


def test_nobody_is_there(subject: laws.Subject) -> None:
    port = free_port()
    sentence = (
        f"connecting: 127.0.0.1:{port}: connection refused; "
        "check that the other side is waiting there and that no firewall is between"
    )
    ticket = str(make_ticket("127.0.0.1", port))
    refused(RESTORE, [ticket], ExitCode.NO_PEER, sentence)
    refused(SERVE, [subject.pid, "--to", ticket], ExitCode.NO_PEER, sentence)


def test_the_port_is_taken(subject: laws.Subject) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        sentence = f"listening: {address}: address already in use; give another port with --listen, or 0 for a free one"
        refused(SERVE, [subject.pid, "--listen", address], ExitCode.CANNOT_LISTEN, sentence)
        refused(RESTORE, ["--listen", address], ExitCode.CANNOT_LISTEN, sentence)
    sentence = "listening: 192.0.2.1:0: cannot assign requested address; give an address of this host with --listen"
    refused(SERVE, [subject.pid, "--listen", "192.0.2.1:0"], ExitCode.CANNOT_LISTEN, sentence)


def test_a_destination_without_the_files(program: Path, tmp_path: Path, orphans: None) -> None:
    """Everything that is missing there is named at once, on both sides, and the process was never stopped."""
    (tmp_path / "subject").mkdir()
    copy = tmp_path / "subject" / "program"
    shutil.copy(program, copy)
    subject = laws.start_subject(copy, tmp_path / "subject")
    move = laws.begin(subject, restore=["--map-path", f"{subject.folder}={NONE}"])
    assert move.restore.process.wait(60) == ExitCode.REFUSED, move.said()
    assert move.serve.process.wait(60) == ExitCode.REFUSED, move.said()
    serve, restore = ((subject.folder / f"{name}.err").read_text() for name in ("serve", "restore"))
    print(serve, restore)
    for sentence in (
        f"  executable {copy}: {NONE}/program is not here or may not be executed; "
        "install it here or point to it with --map-path OLD=NEW",
    ):
        assert sentence in serve.splitlines()
        assert sentence in restore.splitlines()
    for said in (serve, restore):
        assert sum(f"{NONE}/log" in line for line in said.splitlines()) == 1, said
    assert not [event for event in move.serve.events() if event["event"] in ("staged", "frozen")]
    laws.assert_untouched(subject)


def test_a_file_that_differs(program: Path, tmp_path: Path, orphans: None) -> None:
    subject = laws.start_subject(program, tmp_path / "subject")
    other = tmp_path / "other"
    other.mkdir()
    (other / "log").write_bytes(b"something else")
    move = laws.begin(subject, restore=["--map-path", f"{subject.folder}={other}"])
    assert move.restore.process.wait(60) == ExitCode.FILES, move.said()
    assert move.serve.process.wait(60) == ExitCode.FILES, move.said()
    said = (subject.folder / "restore.err").read_text()
    assert f"{other}/log" in said
    assert "14 bytes here" in said
    laws.assert_untouched(subject)
    assert (other / "log").read_bytes() == b"something else"


TO_NAMESPACE = ["--pid", "namespace", "--detach", "--stdio", "null"]


def begin(subject: laws.Subject, name: str, command: str, *words: object, **variables: str) -> Command:
    """Start a command, really, with an environment of its own; --json on both sides."""
    line = [sys.executable, "-m", command, *map(str, words), "--json"]
    return laws.start_command(subject, line, name, laws.environment() | variables, start)


def arrives(subject: laws.Subject, serving: Command, restoring: Command) -> None:
    """Both sides are content, and the process runs at the destination."""
    move = Move(serving, restoring)
    assert restoring.process.wait(60) == ExitCode.OK, move.said()
    assert serving.process.wait(60) == ExitCode.OK, move.said()
    assert subject.process.wait(60) == 0
    subject.await_progress()
    subject.signal(laws.moved_pid(move), signal.SIGUSR1, laws.Row.SIGNALS)
    subject.rows()


def free_port() -> int:
    """A port that nobody has, and that the kernel gives to nobody who asks for any: not to another test beside this."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture
def leaving(program: Path, tmp_path: Path, orphans: None) -> laws.Subject:
    """A process that will be moved."""
    return laws.start_subject(program, tmp_path / "subject")


def test_the_environment_alone(leaving: laws.Subject) -> None:
    """DMTCP's way round, without a secret: only over loopback, and with --insecure."""
    port = str(free_port())
    restoring = begin(leaving, "restore", RESTORE, *TO_NAMESPACE, "--insecure", LM_DEST_PORT=port)
    assert restoring.event("listening")["ticket"] == f"lm://127.0.0.1:{port}/"
    refused(
        SERVE,
        [leaving.pid],
        ExitCode.USAGE,
        f"reading the ticket: 127.0.0.1:{port}: without a secret nothing is encrypted, and whoever reaches the port "
        "could take the process's memory; use a ticket with a secret (LM_TICKET_FILE, or the text that the listening "
        "side printed), or say --insecure for an experiment on this machine",
        LM_DEST_IP="127.0.0.1",
        LM_DEST_PORT=port,
    )
    serving = begin(leaving, "serve", SERVE, leaving.pid, "--insecure", LM_DEST_IP="127.0.0.1", LM_DEST_PORT=port)
    arrives(leaving, serving, restoring)
    for name in ("serve", "restore"):
        assert "--insecure: nothing that travels is encrypted" in (leaving.folder / f"{name}.err").read_text()


def test_the_environment_with_a_ticket_file(leaving: laws.Subject) -> None:
    port, path = str(free_port()), leaving.folder / "ticket"
    variables = {"LM_DEST_IP": "127.0.0.1", "LM_DEST_PORT": port, "LM_TICKET_FILE": str(path)}
    restoring = begin(leaving, "restore", RESTORE, *TO_NAMESPACE, **variables)
    wait_for("the ticket", lambda: path.exists() or None)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith(f"lm://127.0.0.1:{port}/")
    assert len(path.read_text().strip().rpartition("/")[2]) == 43
    arrives(leaving, begin(leaving, "serve", SERVE, leaving.pid, **variables), restoring)


def test_with_certificates(leaving: laws.Subject, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    source, destination = (
        ["--tls-cert", made.certificate, "--tls-key", made.key, "--tls-ca", made.authority]
        for made in (authority.certify("source"), authority.certify("destination"))
    )
    serving = begin(leaving, "serve", SERVE, leaving.pid, *source)
    ticket = serving.event("listening")["ticket"]
    refused(
        RESTORE,
        [ticket],
        ExitCode.PROTOCOL,
        "the peer is at fault, the handshake: the peer: protects the connection in another way; "
        "give --insecure to both sides or to none, and certificates to both or to none",
    )
    arrives(leaving, serving, begin(leaving, "restore", RESTORE, ticket, *TO_NAMESPACE, *destination))


def test_beyond_this_machine_only_with_a_secret(subject: laws.Subject) -> None:
    for command, words, address, variables in (
        (SERVE, [subject.pid, "--insecure"], "192.0.2.1:5555", {"LM_DEST_IP": "192.0.2.1"}),
        (RESTORE, ["--insecure"], "0.0.0.0:5555", {"LM_DEST_IP": "0.0.0.0"}),
    ):
        sentence = (
            f"reading the ticket: {address}: without a secret nothing is encrypted, and whoever reaches the port could "
            "take the process's memory; use a ticket with a secret (LM_TICKET_FILE, or the text that the listening "
            "side printed)"
        )
        refused(command, words, ExitCode.USAGE, sentence, LM_DEST_PORT="5555", **variables)


@pytest.mark.parametrize("how", ["text", "@file", "-"])
def test_the_source_connects(how: str, leaving: laws.Subject) -> None:
    """lm-restore listens, lm-serve --to comes with its ticket, which is not to be seen in the process list."""
    path = leaving.folder / "ticket"
    restoring = begin(leaving, "restore", RESTORE, "--listen", "127.0.0.1:0", "--ticket-file", path, *TO_NAMESPACE)
    ticket = restoring.event("listening")["ticket"]
    assert path.read_text().strip() == ticket
    given = {"text": ticket, "@file": f"@{path}", "-": "-"}[how]
    words = [sys.executable, "-m", SERVE, str(leaving.pid), "--to", given, "--json"]
    if how == "-":
        words = ["sh", "-c", 'exec "$@" < "$0"', str(path), *words]
    serving = laws.start_command(leaving, words, "serve", laws.environment(), start)
    arrives(leaving, serving, restoring)


def test_a_ticket_in_the_arguments_is_blanked(subject: laws.Subject) -> None:
    serving, ticket = waiting_serve(subject)
    secret = str(ticket).rpartition("/")[2]
    words = [sys.executable, "-m", RESTORE, str(ticket), *TO_NAMESPACE]
    variables = laws.environment("destination-described:hang")
    restoring = laws.start_command(subject, words, "restore", variables, start)
    wait_for("the worker", lambda: "lm-pager" in laws.left_over(subject).values() or None)
    listed = [laws.command_line(pid) for pid in laws.left_over(subject)]
    assert any(b"live_migration.cli.restore" in line and b"*****" in line for line in listed)
    assert not any(secret.encode() in line for line in listed)
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == ExitCode.TERMINATED
    for pid in descendants(restoring.process.pid):
        # One may end with another one.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    restoring.process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_while_waiting(number: signal.Signals, subject: laws.Subject) -> None:
    status = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
    restoring = begin(subject, "restore", RESTORE, "--listen", "127.0.0.1:0")
    serving = begin(subject, "serve", SERVE, subject.pid)
    for command, last in ((restoring, "at the source"), (serving, "here, untouched")):
        command.event("listening")
        command.process.send_signal(number)
        assert command.process.wait(60) == status, command.said()
        name = {"restore": "lm-restore", "serve": "lm-serve"}[command.name]
        said = (subject.folder / f"{command.name}.err").read_text()
        assert said == f"{name}: waiting: {name}: {number.name} came; the process runs on {last}\n"


def test_the_process_ends_while_lm_serve_waits(leaving: laws.Subject) -> None:
    serving, _ = waiting_serve(leaving)
    leaving.process.kill()
    assert serving.process.wait(60) == ExitCode.NO_PROCESS
    assert (leaving.folder / "serve.err").read_text().splitlines()[-1] == (
        f"lm-serve: waiting for the destination: process {leaving.pid}: it has ended; nothing is left to move"
    )


def test_a_report_that_can_no_longer_be_written(leaving: laws.Subject) -> None:
    """It is said, and ends nothing: the process has moved."""
    reports = leaving.folder / "reports"
    reports.mkdir()
    words = ["--report", str(reports / "report")]
    move = laws.begin(leaving, fault="destination-complete:hang", serve=words)
    move.restore.event("resumed")
    reports.rmdir()
    for pid in descendants(move.restore.process.pid):
        if laws.process_name(pid) == "lm-pager":
            os.kill(pid, signal.SIGKILL)
    move.serve.event("stalled")
    said = leaving.folder / "serve.err"
    wait_for("the note", lambda: f"writing the report: {reports}/report: " in said.read_text() or None)
    assert move.serve.process.poll() is None
    assert laws.process_name(laws.moved_pid(move)) == "laws_program"


@pytest.mark.parametrize(("listens", "comes"), [("source", "destination"), ("destination", "source")])
def test_meeting(tmp_path: Path, capsys: pytest.CaptureFixture[str], listens: str, comes: str) -> None:
    path = f"{tmp_path}/ticket"
    events = make_events("x", json=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, Meeting(listen=("127.0.0.1", 0), ticket_file=path), listens, events, pid=12)
        deadline = time.monotonic() + 10
        while not os.path.exists(path):
            assert time.monotonic() < deadline
        ticket = read_ticket_file(path)
        here = meet(Meeting(ticket=ticket), comes, events)
        there = waiting.result(60)
    assert here
    assert there
    assert here.session == there.session
    here.close()
    there.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == str(ticket)
    other = {"source": "lm-restore --post-copy {}", "destination": "lm-serve PID --to {}"}[listens]
    assert second == "run on the other side: " + other.format(ticket)
