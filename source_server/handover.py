"""The freeze and the handover: what happens to the source's threads, with nothing left to chance.

Everything here runs in the tracing thread. `frozen` thaws on every way out on which the session lets it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from live_migration.kernel.errors import ProcessGone, SyscallFailed
from live_migration.kernel.injection import source_threads as sources
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_exit_group
from live_migration.kernel.tracing import tracee
from live_migration.process import task as tasks
from live_migration.process.threads.restore import retire_rows
from live_migration.source_server import custody as custodies
from live_migration.source_server.same_program import check_same_program
from live_migration.source_server.snapshot import FrozenSource, QueriedSource, SourceSnapshot, describe_stopped, query
from live_migration.wire import messages
from live_migration.wire.account import Account
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import LocalError, MigrationError
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.session import Event, Session, SourceRecord

LEAVING_SECONDS = 10.0
STEP = "the freeze"


@dataclass
class Frozen:
    """A stopped process and what has been done to it so far. `custody`: whose word its threads wait for."""

    seen: SourceSnapshot
    session: Session
    stops: list[tracee.Stop]
    threads: sources.SourceThreads | None = None
    custody: custodies.Custody | None = None
    source: FrozenSource | None = None


@dataclass
class Committed:
    """The source after COMMIT: inert. `frozen_ns` is from the freeze until COMMIT was sent."""

    source: FrozenSource
    frozen_ns: int


@contextlib.contextmanager
def frozen(seen: SourceSnapshot, session: Session) -> Iterator[Frozen]:
    """Stop all threads; let them go on exactly as they were, unless the session forbids it in the end.

    Raises LocalError when the process cannot be stopped, has ended or executes another program."""
    try:
        state = Frozen(seen, session, tracee.freeze(seen.pid))
    except (ProcessGone, OSError, TimeoutError) as error:
        raise _cannot_freeze(seen.pid, error) from None
    try:
        session.happened(Event.STOPPED)
        check_same_program(seen, STEP)
        yield state
    except (ProcessGone, OSError, SyscallFailed) as error:
        raise _cannot_freeze(seen.pid, error) from error
    finally:
        if session.may_thaw():
            thaw(state)
            session.happened(Event.THAWED)


@contextlib.contextmanager
def refusing(state: Frozen, custody: custodies.Custody) -> Iterator[None]:
    """Within `frozen`: what ends the handover is decided as the source's NO, before anything is thawed, and what was
    held is let go."""
    try:
        yield
    except BaseException as error:
        if not state.session.committed:
            custody.decide(SourceRecord.NO)
            state.session.ended_by(error)
        raise
    finally:
        if not state.session.committed:
            let_go(state, custody)


def let_go(state: Frozen, custody: custodies.Custody) -> None:
    """Undo what was held. If the process was killed meanwhile, our duplicates of its sockets are the last ones, and are
    closed only when nothing is held any more: then the peers hear of it."""
    snapshot = state.source.descriptors if state.source is not None else None
    if snapshot is None:
        custody.undo()
        return
    custody.undo({os.fstat(number).st_ino: number for number in snapshot.duplicates.values()})
    snapshot.close()


def _cannot_freeze(pid: int, error: Exception) -> LocalError:
    gone = isinstance(error, ProcessGone)
    # Anything else fails again.
    passes = isinstance(error, TimeoutError) or getattr(error, "errno", None) in (errno.EAGAIN, errno.EINTR)
    then = "try again" if passes else "remove the cause before another try"
    return LocalError(
        step=STEP,
        object=f"process {pid}",
        cause=str(error),
        remedy="nothing is left to move" if gone else f"it runs on here; {then}",
        code=ExitCode.NO_PROCESS if gone else ExitCode.SYSTEM,
    )


def thaw(state: Frozen) -> None:
    """Put everything back and let the threads go."""
    with contextlib.suppress(ProcessGone, OSError):
        if state.threads is not None:
            sources.bring_home(state.threads)
            if state.custody is not None:
                state.custody.unparked()
            sources.unmap_stub(state.threads)
    with contextlib.suppress(ProcessGone, OSError):
        tracee.thaw(state.stops, True)


def query_threads(state: Frozen) -> QueriedSource:
    """Have the stopped threads tell what only they know: programs run in them."""
    seen = state.seen
    tids = [stop.tid for stop in state.stops]
    state.threads = sources.snapshot_threads(seen.pid, tids, seen.end_signal, seen.leftover)
    return query(seen, state.stops, state.threads)


def describe(state: Frozen, queried: QueriedSource) -> FrozenSource:
    """Describe the stopped process whose threads have replied."""
    state.source = describe_stopped(state.seen, queried)
    return state.source


def park(state: Frozen, source: FrozenSource, custody: custodies.Custody) -> None:
    """Park the threads, if they are not: when lm-serve dies, they wait until the custodian has undone what was held.
    Raises ProcessGone, OSError."""
    if state.custody is None:
        state.custody = custody
        custody.parked(source.threads.flag_address)
        sources.park(source.threads)


def commit(
    state: Frozen, source: FrozenSource, control: ControlChannel, custody: custodies.Custody, account: Account
) -> Committed:
    """Park the threads, decide and say COMMIT: the one step that cannot be taken back.

    Raises LocalError when the custodian is gone or has decided otherwise, ProcessGone when the process was killed."""
    threads = source.threads
    state.session.happened(Event.PARKED)
    park(state, source, custody)
    failpoint("source-parked")
    if not custody.lives():
        raise _no_custodian(state.seen.pid)
    # Memory that has begun to go may have been described as never written to.
    if state.seen.program.is_ending():
        raise ProcessGone(state.seen.pid)
    account.step("deciding")
    frozen_ns = sum(account.steps.values())
    if not custody.decide(SourceRecord.COMMIT):
        raise _decided_otherwise(state.seen.pid)
    custody.say(frozen_ns + control.round_trip_ns // 2)
    state.session.happened(Event.COMMIT)
    # On one machine the destination may wait for this very processor.
    os.sched_yield()
    # Nothing may fail from here on: what cannot be done is left, and the custodian does it.
    with contextlib.suppress(ProcessGone, OSError, MigrationError):
        failpoint("source-committed")
    with contextlib.suppress(ProcessGone, OSError):
        custodies.decide(state.seen.pid, threads.flag_address, stay=True)
        custody.settled()
    settle(source)
    return Committed(source, frozen_ns)


def _no_custodian(pid: int) -> LocalError:
    return LocalError(
        step="the handover",
        object=f"process {pid}",
        cause="the custodian of lm-serve has ended; it must not be killed during a migration",
        remedy="it runs on here; try again",
        code=ExitCode.SYSTEM,
    )


def _decided_otherwise(pid: int) -> LocalError:
    return LocalError(
        step="the handover",
        object=f"process {pid}",
        cause="the freeze has lasted so long that its custodian has ended it",
        remedy="it runs on here; try again",
        code=ExitCode.TIMEOUT,
    )


def settle(source: FrozenSource) -> None:
    """After COMMIT: no way leads home any more, and no thread leaves a trace in shared memory when it ends.

    Nothing may fail the migration from here on: what cannot be done is left."""
    with contextlib.suppress(ProcessGone, OSError, SyscallFailed):
        sources.settle(source.threads)
        program = Program("retiring")
        retire_rows(program)
        sources.run_in_source(source.threads, dict.fromkeys(source.threads.tids, program))


def forward_signals(committed: Committed, control: ControlChannel) -> None:
    """Send on the signals that have reached the inert source since it was described."""
    source = committed.source
    with contextlib.suppress(ProcessGone, OSError):
        now = tasks.snapshot_pending_signals(source.stopped)
        late = tasks.late_signals(source.stopped, source.pending, now)
        source.pending = now
        for thread, number in late:
            control.post(messages.Signal(thread=thread or 0, number=number))


def leave(committed: Committed, status: int) -> None:
    """Let the source's copy end by its own exit_group(status)."""
    threads = committed.source.threads
    # The others first: a leader is not reaped before all its threads are, and a traced one waits for its tracer.
    for tid in threads.tids[1:]:
        with contextlib.suppress(ProcessGone, OSError):
            tracee.detach(tid)
    program = Program("leaving")
    program.call("exit_group", SYS_exit_group, status, check=False)
    with contextlib.suppress(ProcessGone, OSError, SyscallFailed):
        sources.run_in_source(threads, {threads.pid: program})
