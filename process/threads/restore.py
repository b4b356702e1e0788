"""Making a process's threads again inside the husk.

The threads are made by rows in the first one (`create_threads`), each with its old id and each stopped before its first
instruction; rows in each of them put back what belongs to it (`restore_thread`). See process/threads/threads.py for
what they were. Registers, vector state and signal mask come last, by ptrace (restorer/stage.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Argument, Data, OfEach, Program
from live_migration.process.attributes import credentials
from live_migration.process.attributes.signals import queue_signals
from live_migration.process.threads.scheduling import restore_scheduling
from live_migration.process.threads.threads import NAME_SIZE, SPECULATION_CONTROLS, AlternateStack, Thread

# sizeof(struct robust_list_head) on 64-bit machines
ROBUST_LIST_LENGTH = 24
NOBODY: Mapping[int, Thread] = {}
NO_STACK = AlternateStack()


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


def restore_threads(
    threads: Mapping[int, tuple[Thread, Thread | None]], process_id: int, present: credentials.Credentials
) -> dict[int, Program]:
    """Programs that make threads what they were, by their ids for this host; given are each thread and what it was
    staged as. Those in a row that differ in nothing but their names and addresses have one program."""
    programs: dict[int, Program] = {}
    for _, those in itertools.groupby(threads.items(), key=lambda item: _apart_from_its_own(*item[1])):
        group = {tid: thread for tid, (thread, _) in those}
        first = next(iter(group))
        program = Program("restoring threads")
        thread, staged = threads[first]
        restore_thread(program, thread, process_id, present, staged, alike=group if len(group) > 1 else {})
        programs.update(dict.fromkeys(group, program))
    return programs


def restore_thread(
    program: Program,
    thread: Thread,
    process_id: int,
    present: credentials.Credentials,
    staged: Thread | None = None,
    final: bool = True,
    alike: Mapping[int, Thread] = NOBODY,
) -> None:
    """Rows, run in the thread itself, that make it what it was: only those that differ from `staged`, if given. `alike`
    are all threads that run them (by their ids for this host), if there are others; see `restore_threads`.

    Not `final` means staging: without pending signals, and without the credentials, which come last, since the other
    steps (setting a priority, changing the root) may need those that the husk has now, `present`. The parent-death
    signal follows them, because their change clears it. The rows of the process (`restore_process`) go before.
    """
    _restore_addresses(program, thread, staged, alike)
    if staged is None or staged.name != thread.name:
        name = _own_data(program, thread, alike, _name_of)
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


def _own(thread: Thread, alike: Mapping[int, Thread], of: Callable[[Thread], int]) -> Argument:
    """A number that each of the threads that are `alike` has for itself."""
    return OfEach({tid: of(one) for tid, one in alike.items()}) if alike else of(thread)


def _own_data(program: Program, thread: Thread, alike: Mapping[int, Thread], of: Callable[[Thread], bytes]) -> Data:
    """The same for bytes."""
    return program.data_of_each({tid: of(one) for tid, one in alike.items()}) if alike else program.data(of(thread))


def _name_of(thread: Thread) -> bytes:
    return thread.name[: NAME_SIZE - 1].ljust(NAME_SIZE, b"\0")


def _stack_of(thread: Thread) -> bytes:
    # The stack pointer decides on which stack the thread stands: SS_ONSTACK is reported, never set.
    stack = thread.alternate_stack
    wanted = ffi.new("lm_alternate_stack *")
    wanted.ss_sp = ffi.cast("void *", stack.address)
    wanted.ss_flags = stack.flags & ~int(lib.SS_ONSTACK)
    wanted.ss_size = stack.size
    return bytes(ffi.buffer(wanted))


def _apart_from_its_own(thread: Thread, staged: Thread | None) -> tuple[object, ...]:
    """What threads have in common that get the same rows: everything but what is put in for each (`_own`), and what is
    not restored by rows; and of the former, what there is and what differs from what was staged."""
    return (
        _common(thread),
        _common(staged) if staged is not None else None,
        staged is None or staged.name != thread.name,
        bool(thread.robust_list),
        staged is None or staged.robust_list != thread.robust_list,
        staged is None or staged.clear_child_tid != thread.clear_child_tid,
        staged is None or staged.alternate_stack != thread.alternate_stack,
        # Their signals are queued for each by its id.
        thread.tid if thread.pending else 0,
    )


def _common(thread: Thread) -> Thread:
    area = thread.rseq
    return msgspec.structs.replace(
        thread,
        tid=0,
        host_tid=0,
        name=b"",
        robust_list=0,
        clear_child_tid=0,
        alternate_stack=NO_STACK,
        rseq=msgspec.structs.replace(area, address=0) if area is not None else None,
        registers=b"",
        xstate=b"",
        signal_mask=0,
        call=None,
    )


def _restore_addresses(
    program: Program, thread: Thread, staged: Thread | None, alike: Mapping[int, Thread]
) -> None:
    """Rows that only store an address in the kernel; none of them touches memory, but rseq's page must be there."""
    if thread.robust_list and (staged is None or staged.robust_list != thread.robust_list):
        first = _own(thread, alike, lambda one: one.robust_list)
        program.call("set_robust_list", numbers.SYS_set_robust_list, first, thread.robust_list_length)
    if staged is None or staged.clear_child_tid != thread.clear_child_tid:
        word = _own(thread, alike, lambda one: one.clear_child_tid)
        program.call("set_tid_address", numbers.SYS_set_tid_address, word, check=False)
    if thread.rseq is not None and (staged is None or staged.rseq is None):
        area = thread.rseq
        place = _own(thread, alike, lambda one: one.rseq.address if one.rseq is not None else 0)
        program.call("rseq", numbers.SYS_rseq, place, area.length, area.flags, area.signature)
    if staged is None or staged.alternate_stack != thread.alternate_stack:
        program.call("sigaltstack", numbers.SYS_sigaltstack, _own_data(program, thread, alike, _stack_of), 0)


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
