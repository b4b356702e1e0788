"""The laws of the handover, as things that can be observed: a program that shows when one is broken, and what is left.

The program (laws_program.c) appends records to a file with numbers that only grow, one row of numbers for each thread.
Two copies that both ran, or one that ran and was thrown away, show as a number that is there twice or not at all.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from live_migration.experiments.machines import Command, Move, descendants, wait_for, wait_for_change
from live_migration.kernel.proc import proc_text, stat_fields
from tests.support import started

SOURCE = Path(__file__).resolve().parent / "laws_program.c"
ROOT = SOURCE.parents[2]
RECORD = struct.Struct("=QQ")
STATUS_KEYS = ("Name", "Umask", "TracerPid", "NoNewPrivs", "Threads", "Seccomp", "CapEff", "Cpus_allowed")
SIGNAL_KEYS = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
# Fields of /proc/PID/stat that no migration may change: priority, nice, number of threads, and their policy.
STAT_FIELDS = (18, 19, 20, 40, 41)


# What may be sent to the source's copy while lm-serve lives, which passes it on to the moved process, however late.
HARMLESS = (signal.SIGUSR1, signal.SIGCONT)
# What else may be sent when lm-serve has ended: it would end the moved process.
ANY = (*HARMLESS, signal.SIGTERM)
# All signals but the two that cannot be blocked, as /proc/PID/status says it.
PARKED = "SigBlk:\tfffffffffffbfeff"


class Row(enum.IntEnum):
    """What a record tells of: enum thread of the program."""

    WALKER = 0
    SLEEPER = 1
    VECTOR = 2
    READER = 3
    SIGNALS = 4
    COLD = 5
    ALL_COLD = 6
    BROKEN = 7


THREADS = (Row.WALKER, Row.SLEEPER, Row.VECTOR, Row.READER)


def build(folder: Path) -> Path:
    """Compile the program."""
    program = folder / "laws_program"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    return program


def read_rows(folder: Path) -> dict[Row, int]:
    """How far each row is. AssertionError when a number is there twice or is missing, or the program found a fault."""
    data = (folder / "log").read_bytes()
    rows = dict.fromkeys(Row, 0)
    for place, (row, number) in enumerate(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])):
        kind = Row(row)
        assert kind is not Row.BROKEN, f"the program found fault {number} at record {place}"
        assert number == rows[kind] + 1, f"{kind.name}: {number} follows {rows[kind]} at record {place}"
        rows[kind] = number
    return rows


@dataclass(frozen=True)
class Picture:
    """All of a process that a migration which comes to nothing must leave as it was."""

    maps: str
    descriptors: tuple[tuple[str, str, str], ...]
    threads: tuple[tuple[str, ...], ...]
    limits: str


def picture(pid: int) -> Picture:
    """What a process shows from outside. Pending signals and mappings can differ for a moment: compare until equal."""
    proc = Path(f"/proc/{pid}")
    descriptors = []
    for name in sorted(os.listdir(proc / "fd"), key=int):
        flags = (proc / "fdinfo" / name).read_text().split("flags:")[1].split()[0]
        descriptors.append((name, os.readlink(proc / "fd" / name), flags))
    threads = []
    for tid in sorted(os.listdir(proc / "task"), key=int):
        stat = (proc / "task" / tid / "stat").read_text().rpartition(")")[2].split()
        status = dict(
            line.split(":\t", 1) for line in proc_text(f"{proc}/task/{tid}/status").splitlines() if ":\t" in line
        )
        told = [f"{key} {status[key].strip()}" for key in (*STATUS_KEYS, *SIGNAL_KEYS)]
        threads.append((tid, *told, *(stat[number - 3] for number in STAT_FIELDS)))
    return Picture((proc / "maps").read_text(), tuple(descriptors), tuple(threads), (proc / "limits").read_text())


@dataclass
class Subject:
    """The program while it runs, where it was started; `children` are those whose end somebody here asks after."""

    process: subprocess.Popen[bytes]
    folder: Path
    before: Picture
    children: set[int] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    def rows(self) -> dict[Row, int]:
        """How far each thread is, by its records."""
        return read_rows(self.folder)

    def await_progress(self, rows: Sequence[Row] = THREADS, more: int = 2, seconds: float = 60) -> None:
        """Wait until every thread has gone on. Raises TimeoutError."""
        before = self.rows()

        def poll() -> bool | None:
            now = self.rows()
            return all(now[row] >= before[row] + more for row in rows) or None

        wait_for("progress", poll, seconds)

    def await_standstill(self, seconds: float = 60) -> None:
        """Wait until the walker, which needs every page, appends nothing any more for a while. Raises TimeoutError."""

        def poll() -> bool | None:
            before = self.rows()[Row.WALKER]
            time.sleep(0.2)
            return self.rows()[Row.WALKER] == before or None

        wait_for("a standstill", poll, seconds)

    def signal(self, pid: int, number: int, row: Row) -> None:
        """Send the process a signal whose handler appends a record, and wait for the record."""
        before = self.rows()[row]
        # A signal for process 0 would be for whoever runs the tests.
        assert pid, "the process is not known"
        os.kill(pid, number)
        wait_for(f"the record of {row.name}", lambda: self.rows()[row] > before or None, 60)
        assert row is not Row.SIGNALS or self.rows()[row] == before + 1


def start_subject(program: Path, folder: Path, warm: int = 512, cold: int = 0) -> Subject:
    """Start the program in a session of its own, with nothing but /dev/null; its memory is in pages."""
    folder.mkdir(exist_ok=True)
    null = subprocess.DEVNULL
    words = [str(program), str(folder), str(warm), str(cold)]
    process = subprocess.Popen(words, stdin=null, stdout=null, stderr=null, start_new_session=True)

    def running() -> bool | None:
        assert process.poll() is None, process.returncode
        if not (folder / "log").exists():
            return None
        rows = read_rows(folder)
        return all(rows[row] > 0 for row in THREADS) or None

    wait_for("the program", running, 60)
    subject = Subject(process, folder, picture(process.pid))
    assert picture(process.pid) == subject.before, "the program changes by itself"
    return subject


def environment(fault: str = "") -> dict[str, str]:
    """The environment of a command, with at most one fault and nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LM_")}
    return kept | ({"LM_FAULT": fault} if fault else {})


def begin(
    subject: Subject,
    *,
    serve: Sequence[str] = (),
    restore: Sequence[str] = (),
    fault: str = "",
    starting: Callable[..., Command] = started.start,
) -> Move:
    """Start lm-serve and lm-restore over loopback, into a PID namespace. A fault goes to the side that it is of."""
    folder = subject.folder
    ticket = folder / "ticket"
    ticket.unlink(missing_ok=True)
    side = fault.partition("-")[0]
    words = [sys.executable, "-m", "live_migration.cli.serve", str(subject.pid), "--json", "--ticket-file", str(ticket)]
    more = environment(fault if side == "source" else "")
    serving = start_command(subject, [*words, *serve], "serve", more, starting)

    def offered() -> bool | None:
        return ticket.exists() or serving.process.poll() is not None or None

    wait_for_change("the ticket", offered, folder, seconds=60)
    words = [sys.executable, "-m", "live_migration.cli.restore", f"@{ticket}", "--json", "--pid", "namespace"]
    words += ["--detach", "--stdio", "null"]
    more = environment(fault if side == "destination" else "")
    return Move(serving, start_command(subject, [*words, *restore], "restore", more, starting))


def start_command(
    subject: Subject,
    words: Sequence[str],
    name: str,
    variables: Mapping[str, str],
    starting: Callable[..., Command] = started.start,
) -> Command:
    """Start one of the commands, which will have to be gone at the end."""
    command = starting(None, words, subject.folder, name, env=dict(variables), cwd=ROOT)
    subject.children.add(command.process.pid)
    return command


def fork_command(main: Callable[[Sequence[str]], int], arguments: list[str], output: Path) -> int:
    """Run a command in a child; its process id. What it prints goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in ((0, null), (1, target), (2, target)):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for name in [name for name in os.environ if name.startswith("LM_")]:
            del os.environ[name]
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def process_name(pid: int) -> str:
    """What a process is called, "" when it is gone or a zombie."""
    with contextlib.suppress(OSError):
        if stat_fields(pid)[0] != "Z":
            return proc_text(f"/proc/{pid}/comm").strip()
    return ""


def command_line(pid: int) -> bytes:
    """What a process was started with; b"" when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def reap_orphans(subject: Subject) -> None:
    """Take note of the dead that fell to this process, but not of those that somebody here still asks after."""
    known = {subject.pid, *subject.children, *started.spared()}
    for pid in descendants(os.getpid()):
        if pid not in known and not process_name(pid):
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def left_over(subject: Subject) -> dict[int, str]:
    """The processes of the migration that still exist: everything that descends from this process but the subject."""
    reap_orphans(subject)
    known = {subject.pid, *started.spared()}
    names = {pid: process_name(pid) for pid in descendants(os.getpid()) if pid not in known}
    return {pid: name for pid, name in names.items() if name}


def await_nothing_left(subject: Subject, seconds: float = 60) -> None:
    """Wait until husk, keeper, custodian, namespace and both commands are gone. AssertionError if they are not."""
    end = time.monotonic() + seconds
    while found := left_over(subject):
        assert time.monotonic() < end, f"still there: {found}"
        time.sleep(0.01)


def assert_untouched(subject: Subject) -> None:
    """The migration came to nothing: nothing is left of it, and the process runs on as it was."""
    await_nothing_left(subject)
    assert subject.process.poll() is None, f"the process ended with {subject.process.returncode}"
    with contextlib.suppress(TimeoutError):
        wait_for("the picture", lambda: picture(subject.pid) == subject.before or None, 60)
    now = picture(subject.pid)
    assert now.maps.splitlines() == subject.before.maps.splitlines()
    assert now.descriptors == subject.before.descriptors
    assert now.threads == subject.before.threads
    assert now == subject.before
    subject.await_progress()
    subject.signal(subject.pid, signal.SIGUSR1, Row.SIGNALS)
    subject.rows()


def processor_time(pid: int) -> int:
    """Clock ticks that a process has used; 0 for one that is gone."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def signal_masks(pid: int) -> list[str]:
    """What each thread of a process blocks, as /proc/PID/status has it; nothing when it is gone."""
    masks = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            masks += [line for line in proc_text(f"{thread}/status").splitlines() if line.startswith("SigBlk:")]
    return sorted(masks)


def let_go(subject: Subject) -> int:
    """The process at the destination when it runs: a copy that nobody traces and that is not parked; else 0."""
    for pid, name in left_over(subject).items():
        if name == "laws_program":
            with contextlib.suppress(OSError):
                masks = signal_masks(pid)
                if "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text() and masks and PARKED not in masks:
                    return pid
    return 0


def assert_inert(subject: Subject, signals: Sequence[int] = HARMLESS) -> None:
    """The source's copy never runs again: it has left, or only waits, whatever signal it gets; ANY without lm-serve."""
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(subject.pid, number)
    before = processor_time(subject.pid)
    time.sleep(0.1)
    if subject.process.poll() is None:
        assert processor_time(subject.pid) - before <= 1


def moved_pid(move: Move) -> int:
    """The process at the destination, as lm-restore told it; 0 if it did not."""
    return max(
        (int(event.get("pid") or 0) for event in move.restore.events() if event["event"] in ("resumed", "reattached")),
        default=0,
    )
