"""What forbids that a stopped thread makes system calls for us, checked before the first one is injected.

If its calls are handed back to it (PR_SET_SYSCALL_USER_DISPATCH), an injected one becomes a SIGSYS, deadly without a
handler. Under seccomp filters the kernel may kill the thread for a call that its program never makes. While we trace
it, the filters are suspended. If we die in the middle, they are not: so they are asked beforehand what they would
answer to every call, and none may be deadly, and none by which a thread waits or goes home may be denied.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from live_migration._lm import lib
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.seccomp import Answer, Call, answer_of, may_notify
from live_migration.kernel.tracing import tracee
from live_migration.process.threads.filters import CHANGED, Filter, known_chain
from live_migration.wire.blockers import Blocker

ON_THE_WAY = (
    Call(numbers.SYS_rt_sigreturn, (None,) * 6),
    Call(numbers.SYS_munmap, (None, None)),
    Call(numbers.SYS_nanosleep, (None, 0)),
    Call(numbers.SYS_pause),
)
"""By these a thread waits, at the source and at the destination, and goes home."""
AROUND = (
    Call(numbers.SYS_mmap, (None, None, 7, None, (1 << 64) - 1, 0)),
    Call(numbers.SYS_getpid),
    Call(numbers.SYS_gettid),
    Call(numbers.SYS_tgkill, (None, None, None)),
    Call(numbers.SYS_timer_gettime, (None, None)),
    Call(numbers.SYS_clock_gettime, (1, None)),
    Call(numbers.SYS_set_robust_list, (0, None)),
    Call(numbers.SYS_set_tid_address, (0,)),
    Call(numbers.SYS_exit_group, (0,)),
)
"""What is made in a process beside the rows of its queries."""
NAMES = {number: name.removeprefix("SYS_") for name, number in vars(numbers).items() if name.startswith("SYS_")}
WITHOUT = "let them allow that, or run the process without them (in a container: seccomp=unconfined)"


def injection_blockers(
    tids: Iterable[int],
    filters: Sequence[Filter],
    chains: dict[int, tuple[int, ...]],
    unusual: Container[int] | None = None,
) -> list[Blocker]:
    """One blocker for every stopped tracee of `tids` (host ids) in which no call may be injected: it dispatches its
    calls, or its `chains` of `filters` are others than those that were asked. Chains of new threads are added.

    If `unusual` is given, only those threads dispatch calls or have filters (`own_state.look_at_threads`)."""
    found = []
    filtered = any(chains.values())
    for tid in tids:
        if not filtered and unusual is not None and tid not in unusual:
            continue
        if lib.lm_thread_dispatches_calls(tid):
            found.append(
                Blocker(
                    object=f"thread {tid}",
                    cause="its system calls are handed back to it (PR_SET_SYSCALL_USER_DISPATCH)",
                    remedy="programs that emulate another system (Wine) cannot be moved",
                )
            )
        chain = known_chain(tid, filters, chains)
        if chain is None:
            found.append(Blocker(f"thread {tid}", CHANGED, "try again"))
        elif chain:
            chains[tid] = chain
    return found


def suspend_filters(tids: Iterable[int], chains: Mapping[int, tuple[int, ...]]) -> None:
    """Let stopped tracees make calls without being filtered, as long as this process traces them. Raises ProcessGone,
    OSError."""
    for tid in tids:
        if chains.get(tid):
            tracee.set_options(tid, tracee.TRACESYSGOOD | tracee.SUSPEND_SECCOMP)


def answered_blockers(
    filters: Sequence[Filter], chains: Iterable[Sequence[int]], calls: Iterable[Call]
) -> list[Blocker]:
    """Blockers of filters that ask another process, or that kill for one of `calls`, or deny one by which threads wait
    and go home."""
    if any(may_notify(one.program) for one in filters):
        cause = "a filter asks another process (SECCOMP_RET_USER_NOTIF), and its listener stays here"
        return [Blocker("seccomp", cause, "run the process without that filter")]
    wanted = dict.fromkeys((*calls, *AROUND))
    killed: dict[str, None] = {}
    denied: dict[str, None] = {}
    for chain in dict.fromkeys(map(tuple, chains)):
        programs = [filters[place].program for place in chain]
        for call in (*wanted, *ON_THE_WAY):
            answer = answer_of(programs, call)
            if answer is Answer.LETHAL:
                killed[NAMES[call.number]] = None
            elif answer is Answer.DENIED and call in ON_THE_WAY:
                denied[NAMES[call.number]] = None
    found = []
    if killed:
        cause = f"its filters may kill it for what the move makes in it: {', '.join(killed)}"
        found.append(Blocker("seccomp", cause, WITHOUT))
    if denied:
        cause = f"its filters deny it what its threads need to wait while they are moved: {', '.join(denied)}"
        found.append(Blocker("seccomp", cause, WITHOUT))
    return found


def may_be_killed(
    filters: Sequence[Filter], chains: Mapping[int, tuple[int, ...]], tid: int, calls: Iterable[Call]
) -> bool:
    """May a thread's filters kill it for one of these calls?"""
    programs = [filters[place].program for place in chains.get(tid, ())]
    return any(answer_of(programs, call) is Answer.LETHAL for call in calls)
