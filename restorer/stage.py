"""Filling the husk: first from the live description, with all the time in the world, then with what differs, frozen.

Steps that are slow or can fail are done while staging. The final part changes only what differs, and leaves nothing to
do but to let the threads run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from live_migration.kernel.arch.arch import Registers
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.side_by_side import run_each_in_husk
from live_migration.kernel.injection.syscall_numbers import (
    SYS_close,
    SYS_exit,
    SYS_fcntl,
    SYS_getpid,
    SYS_madvise,
    SYS_pidfd_getfd,
    SYS_setsid,
)
from live_migration.kernel.injection.userfaultfd import take_userfaultfd
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.opening import open_as
from live_migration.kernel.tracing import tracee
from live_migration.process import task_restore
from live_migration.process.attributes import clocks, limits, prctl, timers
from live_migration.process.attributes.credentials import Credentials
from live_migration.process.attributes.signals import sent_after_resume
from live_migration.process.descriptors.blockers import descriptor_blockers
from live_migration.process.descriptors.contents import Content, number_of_inode
from live_migration.process.descriptors.open_file import close_all
from live_migration.process.descriptors.opening import (
    OpenedDescriptors,
    descriptor_changes,
    seal_descriptors,
    update_descriptors,
)
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.rows import descriptor_rows, last_rows
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.member import Member
from live_migration.process.memory.bridge import is_needed, plan_bridge
from live_migration.process.memory.layout_change import layout_difference
from live_migration.process.memory.mapped_files import open_mapped_file
from live_migration.process.memory.mappings import AddressSpace, Mapping
from live_migration.process.memory.rows import Fetched, access_of, lock_rows, unmergeable_rows
from live_migration.process.rehearsal import rehearse_restoring
from live_migration.process.threads import interrupted
from live_migration.process.threads import restore as thread_restore
from live_migration.process.threads.filters import Filter, common_chain, restore_filter
from live_migration.process.threads.threads import Thread, whole_xstate
from live_migration.restorer.custody import Custody
from live_migration.restorer.descriptor_install import (
    Installed,
    install_rows,
    keep_pidfd_rows,
    lowest_free,
    remove_rows,
)
from live_migration.restorer.husk import Husk, drop_area, empty_rows, layout_rows, make_area, run
from live_migration.restorer.husk_process import HuskProcess
from live_migration.restorer.kernel_mappings import write_bridge

DONTNEED = 4
CAP_SYS_RESOURCE = 24
PAGE = os.sysconf("SC_PAGESIZE")
NOTHING = AddressSpace(mappings=[])
REHEARSED = 8
"""So many mappings and descriptors stand for all in a rehearsal."""


@dataclass
class Construction:
    """A husk and what has been put into it: the `staged` member with its `table` of descriptors. `threads`: id inside
    the process -> id for this host.

    `warnings` are sentences on what the moved process has less of here."""

    husk: Husk
    options: DescriptorOptions
    staged: Member
    table: DescriptorTable
    opened: OpenedDescriptors
    offsets: clocks.Offsets | None
    present: Credentials
    may_raise: bool
    restore_ids: bool
    threads: dict[int, int] = field(default_factory=dict)
    userfaultfd: int = -1
    warnings: list[str] = field(default_factory=list)


def stage(
    process: HuskProcess,
    member: Member,
    table: DescriptorTable,
    options: DescriptorOptions,
    opened: OpenedDescriptors,
) -> Construction:
    """Fill the freshly started, stopped husk with a member, whose `table` of descriptors is `opened` here.

    The husk holds a pidfd of this process and no other descriptor. Raises SyscallFailed, OSError, ProcessGone.
    """
    pid = process.pid
    husk = Husk(pid, make_area(pid, [member.memory]), process.pidfd_number)
    present, restore_ids = task_restore.present_credentials(), timers.ids_can_be_chosen()
    may_raise = bool(present.effective >> CAP_SYS_RESOURCE & 1)
    building = Construction(husk, options, member, table, opened, process.offsets, present, may_raise, restore_ids)
    _empty(building)
    _plan(building)
    _install(building, None, opened.part_of(table))
    _lay_out(building, NOTHING, member.memory, table)
    building.warnings += limits.restore_outside(pid, member.task.limits)
    building.userfaultfd = take_userfaultfd(pid)
    building.threads = {member.task.pid: pid}
    _create_threads(building, [thread.tid for thread in member.task.threads[1:]])
    _stage_threads(building)
    _install_filters(building)
    reachable = limits.reachable(member.task.limits.limits, limits.present_limits(pid), may_raise)
    building.warnings += task_restore.warnings(member.task, present, reachable)
    return building


def _stage_threads(building: Construction) -> None:
    """Rows for which the live description is enough, so that little is left for the final step."""
    task = building.staged.task
    programs = {}
    for thread in task.threads:
        programs[building.threads[thread.tid]] = program = Program(f"staging thread {thread.tid}")
        if thread is task.threads[0]:
            map_path = building.options.map_bytes
            task_restore.restore_process(program, task, map_path, building.restore_ids, final=False)
        thread_restore.restore_thread(program, thread, task.pid, building.present, final=False)
    # The first one sets actions of signals, which drops pending signals of that number in all threads (sigaction(2)):
    # among them may be the one with which another thread's program reports its end.
    run(building.husk, programs.pop(building.husk.pid))
    run_each_in_husk(building.husk.area, programs)


def _install_filters(building: Construction) -> None:
    """Give the threads their seccomp filters, which count for none of our calls as long as this process traces them.
    What all have in common is set for all by the first, which makes later threads, too."""
    task = building.staged.task
    if not task.filters:
        return
    for tid in building.threads.values():
        tracee.set_options(tid, tracee.TRACESYSGOOD | tracee.EXITKILL | tracee.SUSPEND_SECCOMP)
    common = common_chain(thread.filters for thread in task.threads)
    for place in common:
        _install_filter(building, task.pid, task.filters[place], for_all=True)
    for thread in task.threads:
        for place in thread.filters[len(common) :]:
            _install_filter(building, thread.tid, task.filters[place])


def _install_filter(building: Construction, tid: int, one: Filter, *, for_all: bool = False) -> None:
    """One program for each: a filter may be large."""
    program = Program(f"a filter of thread {tid}")
    restore_filter(program, one, for_all=for_all)
    run(building.husk, program, building.threads[tid])


def _empty(building: Construction) -> None:
    husk, memory = building.husk, building.staged.memory
    kept = (husk.area.address, husk.area.address + 3 * husk.area.size)
    bridge = plan_bridge(maps(husk.pid), kept, memory) if is_needed(memory) else None
    program = Program("emptying the husk")
    program.call("setsid", SYS_setsid, check=False)
    empty_rows(program, husk.pid, husk.area, memory, bridge)
    run(husk, program)
    if bridge is not None:
        run(husk, write_bridge(husk.pid, bridge))


def _installed(building: Construction, table: DescriptorTable, numbers: Iterable[int]) -> list[Installed]:
    wanted = frozenset(numbers)
    return [
        Installed(entry.number, building.opened.numbers[entry.open_file], entry.close_on_exec)
        for entry in table.descriptors
        if entry.number in wanted
    ]


def _install(building: Construction, staged: DescriptorTable | None, final: DescriptorTable) -> None:
    """Bring the husk's descriptors to those of `final`."""
    husk = building.husk
    changes = descriptor_changes(staged, final)
    if staged is not None and not (changes.close or changes.install or changes.close_on_exec):
        return
    program = Program("installing descriptors")
    remove_rows(program, husk.numbers, changes.close)
    highest = max((entry.number for entry in final.descriptors), default=0)
    if staged is None or highest >= husk.pidfd_of_worker:
        husk.numbers.discard(husk.pidfd_of_worker)
        husk.pidfd_of_worker = keep_pidfd_rows(program, husk.pidfd_of_worker, highest)
        husk.numbers.add(husk.pidfd_of_worker)
    install_rows(
        program,
        husk.pidfd_of_worker,
        husk.numbers,
        _installed(building, final, (entry.number for entry in changes.install)),
    )
    for entry in changes.close_on_exec:
        flag = fcntl.FD_CLOEXEC if entry.close_on_exec else 0
        program.call(f"descriptor {entry.number}", SYS_fcntl, entry.number, fcntl.F_SETFD, flag)
    run(husk, program)


def _lay_out(building: Construction, before: AddressSpace, after: AddressSpace, table: DescriptorTable) -> None:
    """Change the husk's layout to the described one. `table` leads to files without a path."""
    change = layout_difference(before, after)
    if not (change.unmap or change.make or change.protect):
        return
    program = Program("laying out the memory")
    opened: dict[tuple[str, int, bool], int] = {}
    second = False

    def file_of(mapping: Mapping) -> Fetched:
        """Two in turns: the kernel makes one mapping of two that are side by side and lead to one open file."""
        nonlocal second
        second = not second
        path, access = building.options.map_path(mapping.path), access_of(mapping)
        if (path, access, second) not in opened:
            opened[path, access, second] = open_mapped_file(path, access)
        return Fetched(building.husk.pidfd_of_worker, opened[path, access, second])

    try:
        layouts = (before, after)
        layout_rows(program, building.husk, change, layouts, file_of, lambda inode: number_of_inode(table, inode))
        run(building.husk, program)
    finally:
        close_all(opened.values())


def _plan(building: Construction) -> None:
    """Tell the kernel where code and heap are, and what the executable is; only in the end, where the arguments are.

    Anyone who lists processes reads the arguments, and reading missing memory makes pages there: a zero page, or a page
    of the source that is not final."""
    program = Program("placing code and heap")
    path = building.options.map_path(building.staged.executable)
    number = lowest_free(building.husk.numbers)
    executable = open_as(stat.S_IFREG, path, os.O_RDONLY)
    try:
        program.call(f"fetch {path}", SYS_pidfd_getfd, building.husk.pidfd_of_worker, executable, 0)
        prctl.restore_memory_plan(program, building.staged.task.memory_plan.without_arguments(), number)
        program.call("close the executable", SYS_close, number)
        run(building.husk, program)
    finally:
        os.close(executable)


def _create_threads(building: Construction, tids: list[int]) -> None:
    """Make threads with these ids, and learn their ids for this host."""
    if not tids:
        return
    program = Program("making threads")
    thread_restore.create_threads(program, tids)
    run(building.husk, program)
    pid = building.husk.pid
    known = frozenset(building.threads.values())
    for name in os.listdir(f"/proc/{pid}/task"):
        host_tid = int(name)
        if host_tid not in known:
            tracee.wait(host_tid)
            building.threads[_inner_id(pid, host_tid)] = host_tid


def _inner_id(pid: int, host_tid: int) -> int:
    """A thread's id in its innermost PID namespace (NSpid, proc_pid_status(5))."""
    with open(f"/proc/{pid}/task/{host_tid}/status", errors="replace") as status:
        for line in status:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    raise ProcessGone(host_tid)


def content_descriptor(building: Construction, content: Content) -> int:
    """Where the content of a file without a path goes. Content that nobody needs (on one machine the source's own file
    is used) goes to a file that is thrown away.
    """
    wanted = building.opened.content_wanted.get((content.device, content.inode))
    if wanted is not None:
        return wanted
    scratch = os.memfd_create("unwanted")
    building.opened.context.close_later.append(scratch)
    return scratch


def apply_layout(building: Construction, final: Member, table: DescriptorTable) -> None:
    """The first part of the final step: memory and descriptors as they are at the source now.

    Raises SyscallFailed, OSError."""
    before = building.opened.part_of(building.table)
    building.opened.context.monotonic = clocks.monotonic_since(final.task.clocks, building.offsets)
    update_descriptors(building.opened, table)
    _install(building, before, table)
    _lay_out(building, building.staged.memory, final.memory, table)
    _drop_unchanged(building, final)


def rehearse(building: Construction) -> None:
    """Do once, for nothing, what the final step does: code that has not run for a while runs much slower. It changes
    nothing, and takes no longer for a larger process: the source is being frozen meanwhile.

    Raises SyscallFailed, OSError."""
    staged = building.staged
    few = first_of(building.table, REHEARSED)
    descriptor_blockers(few, building.options)
    descriptor_changes(few, few)
    memory = AddressSpace(mappings=staged.memory.mappings[:REHEARSED])
    layout_difference(memory, memory)
    rehearse_restoring(staged.task, building.present, building.restore_ids)
    program = Program("rehearsal")
    program.call("getpid", SYS_getpid)
    run(building.husk, program)


def first_of(table: DescriptorTable, count: int) -> DescriptorTable:
    """The first open files of a table, with their descriptors."""
    open_files = table.open_files[:count]
    identities = {one.identity for one in open_files}
    descriptors = [one for one in table.descriptors if one.open_file in identities]
    return msgspec.structs.replace(table, open_files=open_files, descriptors=descriptors)


def follow_layout(building: Construction, memory: AddressSpace) -> None:
    """While the source runs: follow the new layout of its memory. Raises SyscallFailed, OSError."""
    _lay_out(building, building.staged.memory, memory, building.table)
    building.staged = msgspec.structs.replace(building.staged, memory=memory)


def _drop_unchanged(building: Construction, final: Member) -> None:
    """Drop the copies of file pages that were changed when they were pushed and are the file's again."""
    if final.dropped:
        program = Program("dropping pages")
        for dropped in final.dropped:
            program.call(
                f"drop {dropped.address:x}", SYS_madvise, dropped.address, dropped.pages * PAGE, DONTNEED, check=False
            )
        run(building.husk, program)


def apply_threads(building: Construction, final: Member, table: DescriptorTable, custody: Custody) -> None:
    """The second part, when hot and eager pages are in place: threads, signals, timers, credentials, registers.

    Afterwards the programs' memory is gone and every thread is parked: stopped in its final state except for registers
    and mask, which the custody has."""
    task = final.task
    building.warnings += limits.restore_outside(building.husk.pid, task.limits, building.staged.task.limits)
    _match_threads(building, task.threads)
    locks = Program("locking memory")
    for mapping in final.memory.mappings:
        lock_rows(locks, mapping)
    if len(locks):
        run(building.husk, locks)
    leader, *others = task.threads
    staged = {thread.tid: thread for thread in building.staged.task.threads}
    restored = {building.threads[thread.tid]: (thread, staged.get(thread.tid)) for thread in others}
    programs = thread_restore.restore_threads(restored, task.pid, building.present)
    run_each_in_husk(building.husk.area, programs)
    program = Program(f"restoring process {task.pid}")
    prctl.restore_memory_plan(program, task.memory_plan, None)
    map_path = building.options.map_bytes
    task_restore.restore_process(program, task, map_path, building.restore_ids, building.staged.task)
    program.call("close the worker's pidfd", SYS_close, building.husk.pidfd_of_worker)
    descriptor_rows(program, table)
    seal_descriptors(building.opened, table)
    # An end that is closed here is news to the other one, of which the process would get a signal (O_ASYNC).
    building.opened.close()
    present = limits.present_limits(building.husk.pid)
    reachable = limits.reachable(task.limits.limits, present, building.may_raise)
    task_restore.limit_process(program, task, reachable, present)
    thread_restore.restore_thread(program, leader, task.pid, building.present, staged[leader.tid])
    last_rows(program, table, building.opened.handed_over)
    elapsed = clocks.elapsed_since(task.clocks, building.offsets)
    task_restore.finish_process(program, task, elapsed)
    if task.attributes.memory_merge:
        unmergeable_rows(program, final.memory.mappings)
    run(building.husk, program)
    final_registers = [(thread, _final_registers(building, thread, elapsed)) for thread in task.threads]
    drop_area(building.husk)
    for place, (thread, registers) in enumerate(final_registers):
        tid = building.threads[thread.tid]
        tracee.set_xstate(tid, whole_xstate(thread))
        custody.park(place, tid, registers, thread.signal_mask)
    queues = [(thread.tid, thread.pending) for thread in task.threads]
    waiting = sent_after_resume(task.signals, queues)
    custody.send_first([(0 if tid is None else building.threads[tid], number) for tid, number in waiting])


def _match_threads(building: Construction, wanted: tuple[Thread, ...]) -> None:
    """End the threads that the source does not have any more, and make the new ones."""
    tids = [thread.tid for thread in wanted]
    for tid in set(building.threads) - set(tids):
        program = Program(f"ending thread {tid}")
        program.call("exit", SYS_exit, 0)
        with contextlib.suppress(ProcessGone):
            run(building.husk, program, building.threads[tid])
        del building.threads[tid]
    new = [thread for thread in wanted if thread.tid not in building.threads]
    _create_threads(building, [thread.tid for thread in new])
    # They have begun with those of the first.
    begun = len(building.staged.task.threads[0].filters)
    for thread in new:
        for place in thread.filters[begun:]:
            _install_filter(building, thread.tid, building.staged.task.filters[place])


def _final_registers(building: Construction, thread: Thread, elapsed: int) -> Registers:
    registers = Registers(thread.registers)
    if thread.call is None:
        return registers
    tid = building.threads[thread.tid]
    return interrupted.continue_call(tid, building.husk.area, thread.call, registers, elapsed)
