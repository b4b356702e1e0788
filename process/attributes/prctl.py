"""What prctl(2) and membarrier(2) keep of a process, and what /proc tells of its memory's plan (PR_SET_MM_MAP)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Container

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Data, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot, parse_stat, read_file
from live_migration.process.attributes.membarrier import query_registrations, restore_registrations
from live_migration.wire.blockers import Blocker

DUMPABLE_ONLY_TO_ROOT = 2  # fs.suid_dumpable; prctl(2) gives only 0 or 1
NO_FILE = 0xFFFFFFFF
LAYING_OUT_SECONDS = 1.0
FUTEX_HASH_SET_SLOTS, FUTEX_HASH_GET_SLOTS = 1, 2  # prctl(2), PR_FUTEX_HASH
FEWEST_FUTEX_SLOTS, FUTEX_SLOTS_PER_THREAD = 16, 4
TIMER_IDS_GET = 2
"""The question that PR_TIMER_CREATE_RESTORE_IDS answers; 1 switches on, 0 off."""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where code, data, heap, stack, arguments and environment are (prctl(2), PR_SET_MM_MAP), and the auxiliary vector.

    `program_break` is exact only when it comes from the process itself.
    """

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_break: int
    program_break: int
    start_stack: int
    start_arguments: int
    end_arguments: int
    start_environment: int
    end_environment: int
    auxiliary_vector: bytes

    def without_arguments(self) -> MemoryPlan:
        """The same with no command line and no environment to be read (proc_pid_cmdline(5))."""
        place = self.start_stack
        return msgspec.structs.replace(
            self, start_arguments=place, end_arguments=place, start_environment=place, end_environment=place
        )


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """One per process: replies of prctl(2). `future_locks` are the flags of mlockall(2) for mappings to come."""

    dumpable: int = 1
    subreaper: int = 0
    huge_pages_disabled: int = 0
    write_execute_denied: int = 0
    memory_merge: int = 0
    membarrier: int = 0
    futex_slots: int = 0
    timer_ids_restored: int = 0
    future_locks: int = 0


def snapshot_memory_plan(process: ProcessSnapshot) -> MemoryPlan:
    """The plan from /proc/PID/stat and /proc/PID/auxv; the break is the start of the heap, until the process itself
    tells it.

    Raises PermissionError without the right to trace: /proc/PID/stat then shows 1 and zeros. Raises OSError when
    execve(2) does not come to an end.
    """
    fields = _laid_out_stat(process)

    def field(number: int) -> int:
        return int(fields[number - 1])

    if field(26) == 1:
        raise PermissionError(f"the memory's plan of process {process.pid} is hidden: no permission to trace it")
    return MemoryPlan(
        start_code=field(26),
        end_code=field(27),
        start_data=field(45),
        end_data=field(46),
        start_break=field(47),
        program_break=field(47),
        start_stack=field(28),
        start_arguments=field(48),
        end_arguments=field(49),
        start_environment=field(50),
        end_environment=field(51),
        auxiliary_vector=process.read("auxv"),
    )


def _laid_out_stat(process: ProcessSnapshot) -> list[str]:
    """The fields of a program that is laid out: execve(2) gives a process its new memory first, and its plan, of which
    the break is the last, when all is mapped (load_elf_binary, fs/binfmt_elf.c)."""
    until = time.monotonic() + LAYING_OUT_SECONDS
    fields = process.stat
    while True:
        if int(fields[25]) == 1 or (int(fields[25]) and int(fields[46])):
            return fields
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, f"execve(2) of process {process.pid} has not come to an end")
        time.sleep(0.001)
        fields = parse_stat(read_file(process.pid, "stat"))


def _field(place: Data, name: str) -> Data:
    return place + int(ffi.offsetof("lm_process_replies", name))


def query_attributes(program: Program, place: Data, left_out: Container[int] = ()) -> None:
    """Rows that query the process's settings; `place` takes one lm_process_replies. Calls that are `left_out` are not
    made."""
    subreaper = _field(place, "subreaper")
    label = "PR_GET_CHILD_SUBREAPER"
    program.call(label, numbers.SYS_prctl, int(lib.PR_GET_CHILD_SUBREAPER), subreaper, 0, 0, 0, check=False)
    for name, option, argument in (
        ("dumpable", "PR_GET_DUMPABLE", 0),
        ("huge_pages_disabled", "PR_GET_THP_DISABLE", 0),
        ("write_execute_denied", "PR_GET_MDWE", 0),
        ("memory_merge", "PR_GET_MEMORY_MERGE", 0),
        ("futex_slots", "PR_FUTEX_HASH", FUTEX_HASH_GET_SLOTS),
        ("timer_ids_restored", "PR_TIMER_CREATE_RESTORE_IDS", TIMER_IDS_GET),
    ):
        number = int(getattr(lib, option))
        result = program.call(option, numbers.SYS_prctl, number, argument, 0, 0, 0, check=False)
        program.store(_field(place, name), result)
    program.store(_field(place, "program_break"), program.call("brk", numbers.SYS_brk, 0))
    if numbers.SYS_modify_ldt not in left_out:
        result = program.call("modify_ldt", numbers.SYS_modify_ldt, 0, program.reserve(8), 8, check=False)
        program.store(_field(place, "segments"), result)
    program.store(_field(place, "membarrier"), query_registrations(program))


def reply_attributes(replies: bytes) -> Attributes:
    """What `query_attributes` brought. A setting this kernel lacks counts as 0."""
    reply = ffi.cast("lm_process_replies *", ffi.from_buffer(replies))
    return Attributes(
        dumpable=max(0, reply.dumpable),
        subreaper=reply.subreaper,
        huge_pages_disabled=max(0, reply.huge_pages_disabled),
        write_execute_denied=max(0, reply.write_execute_denied),
        memory_merge=max(0, reply.memory_merge),
        membarrier=max(0, reply.membarrier),
        futex_slots=max(0, reply.futex_slots),
        timer_ids_restored=max(0, reply.timer_ids_restored),
    )


def segment_blockers(replies: bytes) -> list[Blocker]:
    """A blocker if the process has segments of its own, by what `query_attributes` brought."""
    if int(ffi.cast("lm_process_replies *", ffi.from_buffer(replies)).segments) <= 0:
        return []
    cause = "it has segments of its own (modify_ldt(2))"
    return [Blocker("the process", cause, "programs that run 16-bit or 32-bit code so (Wine) cannot be moved")]


def reply_break(replies: bytes) -> int:
    """The exact program break that `query_attributes` brought."""
    return int(ffi.cast("lm_process_replies *", ffi.from_buffer(replies)).program_break)


def usual_futex_slots(threads: int) -> int:
    """The size of the futex hash that the kernel gives a process with so many threads on this host
    (futex_hash_allocate_default in the kernel's kernel/futex/core.c); 0 stands for the hash that all processes share.
    """
    if threads < 2:
        return 0
    wanted = FUTEX_SLOTS_PER_THREAD * min(threads, os.cpu_count() or 1)
    return max(FEWEST_FUTEX_SLOTS, 1 << (wanted - 1).bit_length())


def restore_attributes(program: Program, attributes: Attributes, threads: int) -> None:
    """Rows for the first of `threads` threads, after the credentials, whose change resets dumpable (prctl(2)).

    The kernel itself sets "dumpable to root alone" when credentials change; prctl refuses that value, so 0, which
    allows no more, stands in for it.
    """

    def prctl(option: str, *arguments: int) -> None:
        program.call(option, numbers.SYS_prctl, int(getattr(lib, option)), *(*arguments, 0, 0, 0, 0)[:4])

    dumpable = 0 if attributes.dumpable == DUMPABLE_ONLY_TO_ROOT else attributes.dumpable
    prctl("PR_SET_DUMPABLE", dumpable)
    if attributes.subreaper:
        prctl("PR_SET_CHILD_SUBREAPER", 1)
    # Set in any case: a process starts with the value of its parent, and here rounds have set their own.
    prctl("PR_SET_THP_DISABLE", attributes.huge_pages_disabled & 1, attributes.huge_pages_disabled & ~1)
    if attributes.write_execute_denied:
        prctl("PR_SET_MDWE", attributes.write_execute_denied)
    if attributes.memory_merge:
        prctl("PR_SET_MEMORY_MERGE", attributes.memory_merge)
    # The kernel's own size may grow with further threads, a chosen one never does.
    if attributes.futex_slots and attributes.futex_slots != usual_futex_slots(threads):
        label = "PR_FUTEX_HASH"
        number = int(lib.PR_FUTEX_HASH)
        program.call(
            label, numbers.SYS_prctl, number, FUTEX_HASH_SET_SLOTS, attributes.futex_slots, 0, 0, check=False
        )
    if attributes.timer_ids_restored:
        prctl("PR_TIMER_CREATE_RESTORE_IDS", 1)
    restore_registrations(program, attributes.membarrier)


def restore_memory_plan(program: Program, plan: MemoryPlan, exe: int | None) -> None:
    """The row that tells the kernel the plan, with descriptor `exe` of the husk as its executable; None keeps the
    present one.

    The husk's own executable must be unmapped by then. See prctl(2), PR_SET_MM_MAP.
    """
    wanted = ffi.new("lm_memory_map *")
    wanted.start_code, wanted.end_code = plan.start_code, plan.end_code
    wanted.start_data, wanted.end_data = plan.start_data, plan.end_data
    wanted.start_brk, wanted.brk = plan.start_break, plan.program_break
    wanted.start_stack = plan.start_stack
    wanted.arg_start, wanted.arg_end = plan.start_arguments, plan.end_arguments
    wanted.env_start, wanted.env_end = plan.start_environment, plan.end_environment
    wanted.auxv_size = len(plan.auxiliary_vector)
    wanted.exe_fd = NO_FILE if exe is None else exe
    place = program.data(bytes(ffi.buffer(wanted)))
    vector = program.data(plan.auxiliary_vector)
    program.store(place + int(ffi.offsetof("lm_memory_map", "auxv")), vector)
    size = int(ffi.sizeof("lm_memory_map"))
    program.call("PR_SET_MM_MAP", numbers.SYS_prctl, int(lib.PR_SET_MM), int(lib.PR_SET_MM_MAP), place, size, 0)
