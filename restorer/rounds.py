"""Rounds at the destination: pages land in the husk while the source runs, at their final place.

In the end the source says which of them have changed or gone; that is applied before the process runs.
"""

from __future__ import annotations

import mmap
from typing import Any

import msgspec

from live_migration._lm import lib
from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.syscall_numbers import SYS_madvise, SYS_mprotect, SYS_prctl
from live_migration.pager.pager import PagedRange, RangeKind
from live_migration.process.member import Layout
from live_migration.process.memory.mapped_files import preflight_mapped_files, unnamed_blockers
from live_migration.process.memory.mappings import AddressSpace, MappingKind
from live_migration.restorer import stage as build
from live_migration.restorer.allowed import path_blockers
from live_migration.restorer.husk import run as run_in
from live_migration.restorer.phases import Staged
from live_migration.restorer.room import mapping_blockers
from live_migration.restorer.waiting import expect, interrupted_by_frontend, receive_push
from live_migration.wire import messages
from live_migration.wire.errors import Refused
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Round

WAIT_SECONDS = 3600.0
DROPS_AT_A_TIME = 4096
MADV_DONTNEED, MADV_REMOVE = 4, 9


def memory_ranges(memory: AddressSpace) -> list[PagedRange]:
    """All of the memory for which pages may be sent, in the order of addresses, and how they arrive."""
    ranges = [
        PagedRange(m.start, m.end, RangeKind.SHARED if m.kind is MappingKind.SHARED_ANONYMOUS else RangeKind.ANONYMOUS)
        for m in memory.paged_on_demand
    ]
    ranges += [PagedRange(m.start, m.end, RangeKind.WRITTEN) for m in memory.eager]
    return sorted(ranges, key=lambda one: one.start)


def take_rounds(staged: Staged) -> messages.Freezing:
    """Receive rounds until the freeze begins. Raises MigrationError, OSError."""
    due: Any = messages.Round | messages.Freezing
    small = False
    while True:
        message: messages.Round | messages.Freezing = expect(staged.connected, due, WAIT_SECONDS)
        if isinstance(message, messages.Freezing):
            return message
        staged.pager.follow()
        if not small:
            _keep_pages_small(staged)
            small = True
        if message.payload != messages.NOTHING:
            for layout in messages.unpack(message.payload, list[Layout]):
                _follow_layout(staged, layout)
        with interrupted_by_frontend(staged.connected):
            receive_push(staged, message.push)
        failpoint("destination-round")
        staged.connected.control.send(messages.Pushed(push=message.push))


def take_freezing(staged: Staged, message: messages.Freezing) -> None:
    """A freeze comes: learn what the migration came to be, let the freeze begin, and receive meanwhile the corrections
    of the rounds. Raises MigrationError, OSError, SyscallFailed."""
    report = staged.connected.report
    report.strategy = message.strategy
    report.tracking = message.tracking
    if message.payload != messages.NOTHING:
        report.rounds = messages.unpack(message.payload, list[Round])
    failpoint("destination-prepared")
    staged.connected.control.send(messages.Prepared())
    correct(staged, message.correction, staged.building.staged.memory)


def _keep_pages_small(staged: Staged) -> None:
    """Until the process has its own setting back (process/attributes/prctl.py): see `unwatched_drops`."""
    program = Program("leaving huge pages for later")
    program.call("PR_SET_THP_DISABLE", SYS_prctl, int(lib.PR_SET_THP_DISABLE), 1, 0, 0, 0)
    run_in(staged.building.husk, program)


def _follow_layout(staged: Staged, layout: Layout) -> None:
    """Lay the husk out as the source is now."""
    if layout.space != staged.building.staged.space:
        raise messages.broken(f"it lays out the memory of space {layout.space}, which no member has")
    blockers = path_blockers(layout, staged.connected.descriptor_options) or [
        *preflight_mapped_files(layout.files, staged.connected.descriptor_options),
        *unnamed_blockers(layout.memory.mappings, layout.files, staged.connected.descriptor_options),
        *mapping_blockers(len(layout.memory.mappings)),
    ]
    if blockers:
        raise Refused(blockers, object="what the process has mapped meanwhile")
    build.follow_layout(staged.building, layout.memory)
    members = [staged.building.staged]
    staged.described = msgspec.structs.replace(staged.described, members=members, mapped_files=layout.files)
    staged.pager.set_ranges(memory_ranges(layout.memory), layout.space)


def correct(staged: Staged, push: int, memory: AddressSpace) -> None:
    """Receive the corrections of the rounds, in a husk of this layout; nothing for push 0.

    Raises MigrationError, OSError, SyscallFailed."""
    if push:
        receive_push(staged, push)
        drop_discarded(staged, memory)


def drop_discarded(staged: Staged, memory: AddressSpace) -> None:
    """Drop in the husk what is to be discarded, and what could not be written over. Raises OSError, SyscallFailed."""
    if not staged.pager.is_to_discard:
        return
    drops = staged.pager.drops()
    with staged.pager.unwatched_drops():
        for first in range(0, len(drops.starts), DROPS_AT_A_TIME):
            program = Program("dropping pages that have changed")
            part = slice(first, first + DROPS_AT_A_TIME)
            program.call_each("drop", SYS_madvise, drops.starts[part], drops.lengths[part], MADV_DONTNEED)
            run_in(staged.building.husk, program)
        for first in range(0, len(drops.shared), DROPS_AT_A_TIME):
            program = Program("dropping shared pages that have changed")
            for start, length in drops.shared[first : first + DROPS_AT_A_TIME]:
                _drop_shared_rows(program, start, length, memory)
            run_in(staged.building.husk, program)
    staged.pager.dropped(in_order=not staged.connected.options.parameters.hot_first)


def _drop_shared_rows(program: Program, start: int, length: int, memory: AddressSpace) -> None:
    # MADV_REMOVE needs the right to write (madvise(2)).
    protection = next(one.protection for one in memory.mappings if one.start <= start < one.end)
    writable = bool(protection & mmap.PROT_WRITE)
    if not writable:
        program.call("let it be dropped", SYS_mprotect, start, length, mmap.PROT_READ | mmap.PROT_WRITE)
    program.call("drop", SYS_madvise, start, length, MADV_REMOVE)
    if not writable:
        program.call("protect it again", SYS_mprotect, start, length, protection)
