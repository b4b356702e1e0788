"""A process's threads made again inside the husk.

The threads are made by rows in the first one (`create_threads`), each with its old id and each stopped before its first
instruction; rows in each of them put back what belongs to it (`rebuild_thread`), and ptrace gives it its registers,
vector state and signal mask (`final_state`). See process/threads.py for what they were.
"""

from __future__ import annotations

from collections.abc import Sequence

from _lm import ffi, lib

from linux import syscall_numbers as numbers
from linux import tracee
from linux.arch_x86_64 import Registers
from linux.program import Program
from process import credentials
from process.signals import queue_signals
from process.threads import NAME_SIZE, ORDINARY_POLICIES, SPECULATION_CONTROLS, Scheduling, Thread, whole_xstate
from wire.obstacles import Obstacle

# sizeof(struct robust_list_head) on 64-bit machines
ROBUST_LIST_LENGTH = 24


def preflight_scheduling(thread: Thread, present: Scheduling, may_schedule: bool) -> list[Obstacle]:
    """What of a thread's scheduling a worker that is scheduled as `present` cannot give without CAP_SYS_NICE."""
    wanted = thread.scheduling
    name = f"scheduling of thread {thread.tid}"
    if may_schedule:
        return []
    if wanted.policy not in ORDINARY_POLICIES:
        cause, remedy = f"it has policy {wanted.policy} with priority {wanted.priority}", "run it with CAP_SYS_NICE"
    elif wanted.nice < present.nice:
        cause, remedy = f"its nice value is {wanted.nice}", f"run it with nice {wanted.nice} or with CAP_SYS_NICE"
    else:
        return []
    return [Obstacle(object=name, cause=f"{cause}, which lm-restore may not set", remedy=remedy)]


def scheduling_shortfalls(thread: Thread, allowed: set[int]) -> list[str]:
    """A sentence when this host, or what lm-restore may use of it, lacks processors that the thread was bound to."""
    mask = int.from_bytes(thread.scheduling.affinity, "little")
    bound = {number for number in range(mask.bit_length()) if mask >> number & 1}
    missing = sorted(bound - allowed)
    # Bound to as many as the source had is no choice of the program's.
    if not missing or not bound or bound == set(range(len(bound))):
        return []
    text = ", ".join(str(number) for number in missing)
    return [f"affinity of thread {thread.tid}: processors {text} are not to be had here"]


def create_threads(program: Program, tids: Sequence[int]) -> None:
    """Rows, for the husk's only thread, that make one more thread for each id, stopped before its first
    instruction.

    The ids are those inside the innermost PID namespace; only that one is asked for. A taken id fails its row
    with
    EEXIST (clone3(2), set_tid). The tracer gets each as a tracee of its own (CLONE_PTRACE).
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


def rebuild_thread(
    program: Program,
    thread: Thread,
    process_id: int,
    present: credentials.Credentials,
    staged: Thread | None = None,
    final: bool = True,
) -> None:
    """Rows, run in the thread itself, that make it what it was: only those that differ from `staged`, if given.

    Not `final` is a staging: without pending signals, and without the credentials, which come last, since what else is
    done (setting a priority, changing the root) may need those that the husk has now, `present`. The parent-death
    signal follows them, because their change clears it. The rows of the process (`rebuild_process`) go before.
    """
    _rebuild_addresses(program, thread, staged)
    _rebuild_scheduling(program, thread, staged)
    _rebuild_modes(program, thread, staged)
    if not final:
        return
    queue_signals(program, thread.pending, process_id, thread.tid)
    credentials.rebuild_credentials(program, thread.credentials, present)
    if thread.parent_death_signal:
        signal_number = thread.parent_death_signal
        program.call("PR_SET_PDEATHSIG", numbers.SYS_prctl, int(lib.PR_SET_PDEATHSIG), signal_number, 0, 0, 0)


def _rebuild_addresses(program: Program, thread: Thread, staged: Thread | None) -> None:
    """What only stores an address in the kernel; none of them touches memory, but rseq's page must be there."""
    if thread.robust_list and (staged is None or staged.robust_list != thread.robust_list):
        length = thread.robust_list_length
        program.call("set_robust_list", numbers.SYS_set_robust_list, thread.robust_list, length)
    if staged is None or staged.clear_child_tid != thread.clear_child_tid:
        program.call("set_tid_address", numbers.SYS_set_tid_address, thread.clear_child_tid, check=False)
    if thread.rseq is not None and (staged is None or staged.rseq is None):
        area = thread.rseq
        program.call("rseq", numbers.SYS_rseq, area.address, area.length, area.flags, area.signature)
    if staged is None or staged.alternate_stack != thread.alternate_stack:
        # On which stack the thread stands follows from its stack pointer: SS_ONSTACK is told, never set.
        stack = thread.alternate_stack
        wanted = ffi.new("lm_alternate_stack *")
        wanted.ss_sp = ffi.cast("void *", stack.address)
        wanted.ss_flags = stack.flags & ~int(lib.SS_ONSTACK)
        wanted.ss_size = stack.size
        program.call("sigaltstack", numbers.SYS_sigaltstack, program.data(bytes(ffi.buffer(wanted))), 0)


def _rebuild_scheduling(program: Program, thread: Thread, staged: Thread | None) -> None:
    wanted = thread.scheduling
    known = staged.scheduling if staged is not None else Scheduling(io_priority=-1, timer_slack=0)
    if staged is None or staged.name != thread.name:
        name = program.data(thread.name[: NAME_SIZE - 1] + b"\0")
        program.call("PR_SET_NAME", numbers.SYS_prctl, int(lib.PR_SET_NAME), name, 0, 0, 0)
    if wanted.timer_slack != known.timer_slack and wanted.timer_slack > 0:
        slack = int(lib.PR_SET_TIMERSLACK)
        program.call("PR_SET_TIMERSLACK", numbers.SYS_prctl, slack, wanted.timer_slack, 0, 0, 0)
    if wanted.affinity != known.affinity and wanted.affinity:
        mask = wanted.affinity + b"\0" * (-len(wanted.affinity) % 8)
        # A mask without any processor of this host fails; preflight has said so, and all processors are kept.
        program.call("sched_setaffinity", numbers.SYS_sched_setaffinity, 0, len(mask), program.data(mask), check=False)
    if wanted.io_priority != known.io_priority:
        program.call(
            "ioprio_set",
            numbers.SYS_ioprio_set,
            int(lib.IOPRIO_WHO_PROCESS),
            0,
            wanted.io_priority,
            check=wanted.io_priority != 0,
        )
    attributes = ffi.new("lm_scheduling *")
    attributes.size = ffi.sizeof("lm_scheduling")
    attributes.sched_policy = wanted.policy
    attributes.sched_flags = wanted.flags
    attributes.sched_nice = wanted.nice
    attributes.sched_priority = wanted.priority
    attributes.sched_runtime = wanted.runtime
    attributes.sched_deadline = wanted.deadline
    attributes.sched_period = wanted.period
    place = program.data(bytes(ffi.buffer(attributes)))
    program.call("sched_setattr", numbers.SYS_sched_setattr, 0, place, 0)


def _rebuild_modes(program: Program, thread: Thread, staged: Thread | None) -> None:
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


def final_state(tid: int, thread: Thread) -> None:
    """Give the stopped thread `tid` of the husk its last state by ptrace: vector state, mask, registers."""
    tracee.set_xstate(tid, whole_xstate(thread))
    tracee.set_signal_mask(tid, thread.signal_mask)
    tracee.set_registers(tid, Registers(thread.registers))


def retire_rows(program: Program) -> None:
    """Rows for a thread of a source that never runs again: when it ends, the kernel touches no memory for it.

    Robust lists and clear-child-tid words may lie in memory shared with others (set_robust_list(2))."""
    program.call("set_robust_list", numbers.SYS_set_robust_list, 0, ROBUST_LIST_LENGTH, check=False)
    program.call("set_tid_address", numbers.SYS_set_tid_address, 0, check=False)
