"""Going on where a worker was killed after COMMIT, from what a keeper holds: lm-restore --reattach, and what a frontend
does when its worker is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time

from msgspec.structs import replace

from live_migration.kernel import pidfd
from live_migration.kernel.proc import stat_fields
from live_migration.pager.keeper import Keeper, TakenOver, find_keepers, recover, take_ledger
from live_migration.pager.pager import Pager
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.restorer.finish import follow
from live_migration.restorer.frontend_line import Line
from live_migration.restorer.husk_process import HuskProcess
from live_migration.restorer.kept import Kept, read_kept
from live_migration.restorer.options import RestoreOptions
from live_migration.restorer.phases import Connected, Running
from live_migration.wire import messages
from live_migration.wire.again import Link, doorway_of_our_own
from live_migration.wire.connection import Roles
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import LocalError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.handshake import Side
from live_migration.wire.kept_session import STEP, KeptSession, cannot_go_on, with_certificates
from live_migration.wire.report import Report
from live_migration.wire.session import Session, State

ANOTHER = "another lm-restore goes on already"
DYING_SECONDS = 5.0
PAUSE_SECONDS = 0.02


def reattach(options: RestoreOptions, line: Line) -> int:
    """Bring the pages of process `options.reattach` again; the exit status of the worker. Raises LocalError when nobody
    holds them, or somebody brings them already."""
    pid = options.reattach
    keeper, ledger = abandoned_keeper(pid, replacing=options.source is not None)
    kept = _with_options(read_kept(keeper.note, pid), options)
    roles = kept.session.roles()
    husk = HuskProcess(pid, pidfd.open_pidfd(pid), -1, None, adopted=True)
    pager = Pager()
    try:
        if not keeper.complete:
            recover(pager, keeper, ledger)
            ledger = -1
        elif ledger < 0:
            ledger = take_ledger(keeper)
    except (TakenOver, OSError) as error:
        cause = ANOTHER if isinstance(error, TakenOver) else str(error)
        raise cannot_go_on(pid, cause, "look at what that says") from None
    running = _running(options, line, kept, roles, husk, pager, ledger)
    control = running.connected.control
    control.heard = kept.heard
    link = _link(kept, running)
    control.post(messages.Resumed(pid=pid, resume_ns=kept.resume_ns))
    control.begin_pulses()
    link.lose("the worker was replaced")
    line.send("reattached", pid=pid)
    return follow(running, link)


def abandoned_keeper(pid: int, *, replacing: bool) -> tuple[Keeper, int]:
    """The keeper of process `pid`, whose worker is dead, or is ended if it is to be replaced; then also the ledger, for
    nobody else may go on. Raises LocalError."""
    end, ledger = time.monotonic() + DYING_SECONDS, -1
    while True:
        try:
            found = next((one for one in find_keepers() if one.moved == pid), None)
        except PermissionError as error:
            cause = f"its keeper cannot be looked at ({error.strerror})"
            raise cannot_go_on(pid, cause, "run this as root", ExitCode.NO_PERMISSION) from None
        if found and not found.lives:
            return found, ledger
        if found and replacing and time.monotonic() < end:
            if ledger < 0:
                ledger = _taken(found)
            _end_worker(found)
        elif not found or not _is_dying(found.worker) or time.monotonic() > end:
            break
        time.sleep(PAUSE_SECONDS)
    if found:
        raise cannot_go_on(pid, f"its pages are brought already, by process {found.worker}", "leave it as it is")
    cause = "no keeper holds pages of it here: they are all there, or it was not moved here"
    raise cannot_go_on(pid, cause, "lm-restore --decide list tells what waits here", ExitCode.NO_PROCESS)


def _end_worker(keeper: Keeper) -> None:
    """Kill the keeper's worker, and nobody who has got its number since: whoever is the keeper's parent after the
    pidfd was opened is meant by it."""
    with contextlib.suppress(ProcessLookupError):
        handle = pidfd.open_pidfd(keeper.worker)
        try:
            if any(one.pid == keeper.pid and one.worker == keeper.worker and one.lives for one in find_keepers()):
                pidfd.send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _taken(keeper: Keeper) -> int:
    """The keeper's ledger. Raises LocalError."""
    try:
        return take_ledger(keeper)
    except TakenOver:
        raise cannot_go_on(keeper.moved, ANOTHER, "look at what that says") from None


def _is_dying(worker: int) -> bool:
    """Whether a process is on its way out: its descriptors have closed, its children are not orphans yet."""
    try:
        return stat_fields(worker)[0] in "ZX"
    except OSError:
        return True


def _running(
    options: RestoreOptions, line: Line, kept: Kept, roles: Roles, husk: HuskProcess, pager: Pager, ledger: int
) -> Running:
    report = Report(side="destination", outcome="stalled", strategy=kept.strategy, pid=husk.pid, started=time.time())
    session = Session(Side.DESTINATION, State.STALLED, lambda text: line.send("note", text=text, level=0))
    session.moments["resumed"] = time.monotonic_ns()
    ended, _ = socket.socketpair()
    control = ControlChannel(roles.control)
    connected = Connected(options, DescriptorOptions(), line, roles, ended, control, session, report)
    return Running(connected, husk, None, pager, kept, resume_at_once=False, ledger=ledger)


def _with_options(kept: Kept, options: RestoreOptions) -> Kept:
    """The same with what the options say about the session. Raises LocalError."""
    session = with_certificates(kept.session, options.meeting.certificates)
    if options.source is not None:
        session = _at(session, *options.source)
    return replace(kept, session=session)


def _at(session: KeptSession, host: str, port: int) -> KeptSession:
    """The same with the source at another address. Raises LocalError."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LocalError(
            step=STEP, object=host, cause=str(error.strerror), remedy="give an address", code=ExitCode.NO_PEER
        ) from None
    return replace(session, listening=False, family=int(family), address=where)


def _link(kept: Kept, running: Running) -> Link:
    """How the source is met again. Raises LocalError."""
    roles, control = running.connected.roles, running.connected.control
    door = doorway_of_our_own(kept.session.where) if kept.session.listening else None
    return Link(roles, Side.DESTINATION, control, door)
