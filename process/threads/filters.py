"""Seccomp filters: read from stopped threads, compared in the freeze, and set again at the destination.

A thread's filters are a chain, of which it can only add to the end (seccomp(2)), so that its length tells whether it is
as it was. Threads made by clone(2) share what they began with; one that gives its filters to all others
(SECCOMP_FILTER_FLAG_TSYNC) needs that. So what all threads have in common is set by one of them, for all.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process.attributes.credentials import Credentials
from live_migration.wire.blockers import Blocker

MOST_INSTRUCTIONS, INSTRUCTION_SIZE = 4096, 8  # BPF_MAXINSNS; sizeof(struct sock_filter)
SET_MODE_FILTER = 1
FLAG_TSYNC, FLAG_LOG, FLAG_SPEC_ALLOW = 1, 2, 4
CAP_SYS_ADMIN = 21
CHANGED = "its seccomp filters have changed since they were read"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter: struct sock_filter, as often as it has instructions. `logs`: what it denies is logged."""

    program: bytes
    logs: bool = False


Chain = tuple[Filter, ...]


def filtered_threads(process: ProcessSnapshot) -> bool:
    """Has any thread filters? Raises ProcessGone."""
    for tid in process.thread_ids:
        try:
            if process.thread_status(tid).get("Seccomp") == "2":
                return True
        except ProcessGone:
            continue
    return False


def read_chain(tid: int) -> Chain:
    """The filters of a stopped tracee, the first one first. Raises OSError: this process may not read them, or the
    kernel does not give them."""
    found: list[Filter] = []
    while has_filter(tid, len(found)):
        room = ffi.new("char[]", MOST_INSTRUCTIONS * INSTRUCTION_SIZE)
        flags = ffi.new("uint64_t *")
        length = lib.lm_thread_filter(tid, len(found), room, flags)
        if length < 0:
            raise OSError(-length, os.strerror(-length), f"the seccomp filters of thread {tid}")
        program = bytes(ffi.buffer(room, length * INSTRUCTION_SIZE))
        found.append(Filter(program=program, logs=bool(flags[0] & FLAG_LOG)))
    return tuple(found)


def has_filter(tid: int, place: int) -> bool:
    """Has a stopped tracee a filter at this place of its chain? One that may not be asked counts as having none at
    0."""
    return bool(lib.lm_thread_filter(tid, place, ffi.NULL, ffi.NULL) >= 0)


def is_still(tid: int, length: int) -> bool:
    """Has the chain of a stopped tracee this length?"""
    return not has_filter(tid, length) and (length == 0 or has_filter(tid, length - 1))


def known_chain(tid: int, filters: Sequence[Filter], chains: Mapping[int, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The chain of a stopped tracee as numbers of `filters`: as `chains` has it, or, of a new thread, one that begins
    as the leader's (the first). None if it is another one."""
    known, leaders = chains.get(tid, ()), next(iter(chains.values()), ())
    if (tid in chains or not leaders) and is_still(tid, len(known)):
        return known
    if tid in chains:
        return None
    try:
        chain = read_chain(tid)
    except OSError:
        return None
    if not all(one in filters for one in chain):
        return None
    found = tuple(filters.index(one) for one in chain)
    return found if found[: len(leaders)] == leaders and found in chains.values() else None


def filter_blockers(filters: Sequence[Filter], chains: Iterable[Sequence[int]], present: Credentials) -> list[Blocker]:
    """Blockers on the destination: this process, with credentials `present`, may not set such filters. Raises
    ValueError for what no filters can be."""
    chains = list(chains)
    if any(not 0 <= place < len(filters) for chain in chains for place in chain):
        raise ValueError("a seccomp filter that is not there")
    if any(len(one.program) % INSTRUCTION_SIZE or not 0 < len(one.program) <= MOST_SIZE for one in filters):
        raise ValueError("a seccomp filter that is none")
    if not any(chains):
        return []
    if not present.effective >> CAP_SYS_ADMIN & 1:
        return [Blocker("seccomp", "setting filters again takes CAP_SYS_ADMIN here", "run lm-restore as root")]
    if ProcessSnapshot(os.getpid()).status.get("Seccomp", "0") != "0":
        cause = "lm-restore runs under filters of its own, which the process would have beside its own"
        return [Blocker("seccomp", cause, "run lm-restore without them (for a container: seccomp=unconfined)")]
    return []


MOST_SIZE = MOST_INSTRUCTIONS * INSTRUCTION_SIZE


def common_chain(chains: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """What all chains begin with."""
    places = zip(*chains, strict=False)
    return tuple(one[0] for one in itertools.takewhile(lambda each: len(set(each)) == 1, places))


def restore_filter(program: Program, one: Filter, *, for_all: bool = False) -> None:
    """A row that adds a filter to the chain of the thread that runs it, or `for_all` of all threads.

    What a filter does to speculation by default is set apart (PR_SET_SPECULATION_CTRL)."""
    flags = FLAG_SPEC_ALLOW | (FLAG_LOG if one.logs else 0) | (FLAG_TSYNC if for_all else 0)
    count = len(one.program) // INSTRUCTION_SIZE
    described = program.data(count.to_bytes(8, "little") + bytes(8))  # struct sock_fprog
    program.store(described + 8, program.data(one.program))
    program.call("seccomp", numbers.SYS_seccomp, SET_MODE_FILTER, flags, described)


def unreadable(error: OSError) -> Blocker:
    """The blocker for filters that could not be read."""
    remedy = "run the process without the filter (for a container: seccomp=unconfined)"
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run lm-serve as root, and without filters of its own"
    return Blocker("seccomp", f"the process's filters cannot be read: {error.strerror}", remedy)
