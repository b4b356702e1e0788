"""Custody of the source, and its decision: see custody.h.

The custodian is started when the connections stand: a program of its own (custodian.c). It shares memory with lm-serve,
holds the DECISION connection, and blocks until lm-serve's end of a pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.errors import check
from live_migration.process.descriptors.held import Held
from live_migration.process.descriptors.held_table import spare, use_sockets, write_held
from live_migration.source_server import leftover
from live_migration.source_server.kept import STATE_BYTES
from live_migration.source_server.network import Network, open_network
from live_migration.wire import decision
from live_migration.wire.connection import Roles
from live_migration.wire.custodians import (
    HELD_FILE,
    NAME,
    SOURCE_MEMORY,
    LastingMemory,
    lasting_file,
    lasting_memory,
    open_lasting,
)
from live_migration.wire.handshake import Side
from live_migration.wire.session import SourceRecord

PROGRAM = Path(__file__).resolve().parent / "bin" / NAME
GRACE_SECONDS = 2.0
LEAVING_SECONDS = 1.0


@dataclass
class Custody:
    """lm-serve's side: the shared memory, the end of the DECISION connection, the pipe that only lm-serve holds open,
    the custodian's pid, and the hashes of the tokens. `paths`: the files by which somebody else goes on (reattach.py).
    `listener`: as decision.listener_of has it. `command`: both ends of a socket, to receive and to pass on what comes
    to the listener and is not the custodian's (wire/decision.h). `left`: the copy is not needed any more.
    """

    memory: LastingMemory
    paths: tuple[Path, ...]
    state: Any
    line: Any
    listener: int
    hashes: decision.Hashes
    leftover: leftover.Leftover
    command: tuple[socket.socket, socket.socket]
    network: Network
    lifeline: int = -1
    custodian: int = 0
    held: list[Held] = field(default_factory=list)
    left: bool = False

    def lives(self) -> bool:
        """Whether the custodian does."""
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self.custodian, os.WNOHANG) == (0, 0)
        return False

    def ensure(self) -> None:
        """Put another one in the place of a custodian that has ended before its time. Raises OSError."""
        if not self.lives():
            os.close(self.lifeline)
            self.start()

    def at_stake(self) -> None:
        """A freeze is announced: from here on the destination is told what becomes of it, and waited for."""
        self.state.at_stake = 1

    def parked(self, flag_address: int) -> None:
        """The threads are about to wait for the word at `flag_address`."""
        self.state.flag_address = flag_address

    def unparked(self) -> None:
        """No thread waits for the word any more, and its memory is about to go."""
        self.state.flag_address = 0

    def decide(self, how: SourceRecord) -> bool:
        """Decide, before anything is said or thawed, whether the source hands over; False when it is decided
        otherwise.
        """
        return bool(lib.lm_decision_decide(ffi.addressof(self.state, "decision"), int(how)))

    def say(self, frozen_ns: int = 0) -> None:
        """Say what was decided. What cannot be said is left to the custodian, who says it until it is heard."""
        committed = self.state.decision.decided == lib.LM_DECISION_COMMIT
        lib.lm_decision_say(self.line, lib.LM_WORD_COMMIT if committed else lib.LM_WORD_NO, 0, frozen_ns)

    def finished(self) -> None:
        """The destination has everything: nobody has to report that it runs there."""
        self.state.decision.heard = lib.LM_WORD_RESUMED
        self.left = True

    def prepare(self, pid: int, held: list[Held]) -> None:
        """Write down what is going to be held of the descriptors of process `pid`. Raises OSError."""
        self.held = held
        write_held(self.state.held_file, pid, held, self.network.shared)

    def hold(self, spared: Collection[int]) -> None:
        """Hold what is prepared: from here on it is carried out or undone, but for inodes with which the destination
        goes on as they are. Raises OSError."""
        if spared:
            spare(self.state.held_file, self.held, spared)
        self.state.held = 1

    def carry_out(self) -> None:
        """After COMMIT: do to the descriptors what is left to do. What cannot be done is left."""
        if self.state.held:
            lib.lm_held_run(self.state.held_file, lib.LM_HELD_COMMIT)

    def undo(self, own: Mapping[int, int] = MappingProxyType({})) -> None:
        """Before the process runs on: its descriptors are as they were. What cannot be done is left.

        `own` are duplicates, by the inode: where the process was killed meanwhile, its connections end as if it had
        been killed at any other time, and not without a word."""
        if self.state.held:
            duplicates = ffi.new("int[]", [own.get(one.inode, -1) for one in self.held]) if own else ffi.NULL
            lib.lm_held_run_with(self.state.held_file, lib.LM_HELD_UNDO, duplicates)
            self.state.held = 0
            self.network.give_back()

    def freezing(self, seconds: float) -> None:
        """A freeze begins that may take so long; far beyond it the custodian decides against the
        handover, and ends lm-serve."""
        self.state.deadline_ns = time.monotonic_ns() + int((2 * seconds + GRACE_SECONDS) * 1e9)

    def thawed(self) -> None:
        """The freeze is over."""
        self.state.deadline_ns = 0

    def settled(self) -> None:
        """The word is written, so that nothing is left to do to the threads."""
        self.unparked()
        self.thawed()

    def start(self) -> None:
        """Start the custodian. Raises OSError."""
        self.state.over = 0
        watched, self.lifeline = os.pipe()
        named = [self.memory.descriptor, int(self.line.connection), self.listener, self.command[1].fileno(), watched]
        kept = [*named, self.state.held_file, *self.network.shared]
        # Each keeps its number, and loses close-on-exec (posix_spawn_file_actions_adddup2(3)).
        inherited = [(os.POSIX_SPAWN_DUP2, number, number) for number in kept if number >= 0]
        words = [NAME, *map(str, kept), "--", *leftover.COMMAND]
        try:
            self.custodian = os.posix_spawn(PROGRAM, words, os.environ, file_actions=inherited, setsid=True)
        finally:
            os.close(watched)

    def end(self) -> None:
        """Let the custodian go, and reap it if it goes soon: it stays as long as the destination has not heard of what
        was decided.
        """
        if self.state.at_stake and not self.state.decision.heard:
            with contextlib.suppress(OSError):
                self.ensure()
        os.close(self.lifeline)
        os.close(self.state.held_file)
        # A copy that stays here needs what is in it (reattach.py).
        if self.left or self.state.decision.decided != lib.LM_DECISION_COMMIT:
            _remove(*self.paths)
        self.network.close()
        with contextlib.suppress(OSError):
            custodian = pidfd.open_pidfd(self.custodian)
            if pidfd.ends_within(custodian, LEAVING_SECONDS):
                os.waitpid(self.custodian, 0)
            os.close(custodian)
        lib.lm_decision_close(self.line)
        for end in self.command:
            end.close()


def start_custody(roles: Roles, connection: socket.socket, pid: int) -> Custody:
    """Start the custodian of process `pid`. Raises OSError."""
    network = open_network(pid)
    memory = lasting_memory(SOURCE_MEMORY, STATE_BYTES, pid)
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(memory.page))
    shared = ffi.addressof(state, "decision")
    tokens = decision.make_tokens()
    decision.prepare(shared, roles, Side.SOURCE, tokens)
    state.pid, state.serve = pid, os.getpid()
    state.held_file, held_path = lasting_file(HELD_FILE, pid)
    line = decision.open_line(shared, connection, -1)
    try:
        return _start(memory, held_path, line, decision.listener_of(roles), tokens.hashes(), network)
    except OSError:
        _remove(memory.path, held_path)
        raise


def reopen_custody(memory: LastingMemory, listener: int) -> Custody:
    """Custody of a process whose lm-serve and custodian have ended, with what they have held. Raises OSError."""
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(memory.page))
    state.serve, state.deadline_ns = os.getpid(), 0
    network, held = open_network(state.pid), open_lasting(HELD_FILE, state.pid)
    state.held_file, held_path = held or lasting_file(HELD_FILE, state.pid)
    state.held = int(bool(held and state.held))
    if state.held:
        use_sockets(state.held_file, network.shared)
    line = ffi.new("struct lm_decision_line *")
    lib.lm_decision_open(line, ffi.addressof(state, "decision"), -1, -1)
    return _start(memory, held_path, line, listener, decision.Hashes(commit=b"", no=b""), network)


def _start(
    memory: LastingMemory, held: Path | None, line: Any, listener: int, hashes: decision.Hashes, network: Network
) -> Custody:
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(memory.page))
    record, way = leftover.Leftover(ffi.addressof(state, "leftover")), decision.way_to_command()
    record.gone()
    paths = tuple(path for path in (memory.path, held) if path)
    custody = Custody(memory, paths, state, line, listener, hashes, record, way, network)
    custody.start()
    return custody


def _remove(*paths: Path | None) -> None:
    """Nobody will need what would outlive this process."""
    for path in paths:
        if path:
            path.unlink(missing_ok=True)


def decide(pid: int, flag_address: int, *, stay: bool) -> None:
    """Write the word for which the parked threads of `pid` wait. Raises OSError, ProcessGone."""
    check(lib.lm_park_decide(pid, flag_address, lib.LM_PARK_STAY if stay else lib.LM_PARK_GO_HOME), pid)
