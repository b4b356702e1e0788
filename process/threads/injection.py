"""What forbids that a stopped thread makes system calls for us, checked before the first one is injected.

Under a seccomp filter the kernel may kill the thread for a call that its program never makes. If its calls are handed
back to it (PR_SET_SYSCALL_USER_DISPATCH), an injected one becomes a SIGSYS, deadly without a handler.
"""

from __future__ import annotations

from collections.abc import Iterable

from live_migration._lm import lib
from live_migration.wire.blockers import Blocker


def injection_blockers(tids: Iterable[int]) -> list[Blocker]:
    """One blocker for every stopped tracee of `tids` (host ids) in which no call may be injected."""
    found = []
    for tid in tids:
        if lib.lm_thread_dispatches_calls(tid):
            found.append(
                Blocker(
                    object=f"thread {tid}",
                    cause="its system calls are handed back to it (PR_SET_SYSCALL_USER_DISPATCH)",
                    remedy="programs that emulate another system (Wine) cannot be moved",
                )
            )
        if lib.lm_thread_has_filter(tid):
            found.append(
                Blocker(
                    object=f"thread {tid}",
                    cause="it runs under a seccomp filter, which the kernel does not give away",
                    remedy="run the process without the filter (for a container: seccomp=unconfined)",
                )
            )
    return found
