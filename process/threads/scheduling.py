"""How the kernel schedules a thread, on which processors, with what memory policy: sched(7), set_mempolicy(2)."""

from __future__ import annotations

import os
import threading

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program
from live_migration.wire.blockers import Blocker

ORDINARY_POLICIES = frozenset({0, 3, 5})  # SCHED_OTHER, SCHED_BATCH, SCHED_IDLE (sched(7))
NODES = 1024


class Scheduling(msgspec.Struct, frozen=True, kw_only=True):
    """How the kernel schedules a thread (sched_setattr(2)); `affinity` and `memory_nodes` are bit masks, lowest first.

    runtime, deadline and period are in nanoseconds.
    """

    policy: int = 0
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0
    affinity: bytes = b""
    io_priority: int = 0
    timer_slack: int = 50_000
    memory_policy: int = 0
    memory_nodes: bytes = b""


def affinity_bytes(mask: bytes) -> bytes:
    """A processor mask without its trailing zeros, so that equal masks are equal on hosts of any size."""
    return mask.rstrip(b"\0")


def usual_slice() -> int:
    """The time slice (nanoseconds) of a thread that never chose one, such as this one; 0 on kernels without slices.

    sched_getattr(2) tells it as the runtime of every ordinary thread since Linux 6.12.
    """
    own = ffi.new("struct lm_thread_outside *")
    return 0 if lib.lm_thread_outside(threading.get_native_id(), own) else int(own.runtime)


def chosen_runtime(policy: int, runtime: int, usual: int) -> int:
    """The part of a runtime that was chosen: 0 stands for the destination's own usual slice."""
    return 0 if policy in ORDINARY_POLICIES and runtime == usual else runtime


def preflight_scheduling(tid: int, wanted: Scheduling, present: Scheduling, may_schedule: bool) -> list[Blocker]:
    """Blockers: the scheduling that a worker which is scheduled as `present` cannot give without CAP_SYS_NICE."""
    name = f"scheduling of thread {tid}"
    if may_schedule:
        return []
    if wanted.policy not in ORDINARY_POLICIES:
        cause, remedy = f"it has policy {wanted.policy} with priority {wanted.priority}", "run it with CAP_SYS_NICE"
    elif wanted.nice < present.nice:
        cause, remedy = f"its nice value is {wanted.nice}", f"run it with nice {wanted.nice} or with CAP_SYS_NICE"
    else:
        return []
    return [Blocker(object=name, cause=f"{cause}, which lm-restore may not set", remedy=remedy)]


def scheduling_warnings(tid: int, wanted: Scheduling, allowed: set[int]) -> list[str]:
    """A sentence if this host, or what lm-restore may use of it, lacks processors that the thread was bound to."""
    mask = int.from_bytes(wanted.affinity, "little")
    bound = {number for number in range(mask.bit_length()) if mask >> number & 1}
    missing = sorted(bound - allowed)
    # If the thread is bound to as many as the source had, that is no choice of the program's.
    if not missing or not bound or bound == set(range(len(bound))):
        return []
    text = ", ".join(str(number) for number in missing)
    return [f"affinity of thread {tid}: processors {text} are not to be had here"]


def restore_scheduling(program: Program, wanted: Scheduling, staged: Scheduling | None) -> None:
    """Rows by which a thread gets its scheduling; what `staged` gave it already is left out."""
    if wanted == staged:
        return
    known = staged if staged is not None else Scheduling(io_priority=-1, timer_slack=0)
    if wanted.timer_slack != known.timer_slack and wanted.timer_slack > 0:
        slack = int(lib.PR_SET_TIMERSLACK)
        program.call("PR_SET_TIMERSLACK", numbers.SYS_prctl, slack, wanted.timer_slack, 0, 0, 0)
    if wanted.affinity != known.affinity and wanted.affinity:
        mask = wanted.affinity + b"\0" * (-len(wanted.affinity) % 8)
        # A mask without any processor of this host fails; the preflight has warned, and all processors are kept.
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
    if wanted.memory_policy:
        # Another host may lack the nodes (set_mempolicy(2)); the memory then comes from wherever there is some.
        nodes = program.data(wanted.memory_nodes.ljust(NODES // 8, b"\0"))
        label, policy = "set_mempolicy", wanted.memory_policy
        program.call(label, numbers.SYS_set_mempolicy, policy, nodes, NODES, check=False)
    if wanted.policy not in ORDINARY_POLICIES:
        # sched_setattr(2) leaves it alone then. It counts again when the thread gets an ordinary policy.
        program.call("setpriority", numbers.SYS_setpriority, os.PRIO_PROCESS, 0, wanted.nice)
    attributes = ffi.new("lm_scheduling *", {"sched_nice": wanted.nice})
    attributes.size = ffi.sizeof("lm_scheduling")
    attributes.sched_policy = wanted.policy
    attributes.sched_flags = wanted.flags
    attributes.sched_priority = wanted.priority
    attributes.sched_runtime = wanted.runtime
    attributes.sched_deadline = wanted.deadline
    attributes.sched_period = wanted.period
    place = program.data(bytes(ffi.buffer(attributes)))
    program.call("sched_setattr", numbers.SYS_sched_setattr, 0, place, 0)
