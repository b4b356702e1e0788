"""The stopped threads of a source: what they were, programs in all of them at once, parking (source_threads.h).

One mapping, made in the source by a remote syscall, holds everything: the stub, the word that parked threads wait for,
a frame for each thread's way home, and the programs' tables.
"""

from __future__ import annotations

import mmap
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import check
from live_migration.kernel.injection.program import Ending, Outcome, Program
from live_migration.kernel.injection.side_by_side import encode_each, outcomes_of
from live_migration.kernel.injection.sigreturn_path import Gadgets, remote_syscall
from live_migration.kernel.injection.syscall_numbers import SYS_mmap, SYS_munmap
from live_migration.kernel.tracing import tracee
from live_migration.kernel.tracing.tracee import RseqConfiguration

FLAG_ROOM = 64
# Ignored by default and seen by a tracer all the same; the first one that the process does not handle is used.
END_SIGNALS = (signal.SIGURG, signal.SIGWINCH, signal.SIGCHLD)
NO_GADGETS = Gadgets(0, 0)
MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE (mmap(2))


@dataclass(frozen=True)
class ThreadState:
    """What a thread was at the freeze: struct user_regs_struct, the signal mask, the xsave image, and what it had
    registered for rseq."""

    registers: bytes
    signal_mask: int
    xstate: bytes
    rseq: RseqConfiguration


class MappingRecord(Protocol):
    """Somebody who is told of the mapping, so that it can be taken away if this process dies."""

    def made(self, pid: int, address: int, length: int) -> None:
        """It is about to be made."""

    def gone(self) -> None:
        """It is not there any more, or never was."""


@dataclass
class SourceThreads:
    """All threads of a stopped source, the leader first, with the mapping that their programs use.

    `address` is 0 until `map_stub` has made the mapping; `gadgets` and `frame` are what it was made with."""

    pid: int
    tids: list[int]
    handle: Any
    end_signal: int
    address: int = 0
    length: int = 0
    gadgets: Gadgets = NO_GADGETS
    frame: int = 0
    record: MappingRecord | None = None

    @property
    def flag_address(self) -> int:
        """Where the word is that parked threads wait for."""
        return self.address + int(lib.LM_STUB_ROOM)

    @property
    def tables_address(self) -> int:
        """Where programs begin."""
        frames = len(self.tids) * int(lib.lm_source_frame_size(self.handle))
        return self.address + int(lib.LM_STUB_ROOM) + FLAG_ROOM + frames


def prepare() -> None:
    """Do beforehand what would be slow in a freeze."""
    lib.lm_sigreturn_frame_prepare()


def choose_end_signal(caught: int) -> int | None:
    """The signal by which programs end, given the set of signals that the process handles (SigCgt of
    /proc/PID/status, bit n-1 for signal n); None if it handles every candidate."""
    for candidate in END_SIGNALS:
        if not caught >> (candidate - 1) & 1:
            return int(candidate)
    return None


def snapshot_threads(
    pid: int, tids: Sequence[int], end_signal: int, record: MappingRecord | None = None
) -> SourceThreads:
    """Read every thread's registers, mask and vector state. `tids` are stopped tracees, the leader first; `record` is
    told of the mapping.

    Raises ProcessGone, OSError."""
    out = ffi.new("struct lm_source_threads **")
    check(lib.lm_source_threads_init(ffi.new("int[]", list(tids)), len(tids), out), pid)
    return SourceThreads(pid, list(tids), ffi.gc(out[0], lib.lm_source_threads_deinit), end_signal, record=record)


def thread_states(threads: SourceThreads) -> Iterator[ThreadState]:
    """The state of each thread as it was at the freeze, the leader's first.

    Raises OSError if the kernel does not tell of rseq, ProcessGone."""
    state = ffi.new("struct lm_source_state *")
    size = int(lib.LM_REGISTERS_SIZE)
    for index, tid in enumerate(threads.tids):
        lib.lm_source_state(threads.handle, index, state)
        if state.rseq_error:
            check(state.rseq_error, tid)
        yield ThreadState(
            ffi.buffer(state.registers, size)[:],
            state.mask,
            ffi.buffer(state.xstate, state.xstate_size)[:],
            tracee.rseq_told(state.rseq),
        )


def room_needed(threads: SourceThreads, programs: Mapping[int, Program]) -> int:
    """Bytes that the mapping needs for these programs, a multiple of the page size."""
    tables = sum(program.room() for program in programs.values())
    total = threads.tables_address - threads.address + tables
    return -(-total // mmap.PAGESIZE) * mmap.PAGESIZE


def map_stub(threads: SourceThreads, gadgets: Gadgets, frame: int, address: int, length: int) -> None:
    """Make the mapping at a free address, with the stub and every thread's frame in it.

    Raises OSError (EEXIST: the address is taken), ProcessGone."""
    if threads.record is not None:
        threads.record.made(threads.pid, address, length)
    try:
        remote_syscall(threads.pid, gadgets, frame, SYS_mmap, address, length, 7, MAP_FLAGS, -1, 0)
    except BaseException:
        if threads.record is not None:
            threads.record.gone()
        raise
    threads.address, threads.length = address, length
    threads.gadgets, threads.frame = gadgets, frame
    write_frames(threads)


def write_frames(threads: SourceThreads, word: int = lib.LM_PARK_UNDECIDED) -> None:
    """Write the stub, the word that parked threads wait for and the frames, for what is every thread's home now."""
    head = int(lib.LM_STUB_ROOM) + FLAG_ROOM
    content = bytearray(threads.tables_address - threads.address)
    content[: lib.LM_STUB_ROOM] = ffi.buffer(lib.lm_stub_code(), lib.LM_STUB_ROOM)
    waiting_word = ffi.new("uint32_t *", word)
    content[lib.LM_STUB_ROOM : lib.LM_STUB_ROOM + 4] = ffi.buffer(waiting_word)
    frames = ffi.from_buffer(content)
    check(lib.lm_source_frames(threads.handle, threads.address + head, frames + head, len(content) - head), threads.pid)
    tracee.write_memory(threads.pid, threads.address, bytes(content))


def unmap_stub(threads: SourceThreads) -> None:
    """Take the mapping away again, if there is one; every thread is at home."""
    if threads.address:
        remote_syscall(threads.pid, threads.gadgets, threads.frame, SYS_munmap, threads.address, threads.length)
        threads.address = threads.length = 0
        if threads.record is not None:
            threads.record.gone()


def run_in_source(threads: SourceThreads, programs: Mapping[int, Program]) -> dict[int, Outcome]:
    """Run a program in each of the threads that have one (by tid), all at once.

    Raises SyscallFailed for a checked row that failed, ProcessGone, OSError."""
    start = threads.tables_address
    encoded = encode_each(programs, start, Ending.GO_HOME, threads.end_signal)
    length = len(encoded.content)
    if start + length > threads.address + threads.length:
        raise ValueError(f"programs of {length} bytes do not fit the mapping of {threads.length}")
    tracee.write_memory(threads.pid, start, encoded.content)
    starts = ffi.new("struct lm_source_program[]", [encoded.places.get(tid, (0, 0)) for tid in threads.tids])
    check(lib.lm_source_run(threads.handle, starts, threads.address, threads.end_signal), threads.pid)
    return outcomes_of(programs, encoded, tracee.read_memory(threads.pid, start, length), threads.pid)


def park(threads: SourceThreads) -> None:
    """Set every thread on the waiting loop, still stopped. Raises ProcessGone, OSError."""
    check(lib.lm_source_park(threads.handle, threads.address, threads.flag_address), threads.pid)


def settle(threads: SourceThreads) -> None:
    """After COMMIT: the waiting loop is every thread's home from now on, and the word says to stay."""
    lib.lm_source_settle(threads.handle, threads.address, threads.flag_address)
    write_frames(threads, lib.LM_PARK_STAY)


def bring_home(threads: SourceThreads) -> None:
    """Put every thread's mask and registers back, still stopped. Raises OSError."""
    check(lib.lm_source_home(threads.handle), threads.pid)
