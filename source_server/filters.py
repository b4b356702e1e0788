"""The seccomp filters of a running process: only a stopped thread shows them, so it is stopped for a moment, once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_mlock, SYS_modify_ldt, SYS_setfsuid
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.kernel.seccomp import Call
from live_migration.process.queries import compose_queries
from live_migration.process.threads.filters import filtered_threads, read_chain, unreadable
from live_migration.process.threads.injection import answered_blockers, may_be_killed
from live_migration.process.threads.restore import retire_rows
from live_migration.source_server.snapshot import SourceSnapshot
from live_migration.source_server.tracking import brief_freeze
from live_migration.wire.blockers import Blocker

DISPENSABLE = (Call(SYS_setfsuid, (None,)), Call(SYS_modify_ldt, (0, None, 8)))
"""Many services may not make these calls (systemd: ~@privileged, ~@cpu-emulation). A thread's status tells the same as
the first, but slower; what may not make the second has no segments."""


def snapshot_filters(seen: SourceSnapshot) -> tuple[SourceSnapshot, list[Blocker]]:
    """The snapshot with the filters of all threads, and what of them cannot be moved. A process without filters is not
    stopped, and nobody is missed who has gone: the next step finds that.

    Raises LocalError; the process runs on as before."""
    try:
        if not filtered_threads(ProcessSnapshot(seen.pid)):
            return seen, []
        with brief_freeze(seen) as stops:
            read = {stop.tid: read_chain(stop.tid) for stop in stops}
    except ProcessGone:
        return seen, []
    except OSError as error:
        return seen, [unreadable(error)]
    filters = tuple(dict.fromkeys(one for chain in read.values() for one in chain))
    chains = {tid: tuple(filters.index(one) for one in chain) for tid, chain in read.items()}
    if not filters:
        return seen, [Blocker("seccomp", "the kernel does not show the process's filters", "run lm-serve as root")]
    known = seen.task.description
    threads = tuple(msgspec.structs.replace(one, filters=chains.get(one.host_tid, ())) for one in known.threads)
    description = msgspec.structs.replace(known, filters=filters, threads=threads)
    seen = replace(seen, task=replace(seen.task, description=description, chains=chains))
    left_out = frozenset(
        call.number for call in DISPENSABLE if any(may_be_killed(filters, chains, tid, [call]) for tid in chains)
    )
    if left_out:
        asked = seen.queries
        seen = replace(seen, queries=compose_queries(asked.of_process.posix_timers, asked.seen_by, left_out))
    return seen, answered_blockers(filters, chains.values(), calls_made_in(seen))


def calls_made_in(seen: SourceSnapshot) -> Iterable[Call]:
    """What is made in the threads of a process: they tell about themselves; here they are retired; there what is locked
    is locked again."""
    leaving = Program("leaving")
    retire_rows(leaving)
    for program in (seen.queries.of_leader, seen.queries.of_thread, leaving):
        yield from (Call(number, arguments) for number, arguments in program.calls())
    if any("lo" in mapping.flags for mapping in seen.memory.mappings):
        yield Call(SYS_mlock, (None, None))
