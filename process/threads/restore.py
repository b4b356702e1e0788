"""Making a process's threads again inside the husk.

The threads are made by rows in the first one (`create_threads`), each with its old id and each stopped before its first
instruction; rows in each of them put back what belongs to it (`restore_thread`). See process/threads/threads.py for
what they were. Registers, vector state and signal mask come last, by ptrace (restorer/stage.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program
from live_migration.process.attributes import credentials
from live_migration.process.attributes.signals import queue_signals
from live_migration.process.threads.scheduling import restore_scheduling
from live_migration.process.threads.threads import NAME_SIZE, SPECULATION_CONTROLS, Thread

# sizeof(struct robust_list_head) on 64-bit machines
ROBUST_LIST_LENGTH = 24


def create_threads(program: Program, tids: Sequence[int]) -> None:
    """Rows, for the husk's only thread, that make one more thread for each id, stopped before its first instruction.

    The ids are those inside the innermost PID namespace, the only one that matters. A taken id fails its row with
    EEXIST (clone3(2), set_tid). The tracer gets each thread as a tracee of its own (CLONE_PTRACE).
    """
    for tid in tids:
        wanted = program.data(tid.to_bytes(4, "little"))
        arguments = ffi.new("lm_clone_arguments *")
        arguments.flags = (
            lib.CLONE_VM
            | lib.CLONE_FS
            | lib.CLONE_FILES
            | lib.CLONE_SIGHAND
            | lib.CLONE_THREAD
            | lib.CLONE_SYSVSEM
            | lib.CLONE_PTRACE
        )
        arguments.set_tid_size = 1
        place = program.data(bytes(ffi.buffer(arguments)))
        program.store(place + int(ffi.offsetof("lm_clone_arguments", "set_tid")), wanted)
        program.call(f"clone3 of thread {tid}", numbers.SYS_clone3, place, int(ffi.sizeof("lm_clone_arguments")))


def restore_thread(
    program: Program,
    thread: Thread,
    process_id: int,
    present: credentials.Credentials,
    staged: Thread | None = None,
    final: bool = True,
) -> None:
    """Rows, run in the thread itself, that make it what it was: only those that differ from `staged`, if given.

    Not `final` means staging: without pending signals, and without the credentials, which come last, since the other
    steps (setting a priority, changing the root) may need those that the husk has now, `present`. The parent-death
    signal follows them, because their change clears it. The rows of the process (`restore_process`) go before.
    """
    _restore_addresses(program, thread, staged)
    if staged is None or staged.name != thread.name:
        name = program.data(thread.name[: NAME_SIZE - 1] + b"\0")
        program.call("PR_SET_NAME", numbers.SYS_prctl, int(lib.PR_SET_NAME), name, 0, 0, 0)
    restore_scheduling(program, thread.scheduling, staged.scheduling if staged else None)
    _restore_modes(program, thread, staged)
    if not final:
        return
    queue_signals(program, thread.pending, process_id, thread.tid)
    # Late, since it changes how mappings are made (personality(2)).
    program.call("personality", numbers.SYS_personality, thread.personality)
    credentials.restore_credentials(program, thread.credentials, present)
    if thread.parent_death_signal:
        signal_number = thread.parent_death_signal
        program.call("PR_SET_PDEATHSIG", numbers.SYS_prctl, int(lib.PR_SET_PDEATHSIG), signal_number, 0, 0, 0)


def _restore_addresses(program: Program, thread: Thread, staged: Thread | None) -> None:
    """Rows that only store an address in the kernel; none of them touches memory, but rseq's page must be there."""
    if thread.robust_list and (staged is None or staged.robust_list != thread.robust_list):
        length = thread.robust_list_length
        program.call("set_robust_list", numbers.SYS_set_robust_list, thread.robust_list, length)
    if staged is None or staged.clear_child_tid != thread.clear_child_tid:
        program.call("set_tid_address", numbers.SYS_set_tid_address, thread.clear_child_tid, check=False)
    if thread.rseq is not None and (staged is None or staged.rseq is None):
        area = thread.rseq
        program.call("rseq", numbers.SYS_rseq, area.address, area.length, area.flags, area.signature)
    if staged is None or staged.alternate_stack != thread.alternate_stack:
        # The stack pointer decides on which stack the thread stands: SS_ONSTACK is reported, never set.
        stack = thread.alternate_stack
        wanted = ffi.new("lm_alternate_stack *")
        wanted.ss_sp = ffi.cast("void *", stack.address)
        wanted.ss_flags = stack.flags & ~int(lib.SS_ONSTACK)
        wanted.ss_size = stack.size
        program.call("sigaltstack", numbers.SYS_sigaltstack, program.data(bytes(ffi.buffer(wanted))), 0)


def _restore_modes(program: Program, thread: Thread, staged: Thread | None) -> None:
    known = staged if staged is not None else thread

    def prctl(option: str, *arguments: int) -> None:
        program.call(option, numbers.SYS_prctl, int(getattr(lib, option)), *(*arguments, 0, 0, 0, 0)[:4], check=False)

    if thread.timestamp_mode not in (0, int(lib.PR_TSC_ENABLE)) or known.timestamp_mode != thread.timestamp_mode:
        prctl("PR_SET_TSC", thread.timestamp_mode)
    default = int(lib.PR_MCE_KILL_DEFAULT)
    if thread.machine_check_policy != default or known.machine_check_policy != default:
        prctl("PR_MCE_KILL", int(lib.PR_MCE_KILL_SET), thread.machine_check_policy)
    if thread.io_flusher or known.io_flusher:
        prctl("PR_SET_IO_FLUSHER", thread.io_flusher)
    for name, control in SPECULATION_CONTROLS.items():
        mode = getattr(thread, name)
        # Only what the program itself chose is chosen again: PR_SPEC_PRCTL with one of the settings.
        chosen = mode & (lib.PR_SPEC_DISABLE | lib.PR_SPEC_FORCE_DISABLE)
        if mode & lib.PR_SPEC_PRCTL and chosen:
            prctl("PR_SET_SPECULATION_CTRL", int(getattr(lib, control)), chosen)
    if thread.cpuid_enabled == 0:
        program.call("ARCH_SET_CPUID", numbers.SYS_arch_prctl, int(lib.ARCH_SET_CPUID), 0)


def retire_rows(program: Program) -> None:
    """Rows for a thread of a source that never runs again: when it ends, the kernel touches no memory for it.

    Robust lists and clear-child-tid words may lie in memory shared with others (set_robust_list(2))."""
    program.call("set_robust_list", numbers.SYS_set_robust_list, 0, ROBUST_LIST_LENGTH, check=False)
    program.call("set_tid_address", numbers.SYS_set_tid_address, 0, check=False)
