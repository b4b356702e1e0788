"""The programs that restore threads: one for all that are alike says to each what a program of its own would."""

from __future__ import annotations

import os

from msgspec.structs import replace

from live_migration.kernel.injection.program import Program
from live_migration.kernel.injection.side_by_side import encode_each
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.process import task, task_restore
from live_migration.process.threads.restore import restore_thread, restore_threads
from live_migration.process.threads.threads import AlternateStack, Rseq, Thread

PLACE = 1 << 30


def test_threads_that_are_alike_share_a_program() -> None:
    present = task_restore.present_credentials()
    first = task.snapshot_task(ProcessSnapshot(os.getpid())).description.threads[0]
    staged = {tid: replace(first, tid=tid, robust_list=0x1000 * tid) for tid in range(1, 80)}

    def changed(tid: int, thread: Thread) -> Thread:
        """Some threads differ in what only they have, some in what is the same in most."""
        thread = replace(thread, clear_child_tid=0x7000 + 8 * tid, registers=bytes([tid]) * 8, signal_mask=tid)
        if tid != 11:
            thread = replace(thread, rseq=Rseq(address=0x9000 + 64 * tid, length=32, signature=tid == 17, flags=0))
        if tid % 20 > 9:
            stack = AlternateStack(address=0x100000 * tid, size=0x2000 + tid, flags=0)
            thread = replace(thread, alternate_stack=stack, name=b"number %d" % tid)
        if tid in (23, 24):
            thread = replace(thread, pending=(bytes([10]) + bytes(127),))
        if tid in (30, 31):
            thread = replace(thread, robust_list=0x5000 + tid)
        if tid in (41, 42, 43):
            thread = replace(thread, scheduling=replace(thread.scheduling, nice=7), parent_death_signal=tid % 2)
        return thread

    final = {tid: (changed(tid, thread), None if tid in (50, 51) else thread) for tid, thread in staged.items()}
    apart = {}
    for tid, (thread, before) in final.items():
        apart[tid] = Program("one thread")
        restore_thread(apart[tid], thread, 1, present, before)
    together = restore_threads(final, 1, present)
    assert list(together) == list(apart)
    shared, own = encode_each(together, PLACE), encode_each(apart, PLACE)
    assert shared.content == own.content
    assert shared.places == own.places
    assert len({id(program) for program in together.values()}) < 30
