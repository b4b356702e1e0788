"""The source's snapshot of the process: live, everything that is slow; then frozen, only what can have changed.

Nothing here changes the process except `query`, which runs programs in its stopped threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from live_migration.kernel import probe
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.executed_program import ExecutedProgram, executed_program
from live_migration.kernel.injection.address_gap import free_range
from live_migration.kernel.injection.sigreturn_path import Gadgets, find_gadgets, place_frame
from live_migration.kernel.injection.source_threads import (
    MappingRecord,
    SourceThreads,
    choose_end_signal,
    map_stub,
    prepare,
    room_needed,
    run_in_source,
    thread_states,
)
from live_migration.kernel.memory import pagemap
from live_migration.kernel.memory.maps import MapEntry, maps_text, parse_maps
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.tracing import tracee
from live_migration.process import task as tasks
from live_migration.process.attributes.clocks import snapshot_clocks
from live_migration.process.attributes.limits import memory_limit_blockers
from live_migration.process.attributes.prctl import segment_blockers
from live_migration.process.attributes.status import locked_in_status, merges_all, resident_bytes, shared_bytes
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.contents import Content, inodes_without_path, snapshot_contents
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.snapshot import Snapshot, see_and_describe, snapshot_descriptors
from live_migration.process.family import is_32_bit, process_blockers
from live_migration.process.member import Member, Runs
from live_migration.process.memory.bridge import changed_blockers
from live_migration.process.memory.mapped_files import (
    MappedFile,
    mapped_file_blockers,
    snapshot_mapped_files,
    snapshot_mapped_files_live,
    snapshot_written_again,
)
from live_migration.process.memory.mappings import (
    AddressSpace,
    Mapping,
    future_flags,
    is_private_file,
    layout_text,
    mapping_blockers,
    reread,
    snapshot_address_space,
    travelling_bytes,
)
from live_migration.process.memory.shared_memory import shared_memory_blockers
from live_migration.process.migration import MemberParts
from live_migration.process.numbering import Numbering
from live_migration.process.queries import Queries, compose_queries, current_queries, programs_for, replies_of
from live_migration.process.rehearsal import rehearse_description
from live_migration.process.scope import HostScan, Scope, scope_of
from live_migration.process.threads import threads as thread_parts
from live_migration.process.threads.injection import suspend_filters
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import LocalError, Refused
from live_migration.wire.exit_codes import ExitCode

STAGING_PUSH = 1
FINAL_PUSH = 2
PAGE = os.sysconf("SC_PAGESIZE")
STEP = "reading the process"


@dataclass(frozen=True)
class SourceSnapshot:
    """What is known of the running process. `program` tells whether it is still the same; `ours`: flags of its
    mappings that this migration has set; `leftover`: who takes away what lm-serve has in its memory, if that dies;
    `merged`: all its memory is to be merged (prctl(2))."""

    pid: int
    scope: Scope
    numbering: Numbering
    program: ExecutedProgram
    task: tasks.LiveTask
    descriptors: Snapshot
    memory: AddressSpace
    layout: bytes
    executable: str
    files: list[MappedFile]
    gadgets: Gadgets
    end_signal: int
    queries: Queries
    contents: list[Content] = field(default_factory=list)
    pushed: list[Runs] = field(default_factory=list)
    ours: frozenset[str] = frozenset()
    leftover: MappingRecord | None = None
    merged: bool = False

    @property
    def space(self) -> int:
        """The number of its memory in the page stream."""
        return self.numbering.space_of(self.pid)

    def description(self) -> MemberParts:
        """What the destination needs to stage the husk, with the clocks as they are at the call."""
        now = ProcessSnapshot(self.pid)
        member = Member(
            space=self.space,
            place=self.descriptors.table.place,
            executable=self.executable,
            memory=self.memory,
            task=msgspec.structs.replace(self.task.description, clocks=snapshot_clocks(now)),
            session=self.task.session.id,
            descriptors=self.descriptors.table.descriptors,
            resident=resident_bytes(now.status) + shared_bytes(now.status, travelling_bytes(self.memory)),
        )
        return MemberParts(member, self.descriptors.table, self.contents, self.files, self.task.session)


@dataclass(frozen=True)
class QueriedSource:
    """The stopped process, with the replies of its threads, not put together yet. `memory` is that of `SourceSnapshot`
    itself unless the layout has changed since."""

    threads: SourceThreads
    memory: AddressSpace
    stopped: tasks.StoppedTask
    pending: tasks.PendingSignals
    process_replies: tasks.ProcessReplies
    thread_replies: dict[int, bytes]
    future_locks: int


@dataclass
class FrozenSource:
    """The stopped process: its threads with the mapping that programs use in it, and the whole description."""

    threads: SourceThreads
    stopped: tasks.StoppedTask
    pending: tasks.PendingSignals
    descriptors: Snapshot
    description: MemberParts
    blockers: list[Blocker]
    hot: list[Runs]


def snapshot_source(pid: int, seen_by: Sequence[int] = ()) -> tuple[SourceSnapshot, list[Blocker]]:
    """The snapshot of the running process, and all the blockers that the source can find. `seen_by` are witnesses, for
    the freeze (process/threads/landlock.py).

    Raises Refused for a process that cannot be read, LocalError if there is none or no permission."""
    try:
        return _snapshot_source(pid, seen_by)
    except (ProcessGone, FileNotFoundError, ProcessLookupError):
        raise LocalError(
            step=STEP,
            object=f"process {pid}",
            cause="there is no such process",
            remedy="name the id of a running process, as this PID namespace sees it",
            code=ExitCode.NO_PROCESS,
        ) from None
    except PermissionError as error:
        raise _not_permitted(pid, error) from error


def _not_permitted(pid: int, error: OSError) -> LocalError:
    return LocalError(
        step=STEP,
        object=f"process {pid}",
        cause=f"it may not be traced ({os.strerror(error.errno or errno.EPERM)})",
        remedy="run lm-serve as root or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE",
        code=ExitCode.NO_PERMISSION,
    )


def _snapshot_source(pid: int, seen_by: Sequence[int]) -> tuple[SourceSnapshot, list[Blocker]]:
    prepare()
    process, scan = ProcessSnapshot(pid), HostScan(scope_of(pid))
    first = process_blockers(process, scan)
    memory_is_there = "VmSize" in process.status
    if not memory_is_there:
        first = first or [Blocker(f"process {pid}", "it has no memory of its own", "name another process")]
        raise Refused(first, object=f"process {pid}")
    try:
        seen, found = _snapshot_closely(process, scan, seen_by)
        return seen, first + found
    except PermissionError as error:
        if not first:
            raise
        # What is known without the right to read more is reported all the same.
        lack = _not_permitted(pid, error)
        found = [*first, Blocker(lack.object, lack.cause, lack.remedy)]
        raise Refused(found, object=f"process {pid}", code=ExitCode.NO_PERMISSION) from None


def _snapshot_closely(
    process: ProcessSnapshot, scan: HostScan, seen_by: Sequence[int]
) -> tuple[SourceSnapshot, list[Blocker]]:
    pid, numbering = process.pid, Numbering()
    program = executed_program(pid)
    live = tasks.snapshot_task(process)
    descriptors = snapshot_descriptors(process, scan=scan, numbering=numbering)
    merged = merges_all(pid)
    pathless = inodes_without_path(descriptors.table)
    memory, files = snapshot_mapped_files_live(pid, snapshot_address_space(pid, pathless))
    listed = maps_text(pid)
    gadgets = find_gadgets(pid, parse_maps(listed))
    end_signal = choose_end_signal(int(process.status["SigCgt"], 16))
    found = [
        *(Blocker(lack.object, lack.cause, lack.remedy) for lack in probe.source_lacks(pid)),
        *tasks.task_blockers(live, scan),
        *mapping_blockers(memory, pathless),
        *mapped_file_blockers(files),
        *shared_memory_blockers(memory, descriptors.table, scan),
    ]
    # Code for another kind of processor says nothing here.
    if not is_32_bit(process):
        found += [*changed_blockers(pid, memory.vdso), *_sigreturn_path_blockers(pid, gadgets, end_signal)]
    return (
        SourceSnapshot(
            pid,
            scan.scope,
            numbering,
            program,
            live,
            descriptors,
            memory,
            layout_text(listed, memory, pathless),
            process.executable,
            files,
            gadgets or Gadgets(0, 0),
            end_signal or 0,
            compose_queries(live.description.timers.posix_timers, seen_by),
            snapshot_contents(descriptors.table, numbering),
            merged=merged,
        ),
        found,
    )


def certain_blockers(seen: SourceSnapshot) -> list[Blocker]:
    """The blockers of descriptors that no option of the destination removes."""
    return descriptor_blockers(seen.descriptors.table, DescriptorOptions(tcp="close"))


def check_blockers(seen: SourceSnapshot) -> list[Blocker]:
    """All the blockers of descriptors, as a destination without options has them."""
    return descriptor_blockers(seen.descriptors.table, DescriptorOptions(tcp="refuse"))


def _sigreturn_path_blockers(pid: int, gadgets: Gadgets | None, end_signal: int | None) -> list[Blocker]:
    found = []
    if gadgets is None:
        found.append(
            Blocker(
                f"program text of process {pid}",
                "has no `syscall; ret` or no rt_sigreturn code, by which a thread gets home without a tracer",
                "link the program with a C library",
            )
        )
    if end_signal is None:
        found.append(
            Blocker(
                f"signal handlers of process {pid}",
                "SIGURG, SIGWINCH and SIGCHLD all have one, so that no signal is left to tell the end of a program",
                "leave one of the three at its default action",
            )
        )
    return found


def changed_file_pages(pid: int, memory: AddressSpace) -> list[Runs]:
    """The pages that cannot be paged on demand: of private file mappings those that differ from the file; of shared
    memory all, since page tables do not tell which of them exist. Raises ProcessGone, OSError."""
    eager = memory.eager
    found = pagemap.changed_runs(pid, [(m.start, m.end) for m in eager if is_private_file(m)])
    found += [(m.start, m.end) for m in eager if not is_private_file(m)]
    return [Runs(start, (end - start) // PAGE) for start, end in found]


def no_longer(before: list[Runs], now: list[Runs]) -> list[Runs]:
    """The pages that are in `before` and not in `now`, one by one."""
    still = {page for runs in now for page in range(runs.address, runs.address + runs.pages * PAGE, PAGE)}
    return [
        Runs(page, 1)
        for runs in before
        for page in range(runs.address, runs.address + runs.pages * PAGE, PAGE)
        if page not in still
    ]


def _of_private_files(runs: list[Runs], memory: AddressSpace) -> list[Runs]:
    """The pages that belong to private file mappings now: when they are dropped, they show the file again. Where there
    is other memory by now, there is no copy of them, and something else would be dropped."""
    files = memory.private_files
    found = []
    for run in runs:
        end = run.address + run.pages * PAGE
        for mapping in files[max(0, bisect(files, run.address, key=lambda one: one.start) - 1) :]:
            if mapping.start >= end:
                break
            low, high = max(run.address, mapping.start), min(end, mapping.end)
            if low < high:
                found.append(Runs(low, (high - low) // PAGE))
    return found


def query(seen: SourceSnapshot, stops: list[tracee.Stop], threads: SourceThreads) -> QueriedSource:
    """Run one program in each of the stopped threads; `threads` were read before.

    Raises ProcessGone, OSError, SyscallFailed, Refused; the caller brings the threads home and takes the mapping
    away."""
    process, pid, tids = ProcessSnapshot(seen.pid), seen.pid, threads.tids
    stopped = tasks.snapshot_stopped_task(process, stops, seen.task, _stopped_threads(threads))
    if stopped.blockers:
        raise Refused(stopped.blockers, object=f"process {pid}", step="the frozen process")
    suspend_filters(tids, stopped.chains)
    queries = current_queries(seen.queries, process)
    programs = programs_for(queries, tids)
    memory = present_memory(seen, process)
    frame = frame_of(pid, seen, memory.mappings)
    length = room_needed(threads, programs)
    with room_refused(pid, length):
        map_stub(threads, seen.gadgets, frame, free_range(memory.extents, length), length)
    future_locks = locks_to_come(pid, memory)
    outcomes = run_in_source(threads, programs)
    pending = tasks.snapshot_pending_signals(stopped)
    of_process, of_threads = replies_of(queries, tids, outcomes)
    return QueriedSource(threads, memory, stopped, pending, of_process, of_threads, future_locks)


def locks_to_come(pid: int, memory: AddressSpace) -> int:
    """The flags with which a stopped process has said that mappings to come are to be locked (mlockall(2)); 0 for none.

    The stub, which has just been mapped, tells, for no call does. Nothing is asked where nothing else is locked. Raises
    ProcessGone."""
    if not memory.locked_bytes or locked_in_status(ProcessSnapshot(pid).status_text) <= memory.locked_bytes:
        return 0
    return future_flags(memory)


def present_memory(seen: SourceSnapshot, process: ProcessSnapshot) -> AddressSpace:
    """The layout as it is now: `seen.memory` itself unless something has changed. Raises ProcessGone, OSError."""
    layout, pathless = maps_text(seen.pid), inodes_without_path(seen.descriptors.table)
    memory = seen.memory
    if layout != seen.layout:
        memory = reread(seen.pid, parse_maps(layout), seen.memory, pathless, seen.ours)
    if memory.locked_bytes != locked_in_status(process.status_text) or merges_all(seen.pid) != seen.merged:
        # What was locked or let go, or is to be merged, as a whole does not show in the layout.
        anew = snapshot_address_space(seen.pid, pathless, seen.ours)
        memory = msgspec.structs.replace(seen.memory, mappings=anew.mappings, named=anew.named)
    return memory


WRITE_EXECUTE_DENIED = Blocker(
    object="the process",
    cause="it may have no memory that is written to and executed (PR_SET_MDWE), and the move needs some for a moment",
    remedy="run the program without it (systemd: MemoryDenyWriteExecute=no)",
)
"""mmap(2) answers EACCES: no file of /proc shows the setting, and only the process itself can be asked."""


@contextlib.contextmanager
def room_refused(pid: int, length: int) -> Iterator[None]:
    """If the process has no room for the `length` bytes of a stub, raise Refused with the name of the limit that is
    reached, or of what forbids such memory. Other errors pass."""
    try:
        yield
    except OSError as error:
        found = memory_limit_blockers(ProcessSnapshot(pid), length) if error.errno == errno.ENOMEM else []
        if error.errno == errno.EACCES:
            found = [WRITE_EXECUTE_DENIED]
        if not found:
            raise
        raise Refused(found, object=f"process {pid}", step=STEP) from None


def describe_stopped(seen: SourceSnapshot, queried: QueriedSource) -> FrozenSource:
    """Put together the threads' replies and what can be read of the stopped process from outside.

    Raises ProcessGone, OSError."""
    process, pid = queried.stopped.process, seen.pid
    memory, same = queried.memory, queried.memory is seen.memory
    task = tasks.complete_task(
        queried.stopped, queried.pending, queried.process_replies, queried.thread_replies, _paths(memory)
    )
    attributes = msgspec.structs.replace(task.attributes, future_locks=queried.future_locks)
    task = msgspec.structs.replace(task, attributes=attributes)
    scan = HostScan(seen.scope)
    descriptors = snapshot_descriptors(process, seen.descriptors, frozen=True, scan=scan)
    changed = changed_file_pages(pid, memory)
    if same:
        files = snapshot_written_again(pid, seen.files, memory.mappings)
    else:
        files = snapshot_mapped_files(pid, memory.mappings)
    member = Member(
        space=seen.space,
        place=descriptors.table.place,
        executable=seen.executable,
        memory=memory,
        task=task,
        session=queried.stopped.session.id,
        descriptors=descriptors.table.descriptors,
        changed=changed,
        dropped=no_longer(_of_private_files(seen.pushed, memory), changed),
    )
    contents = snapshot_contents(descriptors.table, seen.numbering)
    description = MemberParts(member, descriptors.table, contents, files, queried.stopped.session)
    blockers = tasks.frozen_blockers(task, queried.thread_replies, process, scan)
    blockers += segment_blockers(queried.process_replies.replies)
    pathless = inodes_without_path(descriptors.table)
    # A file without a path may have lost its descriptor while its mapping stays.
    if not same or pathless != inodes_without_path(seen.descriptors.table):
        blockers += mapping_blockers(memory, pathless)
    hot = hot_runs(member)
    return FrozenSource(queried.threads, queried.stopped, queried.pending, descriptors, description, blockers, hot)


def rehearse(seen: SourceSnapshot) -> None:
    """Do once, for nothing, what is done while the process is frozen: code that has not run for a while runs much
    slower.

    It changes nothing in the running process, and never fails: the freeze will say what is wrong."""
    with contextlib.suppress(OSError, ProcessGone):
        process = ProcessSnapshot(seen.pid)
        present_memory(seen, process)
        programs_for(current_queries(seen.queries, process), list(seen.task.outside))
        free_range(seen.memory.extents, PAGE)
        rehearse_description(seen.task, seen.queries, HostScan(seen.scope))
        see_and_describe(process, seen.descriptors, frozen=False).close()
        changed = changed_file_pages(seen.pid, seen.memory)
        no_longer(seen.pushed, changed)
        snapshot_contents(seen.descriptors.table, seen.numbering)
        snapshot_written_again(seen.pid, seen.files, seen.memory.mappings)
        hot_runs(seen.description().member)


def _stopped_threads(threads: SourceThreads) -> list[thread_parts.StoppedThread]:
    """The threads as process/ knows them, from what was read at the freeze."""
    return [
        thread_parts.stopped_thread(tid, state.registers, state.xstate, state.signal_mask, state.rseq)
        for tid, state in zip(threads.tids, thread_states(threads), strict=True)
    ]


def _paths(memory: AddressSpace) -> Callable[[int], str]:
    """A function that tells, for an address, the path of the file that is mapped there, "" for none."""

    def path_at(address: int) -> str:
        return next((one.path for one in memory.mappings if one.start <= address < one.end), "")

    return path_at


def frame_of(pid: int, seen: SourceSnapshot, mappings: Sequence[Mapping | MapEntry]) -> int:
    """Where the leader's frame may stand during its remote syscalls. `mappings` are the present ones: a stack grows.

    Raises LocalError, ProcessGone, OSError."""
    # The stack is one of the last mappings.
    stack = next(((one.start, one.end) for one in reversed(mappings) if one.path == "[stack]"), None)
    place = place_frame(pid, seen.gadgets, stack)
    if place is not None:
        return place
    raise LocalError(
        step="freezing",
        object=f"process {pid}",
        cause="its first stack is full to the last page and does not grow, and no program text has unused room",
        remedy="run lm-serve with a larger stack limit (ulimit -s), or try again when the stack is less deep",
    )


def hot_runs(member: Member) -> list[Runs]:
    """The pages, in memory that is paged on demand, that the threads and the kernel for them touch first."""
    pages: set[int] = set()
    for thread in member.task.threads:
        for address, length in thread_parts.hot_addresses(thread):
            pages.update(range(address & -PAGE, address + length, PAGE))
    paged = member.memory.paged_on_demand
    starts = [mapping.start for mapping in paged]
    found: list[list[int]] = []
    for address in sorted(pages):
        after = bisect(starts, address)
        if not after or address >= paged[after - 1].end:
            continue
        is_next = found and address == found[-1][0] + found[-1][1] * PAGE
        if is_next and address > paged[after - 1].start:
            found[-1][1] += 1
        else:
            found.append([address, 1])
    return [Runs(address, count) for address, count in found]
