"""Help for the tests of descriptors: a child process that sets up descriptors, and the way they take in a
migration.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.descriptors.opening import OpenedDescriptors, open_descriptors, update_descriptors
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.snapshot import Snapshot, snapshot_descriptors
from live_migration.process.descriptors.table import DescriptorTable

FIRST_REPORT = 200
PREAMBLE = """
import os, sys, fcntl, socket, select, struct, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def ready():
    # Tells the test, and rests until the test says to go on.
    os.write(report, b"r")
    signal.sigwait([signal.SIGUSR1])
def put(descriptor, number):
    os.dup2(descriptor, number)
    os.close(descriptor)
report = int(sys.argv[1])
"""


class Child:
    """A running child; `report` is the number of its pipe to the test, which stays out of every table."""

    def __init__(self, process: subprocess.Popen[bytes], read_end: int, report: int) -> None:
        self.process, self.read_end, self.report = process, read_end, report
        self.pid = process.pid

    def wait_ready(self) -> None:
        """Wait until the child calls ready()."""
        assert os.read(self.read_end, 1) == b"r", "the child ended early"

    def go_on(self) -> None:
        """Let the child go on to its next ready()."""
        os.kill(self.pid, signal.SIGUSR1)
        self.wait_ready()


@contextlib.contextmanager
def running(
    code: str, cwd: Path | None = None, pass_fds: Sequence[int] = (), stderr: int | None = None
) -> Iterator[Child]:
    """A Python child that runs `code`, which calls `ready()` where the test is to look; killed at the end."""
    read_end, low = os.pipe()
    # Beyond the numbers that children choose for their own.
    write_end = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FIRST_REPORT)
    os.close(low)
    child = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(write_end)],
        pass_fds=[write_end, *pass_fds],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if stderr is None else stderr,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    os.close(write_end)
    try:
        one = Child(child, read_end, write_end)
        one.wait_ready()
        yield one
    finally:
        os.close(read_end)
        child.kill()
        child.wait()


def travel(table: DescriptorTable) -> DescriptorTable:
    """The table as the other host gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=DescriptorTable)


def without(table: DescriptorTable, *numbers: int) -> DescriptorTable:
    """The table without some descriptors and what they stand for."""
    gone = {d.open_file for d in table.descriptors if d.number in numbers}
    return msgspec.structs.replace(
        table,
        descriptors=[d for d in table.descriptors if d.open_file not in gone],
        open_files=[d for d in table.open_files if d.identity not in gone],
    )


@contextlib.contextmanager
def moved(
    child: Child,
    options: DescriptorOptions | None = None,
    between: Callable[[OpenedDescriptors, Snapshot], None] | None = None,
    source_access: bool = False,
    finish: Callable[[OpenedDescriptors, DescriptorTable], None] | None = None,
) -> Iterator[Callable[[int], int]]:
    """Snapshot live, open, snapshot frozen, update: yields a function from the child's number to the descriptor
    here.
    """
    options = options or DescriptorOptions(stdio="null")
    live = snapshot_descriptors(ProcessSnapshot(child.pid))
    staged = without(travel(live.table), child.report)
    opened = open_descriptors(staged, options, source_access=source_access)
    opened.context.process = os.getpid()
    try:
        if between is not None:
            between(opened, live)
        frozen = snapshot_descriptors(ProcessSnapshot(child.pid), live, frozen=True)
        try:
            final = without(travel(frozen.table), child.report)
            update_descriptors(opened, final)
            if finish is not None:
                finish(opened, final)
        finally:
            frozen.close()
        identities = {d.number: d.open_file for d in final.descriptors}
        copies = {identity: os.dup(number) for identity, number in opened.numbers.items()}
        opened.close()
        try:
            yield lambda number: copies[identities[number]]
        finally:
            for number in copies.values():
                with contextlib.suppress(OSError):
                    os.close(number)
    finally:
        opened.close()
