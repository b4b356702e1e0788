"""Programs in several threads of one process at the same time, one after the other in its memory.

A program that many threads run is relocated once, and what differs from thread to thread in it (OfEach) is put in then.
With a thousand threads, every step of the interpreter for each of them would show in the downtime.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from live_migration._lm import ffi, lib
from live_migration.kernel.injection.program import (
    END_SIGNAL,
    Ending,
    Outcome,
    Program,
    ProgramArea,
    ProgramTooLarge,
    run_placed,
)


@dataclass(frozen=True)
class EncodedEach:
    """Programs made for places in a row: `content` goes to `address`; `places` are table and ending of each thread."""

    address: int
    content: bytes
    places: dict[int, tuple[int, int]]


def encode_each(
    programs: Mapping[int, Program], address: int, ending: Ending = Ending.TRAP, end_signal: int = END_SIGNAL
) -> EncodedEach:
    """Relocate the program of each thread (by tid), one after the other, to `address`, a multiple of a row's size."""
    content, places = bytearray(), dict[int, tuple[int, int]]()
    for program, tids in _in_a_row(programs):
        room, start = program.room(), len(content)
        code = program.encode(address + start, room, ending, end_signal)
        content += code.content.ljust(room, b"\0") + bytes(room * (len(tids) - 1))
        if len(tids) > 1:
            view, words = ffi.from_buffer(content), program.addresses()
            lib.lm_program_repeat(view + start, room, len(tids), words, len(words))
            ffi.release(view)
        if of_each := program.of_each(address + start):
            # Every view goes before the content grows.
            with memoryview(content).cast("Q") as memory:
                for word, values in of_each:
                    first, step = start // 8 + word, room // 8
                    column = array("Q", [values[tid] for tid in tids])
                    memory[first : first + (len(tids) - 1) * step + 1 : step] = memoryview(column)
        for index, tid in enumerate(tids):
            places[tid] = (code.table + index * room, code.ending + index * room)
    return EncodedEach(address, bytes(content), places)


def outcomes_of(programs: Mapping[int, Program], encoded: EncodedEach, memory: bytes, pid: int) -> dict[int, Outcome]:
    """What the programs have left in `memory`, which is that of `encoded` afterwards. Raises SyscallFailed for a
    checked row that failed."""
    found = {}
    for tid, program in programs.items():
        table, _ = encoded.places[tid]
        start = table - encoded.address
        found[tid] = program.outcome(pid, table, memory[start : start + program.room()])
    return found


def run_each_in_husk(area: ProgramArea, programs: Mapping[int, Program]) -> None:
    """Run a program in each of these stopped tracees (by tid), threads of a process of ours, as many at the same time
    as there is room for. What `run_in_husk` says holds for each.

    Raises SyscallFailed for a row that failed, ProgramTooLarge, ProcessGone, OSError of ptrace."""
    batch: dict[int, Program] = {}
    room = 0
    for tid, program in programs.items():
        if program.room() > area.room:
            raise ProgramTooLarge(f"{program.name}: {program.room()} bytes do not fit into {area.room}")
        if room + program.room() > area.room:
            _run_batch(area, batch)
            batch, room = {}, 0
        batch[tid] = program
        room += program.room()
    if batch:
        _run_batch(area, batch)


def _run_batch(area: ProgramArea, programs: Mapping[int, Program]) -> None:
    encoded = encode_each(programs, area.table)
    places = ffi.new("struct lm_program_place[]", [(tid, *encoded.places[tid]) for tid in programs])
    memory = run_placed(places, area, encoded.content)
    outcomes_of(programs, encoded, memory, next(iter(programs)))


def _in_a_row(programs: Mapping[int, Program]) -> Iterator[tuple[Program, list[int]]]:
    """Each program with the threads, one after the other, that run it."""
    for _, those in itertools.groupby(programs.items(), key=lambda one: id(one[1])):
        threads = list(those)
        yield threads[0][1], [tid for tid, _ in threads]
