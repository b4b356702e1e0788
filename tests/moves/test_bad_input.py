"""Bad input: one sentence that names object, cause and remedy, a documented exit code, and the process untouched."""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  # which a user without rights cannot read later
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import live_migration.cli.restore
import live_migration.cli.serve
import live_migration.restorer.frontend
import live_migration.source_server.serve
from live_migration.experiments.machines import wait_for
from live_migration.restorer.room import Available, available, memory_blockers
from live_migration.wire.exit_codes import ExitCode
from tests.conftest import skip
from tests.support import laws
from tests.support.commands import RESTORE, SERVE, refused, run, run_anew, waiting_serve

NOBODY = 65534
NONE = "/nonexistent"
KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h
PTRACE_SEIZE = 0x4206
PR_SET_DUMPABLE = 4
# pause(2) by int 0x80, for ever.
CODE_32 = b"\xb8\x1d\x00\x00\x00\xcd\x80\xeb\xf7"


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


def test_no_room() -> None:
    assert memory_blockers(1 << 30, Available(1 << 30, [])) == []
    (found,) = memory_blockers(3 << 30, Available(1 << 29, []))
    assert str(found) == (
        "this host's memory: has room for 512 MiB, the process needs 3.0 GiB; end something here, add swap, or choose "
        "another host"
    )
    assert available().memory > 1 << 20


def blocker(pid: int, *sentences: str) -> None:
    """A process with just these blockers: lm-serve refuses it, and --check lists the same."""
    count = f"{len(sentences)} blockers" if len(sentences) > 1 else "1 blocker"
    heading = f"the preflight: process {pid}: {count} in the way; remove each as it says"
    refused(SERVE, [pid], ExitCode.REFUSED, heading, *(f"  {sentence}" for sentence in sentences))
    check = run(SERVE, pid, "--check")
    assert check.stdout.splitlines() == list(sentences)
    assert (check.returncode, check.stderr) == (ExitCode.REFUSED, "")


def test_no_such_process() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    sentence = (
        f"reading the process: process {process.pid}: there is no such process; "
        "name the id of a running process, as this PID namespace sees it"
    )
    refused(SERVE, [process.pid], ExitCode.NO_PROCESS, sentence)
    refused(SERVE, [process.pid, "--check"], ExitCode.NO_PROCESS, sentence)


def test_a_zombie() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    wait_for("the end", lambda: laws.process_name(pid) == "" or None)
    sentence = "it has ended and only waits for its parent to take note; choose a process that runs"
    blocker(pid, f"process {pid}: {sentence}")
    os.waitpid(pid, 0)


def test_a_kernel_thread() -> None:
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[6]) & KERNEL_THREAD:
            blocker(int(name), f"process {name}: it is a kernel thread; choose a process of a program")
            return
    skip("no kernel thread is visible in this PID namespace")


def test_lm_serve_s_own_ancestor() -> None:
    done = run(SERVE, os.getpid())
    assert done.returncode == ExitCode.REFUSED
    sentence = "lm-serve was started by it, or by a process of it; start lm-serve from another session"
    assert f"  process {os.getpid()}: {sentence}" in done.stderr.splitlines()
    check = run(SERVE, os.getpid(), "--check")
    assert f"process {os.getpid()}: {sentence}" in check.stdout.splitlines()
    assert check.returncode == ExitCode.REFUSED


def test_traced_by_another(subject: laws.Subject) -> None:
    words = (
        f"import ctypes; assert not ctypes.CDLL(None).ptrace({PTRACE_SEIZE}, {subject.pid}, 0, 0); print(flush=True)"
    )
    tracer = subprocess.Popen([sys.executable, "-c", f"{words}; input()"], stdin=-1, stdout=-1)
    assert tracer.stdin
    assert tracer.stdout
    assert tracer.stdout.readline()
    name = laws.process_name(tracer.pid)
    blocker(subject.pid, f"tracer: process {tracer.pid} ({name}) traces it; detach the debugger or tracer first")
    tracer.communicate(b"\n")


def test_a_32_bit_process(tmp_path: Path, orphans: None) -> None:
    base, header, program_header = 0x08048000, 52, 32
    entry = base + header + program_header
    size = header + program_header + len(CODE_32)
    elf = b"\x7fELF\1\1\1".ljust(16, b"\0")
    elf += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, header, 0, 0, header, program_header, 1, 0, 0, 0)
    elf += struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 4096)
    path = tmp_path / "program32"
    path.write_bytes(elf + CODE_32)
    path.chmod(0o755)
    null = subprocess.DEVNULL
    try:
        process = subprocess.Popen([path], stdin=null, stdout=null, stderr=null, start_new_session=True)
    except OSError as error:
        skip(f"this kernel runs no 32-bit programs: {error}")
    wait_for("the program", lambda: os.readlink(f"/proc/{process.pid}/exe") == str(path) or None)
    time.sleep(0.05)
    if process.poll() is not None:
        skip("this kernel runs no 32-bit programs")
    check = run(SERVE, process.pid, "--check")
    assert check.stdout.splitlines() == ["program: it is a 32-bit program; run its 64-bit build"]
    assert check.returncode == ExitCode.REFUSED
    done = run(SERVE, process.pid)
    assert "  program: it is a 32-bit program; run its 64-bit build" in done.stderr.splitlines()
    assert done.returncode == ExitCode.REFUSED
    assert process.poll() is None


def as_nobody(main: object, words: list[str], output: Path) -> tuple[int, str]:
    """Run a command as a user without rights; it is forked from this process, whose modules that user may not read."""

    def run_it(arguments: Sequence[str]) -> int:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # As after an exec: a process may look at itself.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        assert callable(main)
        return int(main(arguments))

    pid = laws.fork_command(run_it, words, output)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, output.read_text()


def test_no_permission(subject: laws.Subject) -> None:
    status, said = as_nobody(live_migration.cli.serve.main, [str(subject.pid)], subject.folder / "out")
    assert said.splitlines() == [
        f"lm-serve: reading the process: process {subject.pid}: it may not be traced (Permission denied); "
        "run lm-serve as root or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE"
    ]
    assert status == ExitCode.NO_PERMISSION


def test_no_userfaultfd_permission_at_the_destination(subject: laws.Subject) -> None:
    serving, ticket = waiting_serve(subject)
    words = [str(ticket), "--pid", "namespace"]
    status, said = as_nobody(live_migration.cli.restore.main, words, subject.folder / "out")
    assert status == ExitCode.REFUSED, said
    lines = [line for line in said.splitlines() if line.startswith("  userfaultfd: ")]
    assert len(lines) == 1, said
    for word in ("CAP_SYS_PTRACE", "/dev/userfaultfd", "vm.unprivileged_userfaultfd"):
        assert word in lines[0]
    assert serving.process.wait(60) == ExitCode.REFUSED
    assert lines[0] in (subject.folder / "serve.err").read_text().splitlines()


def test_folders_that_cannot_be_written_to(subject: laws.Subject) -> None:
    remedy = "name a file in a folder that exists and can be written to"
    report = f"writing the report: {NONE}/x: the folder {NONE} does not exist or cannot be written to; {remedy}"
    refused(SERVE, [subject.pid, "--report", f"{NONE}/x"], ExitCode.SYSTEM, report)
    refused(RESTORE, ["--listen", "127.0.0.1:0", "--report", f"{NONE}/x"], ExitCode.SYSTEM, report)
    ticket = f"writing the ticket file: {NONE}/x: No such file or directory; {remedy}"
    refused(SERVE, [subject.pid, "--ticket-file", f"{NONE}/x"], ExitCode.SYSTEM, ticket)
    refused(RESTORE, ["--listen", "127.0.0.1:0", "--ticket-file", f"{NONE}/x"], ExitCode.SYSTEM, ticket)


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        (SERVE, "1 --to lm://127.0.0.1:1/ --listen :0", "the options: --to and --listen: one connects, the other "
         "waits; give one of them"),
        (SERVE, "1 --to lm://127.0.0.1:1/ --ticket-file x", "the options: --to and --ticket-file: the side that "
         "listens makes the ticket; leave one out"),
        (SERVE, "1 --check --listen :0", "the options: --check: it needs no other side; "
         "leave --to, --listen and --ticket-file out"),
        (SERVE, "0", "argument PID: '0' is not a process id (1 to 4194304); lm-serve --help lists the options"),
        (RESTORE, "", "the options: TICKET: there is none; give the one that lm-serve printed, or wait for lm-serve "
         "with --listen"),
        (RESTORE, "lm://127.0.0.1:1/ --listen :0", "the options: TICKET and --listen: one connects, the other waits; "
         "give one of them"),
        (RESTORE, "--post-copy --stop-and-copy x", "argument --stop-and-copy: not allowed with argument --post-copy; "
         "lm-restore --help lists the options"),
        (RESTORE, "lm://192.0.2.1:1/", "reading the ticket: 192.0.2.1:1: without a secret nothing is encrypted, "
         "and whoever reaches the port could take the process's memory; use a ticket with a secret (LM_TICKET_FILE, or "
         "the text that the listening side printed)"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(command: str, words: str, sentence: str) -> None:
    refused(command, words.split(), ExitCode.USAGE, sentence)


def test_check_lists_everything_and_changes_nothing(orphans: None) -> None:
    """A process with a child, a pipe that leads outside and a connection: all three are named, and again."""
    script = """
import os, socket, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
print(child.pid, flush=True)
time.sleep(1000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=-1, stderr=-1, start_new_session=True
    )
    try:
        assert process.stdout
        child = int(process.stdout.readline())
        before = laws.picture(process.pid)
        for _ in range(2):
            check = run_anew(SERVE, process.pid, "--check", "--json")
            assert check.returncode == ExitCode.REFUSED
            event = json.loads(check.stdout)
            assert (event["event"], event["pid"]) == ("checked", process.pid)
            assert all(set(one) == {"object", "cause", "remedy"} and all(one.values()) for one in event["blockers"])
            objects = " | ".join(one["object"] for one in event["blockers"])
            assert f"process {child} (sleep)" in objects
            assert sum("established" in one["cause"] for one in event["blockers"]) >= 1, event
            assert laws.picture(process.pid) == before
        text = run_anew(SERVE, process.pid, "--check")
        assert text.stdout.splitlines() == [
            f"{one['object']}: {one['cause']}; {one['remedy']}" for one in event["blockers"]
        ]
        assert text.stderr == ""
    finally:
        # The child first: it has the other ends of the pipes, too.
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate()
