"""lm-serve --reattach: another lm-serve goes on where one was killed after COMMIT. If it was killed before, and its
custodian too, so that nobody has decided, this decides against the handover, and the process runs on here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel import pidfd
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.sigreturn_path import find_gadgets, place_frame, remote_syscall
from live_migration.kernel.injection.syscall_numbers import SYS_exit_group
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.proc import proc_text, stat_fields
from live_migration.kernel.tracing import tracee
from live_migration.source_server import custody as custodies
from live_migration.source_server.kept import Kept, read_kept
from live_migration.source_server.options import ServeOptions
from live_migration.source_server.pages.client import COMPRESS_AUTO, PageClient
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.phases import Connected, write
from live_migration.source_server.release import Serving, serve_on
from live_migration.source_server.stopping import stop_by_signal
from live_migration.wire import messages
from live_migration.wire.again import Doorway, Link
from live_migration.wire.connection import Listener, Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.custodians import SOURCE_MEMORY, LastingMemory, find_custodians, open_lasting_memory
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Side
from live_migration.wire.kept_session import KeptSession, cannot_go_on, with_certificates
from live_migration.wire.report import Report
from live_migration.wire.session import Session, State

RUNS_ON = "process {pid} runs on here: it was not handed over; the destination hears that as soon as it asks"
CUSTODIAN_SECONDS = 5.0
DYING_SECONDS = 2.0
PAUSE_SECONDS = 0.02


@dataclass
class AdoptedCopy:
    """The source's copy, which nobody traces any more. `pending`: signals that the destination has got, as masks."""

    pid: int
    pending: dict[int, int]
    frozen_ns: int = 0

    def masks(self) -> dict[int, int]:
        """What is known to be pending."""
        return self.pending

    def forward_signals(self, control: ControlChannel) -> None:
        """Send on what the inert copy has got."""
        now, known = pending_masks(self.pid), self.pending
        self.pending = now or known
        for thread, mask in now.items():
            late = mask & ~known.get(thread, 0)
            for number in range(1, 65):
                if late >> (number - 1) & 1:
                    control.post(messages.Signal(thread=_inner_id(self.pid, thread), number=number))

    def leave(self, status: int) -> None:
        """Let it end by its own exit_group(status); by SIGKILL if that cannot be."""
        with contextlib.suppress(ProcessGone, OSError, TimeoutError):
            tracee.seize(self.pid)
            tracee.stop(self.pid)
            found = maps(self.pid)
            gadgets = find_gadgets(self.pid, found)
            stack = next(((one.start, one.end) for one in found if one.path == "[stack]"), None)
            frame = place_frame(self.pid, gadgets, stack) if gadgets else None
            if gadgets and frame:
                remote_syscall(self.pid, gadgets, frame, SYS_exit_group, status)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def pending_masks(pid: int) -> dict[int, int]:
    """The pending signals of a process, as masks, by thread; 0: its own. Empty if it is gone."""
    masks = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            status = _status(f"/proc/{pid}/task/{name}/status")
            masks[int(name)] = int(status["SigPnd"], 16)
            masks[0] = int(status["ShdPnd"], 16)
    return masks


def _inner_id(pid: int, thread: int) -> int:
    """A thread's id as the process sees it; 0 for 0, and for one that is gone."""
    if thread:
        with contextlib.suppress(OSError):
            return int(_status(f"/proc/{pid}/task/{thread}/status")["NSpid"].split()[-1])
    return 0


def _status(path: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in proc_text(path).splitlines() if ":\t" in line)


def reattach(options: ServeOptions, events: Events) -> int:
    """Go on for process `options.reattach`; the exit status. Raises LocalError."""
    pid = options.reattach
    memory = _open_state(pid)
    state = ffi.cast("struct lm_custody *", ffi.from_buffer(memory.page))
    end = time.monotonic() + DYING_SECONDS
    # It may have been killed just now.
    while _is_serving(state.serve) and time.monotonic() < end:
        time.sleep(PAUSE_SECONDS)
    if _is_serving(state.serve):
        raise cannot_go_on(pid, f"lm-serve (process {state.serve}) looks after it", "leave it as it is")
    kept = read_kept(memory.page)
    if kept:
        kept = msgspec.structs.replace(kept, session=_with_options(kept.session, options))
    roles = kept.session.roles() if kept else None
    _end_custodian(pid)
    lib.lm_decision_decide(ffi.addressof(state, "decision"), lib.LM_DECISION_NO)
    listener = _listener(kept.session) if kept and kept.session.listening else None
    custody = custodies.reopen_custody(memory, listener.fileno() if listener else -1)
    if kept is None or roles is None or state.decision.decided != lib.LM_DECISION_COMMIT:
        _note_leftover(pid, custody)
        # It does what is left to do, and answers the destination.
        custody.end()
        events.note(RUNS_ON.format(pid=pid), 0)
        return int(ExitCode.OK)
    if state.flag_address:
        with contextlib.suppress(ProcessGone, OSError):
            custodies.decide(pid, state.flag_address, stay=True)
            custody.settled()
    custody.carry_out()
    return _serve(options, events, kept, roles, custody, listener)


def _serve(
    options: ServeOptions,
    events: Events,
    kept: Kept,
    roles: Roles,
    custody: custodies.Custody,
    listener: socket.socket | None,
) -> int:
    pid, options = options.reattach, replace(options, exit_status=kept.exit_status)
    session = Session(Side.SOURCE, State.STALLED, lambda text: events.note(text, 0))
    session.moments["committed"] = time.monotonic_ns()
    report = Report(side="source", outcome="stalled", strategy=kept.strategy, pid=pid, started=time.time())
    with PageStore() as store, PageClient(store) as client:
        store.add_process(kept.space, pid)
        store.open(True)
        client.compress(COMPRESS_AUTO)
        control = ControlChannel(roles.control)
        control.go_on(kept.heard, kept.serial, [one.message for one in kept.unheard])
        control.begin_pulses()
        connected = Connected(options, events, session, roles, control, store, client, custody, report)
        stop_by_signal(session, pid)
        door = Doorway(custody.command[0], listener, lambda: False) if listener else None
        link = Link(roles, Side.SOURCE, control, door)
        link.lose("lm-serve was replaced")
        events.emit("reattached", pid)
        try:
            serve_on(Serving(connected, AdoptedCopy(pid, dict(kept.pending)), link, kept))
        finally:
            write(connected)
            custody.end()
    events.result(report)
    return int(ExitCode.OK)


def _with_options(session: KeptSession, options: ServeOptions) -> KeptSession:
    """The same with what the options say about it. Raises LocalError."""
    session = with_certificates(session, options.meeting.certificates)
    if options.meeting.listen is None:
        return session
    family = socket.AF_INET6 if ":" in options.meeting.listen[0] else socket.AF_INET
    return msgspec.structs.replace(session, listening=True, family=int(family), address=options.meeting.listen)


def _listener(session: KeptSession) -> socket.socket:
    """At the port of the one that was killed, or where the options say. Raises LocalError."""
    return Listener(str(session.address[0]), int(session.address[1])).socket


def _open_state(pid: int) -> LastingMemory:
    if found := open_lasting_memory(SOURCE_MEMORY, pid):
        return found
    cause = "no lm-serve of this user has left anything of it here"
    raise cannot_go_on(pid, cause, "lm-serve --decide list tells what waits here", ExitCode.NO_PROCESS)


def _is_serving(serve: int) -> bool:
    """Whether the lm-serve that wrote the state lives."""
    try:
        return stat_fields(serve)[0] not in "ZX" and b"lm-" in Path(f"/proc/{serve}/cmdline").read_bytes()
    except OSError:
        return False


def _end_custodian(pid: int) -> None:
    """End the custodian of process `pid`: another one takes its place."""
    for custodian, memory in find_custodians(SOURCE_MEMORY):
        state = ffi.cast("struct lm_custody *", ffi.from_buffer(memory))
        if state.pid != pid:
            continue
        with _handle(custodian) as handle:
            pidfd.send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], CUSTODIAN_SECONDS)


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[int]:
    handle = pidfd.open_pidfd(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def _note_leftover(pid: int, custody: custodies.Custody) -> None:
    """What the dead lm-serve has left in the process's memory is known by what is in it."""
    with contextlib.suppress(ProcessGone, OSError):
        stub = bytes(ffi.buffer(lib.lm_stub_code(), lib.LM_STUB_ROOM))
        for entry in maps(pid):
            anonymous = entry.permissions == "rwxp" and not entry.inode
            if anonymous and tracee.read_memory(pid, entry.start, len(stub)) == stub:
                custody.leftover.made(pid, entry.start, entry.end - entry.start)
