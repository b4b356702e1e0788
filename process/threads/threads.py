"""Threads: registers, identity within the process, scheduling, and the addresses the kernel keeps for each.

A thread is described in two steps. What can be read from outside (`snapshot_thread_outside`) is read while it runs.
What only the stopped thread can tell comes from ptrace and from a short program that runs in it (`query_thread`): some
forty system calls that change nothing, whose results stand in one structure, `lm_thread_replies`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.arch.arch import RED_ZONE, Registers
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Data, Outcome, Program
from live_migration.kernel.process_snapshot import ProcessSnapshot, read_file
from live_migration.kernel.tracing import tracee
from live_migration.process.attributes import credentials
from live_migration.process.threads.interrupted import InterruptedCall
from live_migration.process.threads.landlock import query_witnesses
from live_migration.process.threads.scheduling import NODES, Scheduling, affinity_bytes, chosen_runtime, usual_slice

PAGE = 4096
NAME_SIZE = 16
XSTATE_LIMIT = 1 << 16
CAPABILITY_VERSION_3 = 0x20080522  # capget(2): _LINUX_CAPABILITY_VERSION_3
KEEP_FILE_ID = 0xFFFFFFFF  # setfsuid(-1) changes nothing and tells the present one (setfsuid(2))
KEEP_PERSONALITY = 0xFFFFFFFF  # personality(0xffffffff) changes nothing either (personality(2))
SPECULATION_CONTROLS = {"store_bypass": "PR_SPEC_STORE_BYPASS", "indirect_branch": "PR_SPEC_INDIRECT_BRANCH"}


class Rseq(msgspec.Struct, frozen=True, kw_only=True):
    """A registered restartable-sequences area (rseq(2), PTRACE_GET_RSEQ_CONFIGURATION)."""

    address: int
    length: int
    signature: int
    flags: int


class AlternateStack(msgspec.Struct, frozen=True, kw_only=True):
    """A thread's alternate signal stack (sigaltstack(2))."""

    address: int = 0
    size: int = 0
    flags: int = 2  # SS_DISABLE


class ThreadOutside(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a running thread without stopping it. `host_tid` is its id as the source host sees it."""

    tid: int
    host_tid: int
    name: bytes
    scheduling: Scheduling
    credentials: credentials.Credentials
    robust_list: int
    robust_list_length: int


class Thread(msgspec.Struct, frozen=True, kw_only=True):
    """A stopped thread, whole.

    `tid` is its id as the process itself sees it. Registers, vector state and siginfos are the kernel's own bytes.
    `filters` are the places of its seccomp filters among those of the task.
    """

    tid: int
    host_tid: int
    name: bytes
    scheduling: Scheduling
    credentials: credentials.Credentials
    robust_list: int = 0
    robust_list_length: int = 0
    clear_child_tid: int = 0
    alternate_stack: AlternateStack = AlternateStack()
    parent_death_signal: int = 0
    timestamp_mode: int = 1
    machine_check_policy: int = 2
    io_flusher: int = 0
    cpuid_enabled: int = 1
    store_bypass: int = 0
    indirect_branch: int = 0
    personality: int = 0
    rseq: Rseq | None = None
    registers: bytes = b""
    xstate: bytes = b""
    xstate_size: int = 0
    signal_mask: int = 0
    pending: tuple[bytes, ...] = ()
    call: InterruptedCall | None = None
    filters: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoppedThread:
    """What ptrace tells of a stopped thread, without running anything in it."""

    host_tid: int
    registers: bytes
    xstate: bytes
    signal_mask: int
    rseq: Rseq | None


def snapshot_thread_outside(process: ProcessSnapshot, tid: int) -> ThreadOutside:
    """Read a running thread from outside. Raises ProcessGone when it has ended, PermissionError without the right.
    """
    outside = ffi.new("struct lm_thread_outside *")
    code = int(lib.lm_thread_outside(tid, outside))
    if code == -errno.ESRCH:
        raise ProcessGone(tid)
    if code < 0:
        raise OSError(-code, os.strerror(-code), f"thread {tid}")
    name = process.read(f"task/{tid}/comm").removesuffix(b"\n")
    status = process.thread_status(tid)
    try:
        slack = int(read_file(tid, "timerslack_ns"))
    except PermissionError:
        slack = 50_000
    return ThreadOutside(
        tid=int(status.get("NSpid", str(tid)).split()[-1]),
        host_tid=tid,
        name=name,
        scheduling=Scheduling(
            policy=outside.policy,
            flags=outside.scheduling_flags,
            deadline=outside.deadline,
            period=outside.period,
            runtime=chosen_runtime(outside.policy, outside.runtime, usual_slice()),
            nice=outside.nice,
            priority=outside.priority,
            affinity=affinity_bytes(bytes(ffi.buffer(outside.affinity, outside.affinity_length))),
            io_priority=max(0, outside.io_priority),
            timer_slack=slack,
        ),
        credentials=credentials.snapshot_credentials(status),
        robust_list=outside.robust_list,
        robust_list_length=outside.robust_list_length,
    )


def snapshot_stopped_thread(tid: int) -> StoppedThread:
    """Read by ptrace what a stopped tracee holds: registers, vector state, mask, rseq."""
    registers, xstate = tracee.get_registers(tid).raw, tracee.get_xstate(tid)
    return stopped_thread(tid, registers, xstate, tracee.get_signal_mask(tid), tracee.rseq_configuration(tid))


def stopped_thread(
    tid: int, registers: bytes, xstate: bytes, signal_mask: int, area: tracee.RseqConfiguration
) -> StoppedThread:
    """A stopped tracee of which everything has been read."""
    rseq = None
    if area.address:
        rseq = Rseq(address=area.address, length=area.size, signature=area.signature, flags=area.flags)
    return StoppedThread(tid, registers, xstate, signal_mask, rseq)


def _field(replies: Data, name: str) -> Data:
    """The place of one field of lm_thread_replies in the data area."""
    return replies + int(ffi.offsetof("lm_thread_replies", name))


def query_thread(program: Program, seen_by: Sequence[int] = (), left_out: Container[int] = ()) -> Data:
    """Add the rows by which a stopped thread tells about itself; returns where the results will stand.

    `seen_by` are the witnesses (process/threads/landlock.py). The same program serves every thread. Nothing in it
    changes anything, so that it may end after any row. Calls that are `left_out` are not made: for
    setfsuid(2) a thread's status is read.
    """
    replies = program.reserve(int(ffi.sizeof("lm_thread_replies")))

    def row(name: str, label: str, number: int, *arguments: int | Data) -> None:
        program.store(_field(replies, name), program.call(label, number, *arguments, check=False))

    def prctl(option: str, *arguments: int | Data) -> None:
        program.call(option, numbers.SYS_prctl, int(getattr(lib, option)), *arguments, check=False)

    def prctl_told(name: str, option: str, *arguments: int) -> None:
        row(name, option, numbers.SYS_prctl, int(getattr(lib, option)), *arguments, 0, 0, 0)

    program.call("sigaltstack", numbers.SYS_sigaltstack, 0, _field(replies, "alternate_stack"), check=False)
    prctl("PR_GET_TID_ADDRESS", _field(replies, "clear_child_tid"), 0, 0, 0)
    prctl("PR_GET_PDEATHSIG", _field(replies, "parent_death_signal"), 0, 0, 0)
    prctl("PR_GET_TSC", _field(replies, "timestamp_mode"), 0, 0, 0)
    prctl("PR_GET_NAME", _field(replies, "name"), 0, 0, 0)
    program.call(
        "get_robust_list",
        numbers.SYS_get_robust_list,
        0,
        _field(replies, "robust_list"),
        _field(replies, "robust_list_length"),
        check=False,
    )
    scheduling = int(ffi.sizeof("lm_scheduling"))
    program.call(
        "sched_getattr", numbers.SYS_sched_getattr, 0, _field(replies, "scheduling"), scheduling, 0, check=False
    )
    program.store(_field(replies, "capability_header"), CAPABILITY_VERSION_3)
    program.call(
        "capget",
        numbers.SYS_capget,
        _field(replies, "capability_header"),
        _field(replies, "capabilities"),
        check=False,
    )
    for label, number, name in (
        ("getresuid", numbers.SYS_getresuid, "user_ids"),
        ("getresgid", numbers.SYS_getresgid, "group_ids"),
    ):
        place = _field(replies, name)
        program.call(label, number, place, place + 4, place + 8, check=False)
    if numbers.SYS_setfsuid not in left_out:
        row("file_user_id", "setfsuid", numbers.SYS_setfsuid, KEEP_FILE_ID)
        row("file_group_id", "setfsgid", numbers.SYS_setfsgid, KEEP_FILE_ID)
    else:
        # Nobody's id, and so other than those that are known (`credentials_of`).
        program.store(_field(replies, "file_user_id"), KEEP_FILE_ID)
    row("group_count", "getgroups", numbers.SYS_getgroups, 0, 0)
    prctl_told("secure_bits", "PR_GET_SECUREBITS", 0)
    prctl_told("no_new_privileges", "PR_GET_NO_NEW_PRIVS", 0)
    prctl_told("timer_slack", "PR_GET_TIMERSLACK", 0)
    prctl_told("machine_check_policy", "PR_MCE_KILL_GET", 0)
    prctl_told("io_flusher", "PR_GET_IO_FLUSHER", 0)
    for name, control in SPECULATION_CONTROLS.items():
        prctl_told(name, "PR_GET_SPECULATION_CTRL", int(getattr(lib, control)))
    row("cpuid_enabled", "ARCH_GET_CPUID", numbers.SYS_arch_prctl, int(lib.ARCH_GET_CPUID), 0)
    row("personality", "personality", numbers.SYS_personality, KEEP_PERSONALITY)
    row("nice", "getpriority", numbers.SYS_getpriority, os.PRIO_PROCESS, 0)
    row("io_priority", "ioprio_get", numbers.SYS_ioprio_get, int(lib.IOPRIO_WHO_PROCESS), 0)
    for name, keyring in (
        ("thread_keyring", int(lib.KEY_SPEC_THREAD_KEYRING)),
        ("process_keyring", int(lib.KEY_SPEC_PROCESS_KEYRING)),
    ):
        row(name, "keyctl", numbers.SYS_keyctl, int(lib.KEYCTL_GET_KEYRING_ID), keyring & 0xFFFFFFFF, 0)
    policy, nodes = _field(replies, "memory_policy"), _field(replies, "memory_nodes")
    program.call("get_mempolicy", numbers.SYS_get_mempolicy, policy, nodes, NODES, 0, 0, check=False)
    place = _field(replies, "affinity")
    row("affinity_length", "sched_getaffinity", numbers.SYS_sched_getaffinity, 0, 1024, place)
    query_witnesses(program, _field(replies, "witnesses"), seen_by)
    return replies


def reply_thread(outcome: Outcome, replies: Data) -> bytes:
    """The replies of one thread as the bytes of lm_thread_replies; equal bytes mean that nothing has changed."""
    return outcome.read(replies)


def common_part(replies: bytes) -> bytes:
    """The part of a thread's replies in which the threads of a process are usually alike: what is made of it for one
    holds for all that have replied the same."""
    return replies[_COMMON:]


_COMMON = int(ffi.offsetof("lm_thread_replies", "scheduling"))


def known_credentials(outside: ThreadOutside, replies: bytes) -> credentials.Credentials | None:
    """A frozen thread's credentials as it tells them itself. Its groups, and its bounding and ambient capabilities, are
    those of its status, which has to be read again if anything else has changed since: then None."""
    reply = ffi.cast("lm_thread_replies *", ffi.from_buffer(replies))
    low, high = reply.capabilities[0], reply.capabilities[1]
    known = outside.credentials
    now = msgspec.structs.replace(
        known,
        user_ids=(*reply.user_ids, reply.file_user_id & 0xFFFFFFFF),
        group_ids=(*reply.group_ids, reply.file_group_id & 0xFFFFFFFF),
        inheritable=low.inheritable | high.inheritable << 32,
        permitted=low.permitted | high.permitted << 32,
        effective=low.effective | high.effective << 32,
        no_new_privileges=reply.no_new_privileges == 1,
    )
    if now != known or reply.group_count != len(known.groups):
        return None
    return msgspec.structs.replace(now, secure_bits=reply.secure_bits)


def credentials_again(process: ProcessSnapshot, tid: int, replies: bytes) -> credentials.Credentials:
    """The credentials of a frozen thread (its id for this host) from its status. Raises ProcessGone."""
    reply = ffi.cast("lm_thread_replies *", ffi.from_buffer(replies))
    return credentials.snapshot_credentials(process.thread_status(tid), reply.secure_bits)


def thread_like(replies: bytes, held: credentials.Credentials, usual: int) -> Thread:
    """What `common_part` tells of a thread with these credentials; `complete_thread` puts in what is its own. `usual`
    is `usual_slice`."""
    reply = ffi.cast("lm_thread_replies *", ffi.from_buffer(replies))
    attributes = reply.scheduling
    return Thread(
        tid=0,
        host_tid=0,
        name=b"",
        scheduling=Scheduling(
            policy=attributes.sched_policy,
            flags=attributes.sched_flags,
            nice=20 - reply.nice,
            priority=attributes.sched_priority,
            runtime=chosen_runtime(attributes.sched_policy, attributes.sched_runtime, usual),
            deadline=attributes.sched_deadline,
            period=attributes.sched_period,
            affinity=affinity_bytes(bytes(ffi.buffer(reply.affinity, max(0, reply.affinity_length)))),
            io_priority=max(0, reply.io_priority),
            timer_slack=reply.timer_slack,
            memory_policy=reply.memory_policy,
            memory_nodes=affinity_bytes(bytes(ffi.buffer(reply.memory_nodes))),
        ),
        credentials=held,
        parent_death_signal=reply.parent_death_signal,
        timestamp_mode=reply.timestamp_mode,
        machine_check_policy=reply.machine_check_policy,
        io_flusher=max(0, reply.io_flusher),
        cpuid_enabled=reply.cpuid_enabled,
        store_bypass=max(0, reply.store_bypass),
        indirect_branch=max(0, reply.indirect_branch),
        personality=max(0, reply.personality),
    )


def complete_thread(
    like: Thread,
    outside: ThreadOutside,
    stopped: StoppedThread,
    final: Registers,
    pending: tuple[bytes, ...],
    replies: bytes,
    call: InterruptedCall | None = None,
    filters: tuple[int, ...] = (),
) -> Thread:
    """Put together what was read of a thread from outside, by ptrace and from within. `like` is of `thread_like`,
    `final` are the registers to go on with."""
    reply = ffi.cast("lm_thread_replies *", ffi.from_buffer(replies))
    stack = reply.alternate_stack
    address = int(ffi.cast("uintptr_t", stack.ss_sp))
    return msgspec.structs.replace(
        like,
        tid=outside.tid,
        host_tid=outside.host_tid,
        name=ffi.string(reply.name),
        robust_list=reply.robust_list,
        robust_list_length=reply.robust_list_length,
        clear_child_tid=reply.clear_child_tid,
        alternate_stack=AlternateStack(address=address, size=stack.ss_size, flags=stack.ss_flags),
        rseq=stopped.rseq,
        registers=final.raw,
        xstate=stopped.xstate.rstrip(b"\0"),
        xstate_size=len(stopped.xstate),
        signal_mask=stopped.signal_mask,
        pending=pending,
        call=call,
        filters=filters,
    )


def whole_xstate(thread: Thread) -> bytes:
    """The vector state with the zeros at its end. Raises ValueError when it cannot be any processor's."""
    if not len(thread.xstate) <= thread.xstate_size <= XSTATE_LIMIT:
        raise ValueError(f"vector state of {thread.xstate_size} bytes in thread {thread.tid}")
    return thread.xstate.ljust(thread.xstate_size, b"\0")


def witnesses_of(replies: bytes) -> list[int]:
    """What the thread has replied about its witnesses (process/threads/landlock.py)."""
    return list(ffi.cast("lm_thread_replies *", ffi.from_buffer(replies)).witnesses)


def keyring_of(replies: bytes) -> bool:
    """Whether the thread has a keyring of its own or its process has one (keyrings(7)): neither can be moved."""
    reply = ffi.cast("lm_thread_replies *", ffi.from_buffer(replies))
    return bool(reply.thread_keyring > 0 or reply.process_keyring > 0)


def hot_addresses(thread: Thread) -> list[tuple[int, int]]:
    """What the thread, or the kernel for it, touches first: (address, length), to be placed before it resumes.

    The stack's top with the red zone and two pages above; the thread's own storage; the rseq area, the robust list's
    head and the clear-child-tid word; the instruction; the memory that an interrupted call reads or writes.
    """
    state = Registers(thread.registers)
    top = state.stack_pointer - RED_ZONE
    places = [(top, RED_ZONE + 2 * PAGE), (state.instruction_pointer - 2, 18)]
    if state.thread_pointer:
        places.append((state.thread_pointer - 256, 1024))
    if thread.rseq is not None:
        places.append((thread.rseq.address, thread.rseq.length))
    if thread.robust_list:
        places.append((thread.robust_list, thread.robust_list_length))
    if thread.clear_child_tid:
        places.append((thread.clear_child_tid, 4))
    if thread.call is not None:
        places.extend(thread.call.touched)
    return [(max(0, address), length) for address, length in places if length > 0]
