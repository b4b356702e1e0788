"""A process on a kernel with another vdso: the functions that it knows by address go on working, again and again."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from live_migration.experiments.machines import Machine
from live_migration.kernel.arch.arch import instructions
from live_migration.kernel.injection.program import Program
from live_migration.kernel.memory.maps import maps
from live_migration.kernel.tracing import tracee
from live_migration.process.memory import vdso
from live_migration.process.memory.bridge import bridge_blockers, changed_blockers, is_needed, plan_bridge
from live_migration.process.memory.mappings import AddressSpace, Mapping, MappingKind, snapshot_address_space
from live_migration.process.memory.vdso import EntryPoint, entry_points, make_bridge, own_code
from live_migration.restorer.husk import Husk, empty_rows, make_area, run
from live_migration.restorer.kernel_mappings import write_bridge
from live_migration.source_server.vdso_exit import interrupted_places
from tests.kernel.husks import stopped_husk
from tests.support import programs_help
from tests.support.programs_list import FOLDER, read_program
from tests.support.started import begin_move

OTHER_VDSO = Path(__file__).resolve().parent / "other_vdso.py"
FROZEN_AGAIN = Path(__file__).resolve().parent / "frozen_again.py"
STRATEGIES = ("post-copy", "stop-and-copy")
GETRANDOM_SIZES_ONLY = ctypes.c_size_t(-1).value
ENOSYS = 38


def altered(code: bytes, place: int = 15) -> bytes:
    """The code with one byte changed, by default one that nothing reads."""
    return code[:place] + bytes([code[place] ^ 1]) + code[place + 1 :]


def places() -> dict[str, int]:
    """Where this process's vdso has its functions."""
    start = next(entry.start for entry in maps(os.getpid()) if entry.path == vdso.NAME)
    return {entry.name: start + entry.offset for entry in entry_points(own_code())}


class Mapped:
    """A bridge in this process, to be called."""

    def __init__(self, image: bytes) -> None:
        self.memory = mmap.mmap(-1, len(image), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory.write(image)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.entries = {entry.name: entry.offset for entry in entry_points(own_code())}

    def call(self, name: str, *arguments: object) -> int:
        """Call a function of it."""
        function = ctypes.CFUNCTYPE(ctypes.c_long)(self.address + self.entries[name])
        function.argtypes = None  # type: ignore[assignment]
        return int(function(*arguments))


def test_the_kernels_own() -> None:
    names = {entry.name for entry in entry_points(own_code())}
    assert names >= {"clock_gettime", "clock_getres", "gettimeofday", "time", "getcpu"}
    assert not names - vdso.CALLS.keys() - vdso.WITHOUT_CALL


@pytest.mark.parametrize("led_to", ["the vdso", "system calls"])
def test_every_function_of_a_bridge_works(led_to: str) -> None:
    bridge = Mapped(make_bridge(altered(own_code()), places() if led_to == "the vdso" else {}))
    now = (ctypes.c_long * 2)()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert bridge.call("clock_gettime", time.CLOCK_MONOTONIC, ctypes.byref(now)) == 0
    assert before <= now[0] * 10**9 + now[1] <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert bridge.call("clock_getres", time.CLOCK_MONOTONIC, ctypes.byref(now)) == 0
    assert (now[0], now[1]) == (0, 1)
    assert bridge.call("gettimeofday", ctypes.byref(now), None) == 0
    assert abs(now[0] - time.time()) < 60
    assert abs(bridge.call("time", None) - time.time()) < 60
    processor = ctypes.c_uint(1 << 31)
    assert bridge.call("getcpu", ctypes.byref(processor), None, None) == 0
    assert processor.value < os.sysconf("SC_NPROCESSORS_CONF")
    if "getrandom" in bridge.entries:
        buffer = ctypes.create_string_buffer(32)
        nothing = ctypes.c_size_t(0)
        assert bridge.call("getrandom", buffer, nothing, 0, buffer, ctypes.c_size_t(GETRANDOM_SIZES_ONLY)) == -ENOSYS
        assert bridge.call("getrandom", buffer, ctypes.c_size_t(32), 0, None, nothing) == 32
        assert any(buffer.raw)


def test_functions_close_together_are_led_elsewhere_from_free_space() -> None:
    """Where a function is shorter than what would be written over it, a jump of five bytes leads to the end."""
    code = bytearray(own_code())
    first = next(entry for entry in entry_points(bytes(code)) if entry.name == "clock_gettime")
    table = bytes(code).index((first.size).to_bytes(8, "little"))
    while (place := bytes(code).find(first.size.to_bytes(8, "little"), table)) >= 0:
        code[place : place + 8] = (6).to_bytes(8, "little")
        table = place + 8
    assert EntryPoint("clock_gettime", first.offset, 6) in entry_points(bytes(code))
    image = make_bridge(bytes(code), places())
    assert image[first.offset] == 0xE9
    assert image[first.offset + 5 : first.offset + 13] == code[first.offset + 5 : first.offset + 13]
    now = (ctypes.c_long * 2)()
    assert Mapped(image).call("clock_gettime", time.CLOCK_MONOTONIC, ctypes.byref(now)) == 0
    assert abs(now[0] - time.monotonic()) < 60


@example([(39, 128)], 1)
@given(st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), max_size=20), st.integers(0, 8192))
def test_any_bytes_are_a_vdso_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    """It comes from the peer."""
    code = bytearray(own_code()[:length] if length % 3 == 0 else own_code())
    for place, value in changes:
        code[place % 0x420 if value % 2 else place : place + 1] = bytes([value])
    with contextlib.suppress(ValueError):
        assert len(make_bridge(bytes(code), places())) == len(code)


def test_the_same_vdso_needs_no_bridge() -> None:
    space = snapshot_address_space(os.getpid())
    assert not is_needed(space)
    assert bridge_blockers(space) == []
    assert changed_blockers(os.getpid(), space.vdso) == []


def test_another_one_needs_a_bridge_or_is_refused() -> None:
    space = snapshot_address_space(os.getpid())
    other = AddressSpace(mappings=space.mappings, vdso=altered(space.vdso))
    assert is_needed(other)
    assert bridge_blockers(other) == []
    for broken in (b"", altered(space.vdso, 1), space.vdso[:-4096]):
        if broken:
            (found,) = bridge_blockers(AddressSpace(mappings=space.mappings, vdso=broken))
            assert found.remedy == "run the same kernel on both hosts"


def test_the_kernels_mappings_keep_their_distances_and_are_out_of_the_way() -> None:
    space = snapshot_address_space(os.getpid())
    other = AddressSpace(mappings=space.mappings, vdso=altered(space.vdso))
    kept = (1 << 45, (1 << 45) + 4096)
    plan = plan_bridge(maps(os.getpid()), kept, other)
    assert {move.name for move in plan.moves} >= {"[vdso]", "[vvar]"}
    assert len({move.to - move.start for move in plan.moves}) == 1
    for move in plan.moves:
        taken = [kept, *((mapping.start, mapping.end) for mapping in space.mappings)]
        assert all(move.to + move.length <= start or end <= move.to for start, end in taken)
    assert len(plan.code) == len(space.vdso)


def test_the_mappings_of_another_kernel_may_be_fewer_and_smaller() -> None:
    """6.1 has no [vvar_vclock]. The bridge has the places of the source's, whatever this kernel's are."""
    own = snapshot_address_space(os.getpid())
    code = altered(own.vdso)
    data = Mapping(0x7F0000000000, 0x7F0000003000, MappingKind.KERNEL, 1, 0, "00:00", 0, "[vvar]", False)
    text = Mapping(0x7F0000003000, 0x7F0000003000 + len(code), MappingKind.KERNEL, 5, 0, "00:00", 0, "[vdso]", False)
    space = AddressSpace(mappings=[data, text], vdso=code)
    with stopped_husk() as pid:
        husk = Husk(pid, make_area(pid, [space]), -1)
        before = [entry for entry in maps(pid) if entry.path.startswith("[v")]
        plan = plan_bridge(maps(pid), (husk.area.address, husk.area.address + 3 * husk.area.size), space)
        program = Program("emptying")
        empty_rows(program, pid, husk.area, space, plan)
        run(husk, program)
        run(husk, write_bridge(pid, plan))
        after = {(entry.start, entry.end, entry.permissions, entry.path) for entry in maps(pid)}
        assert (data.start, data.end, "r--p", "") in after
        assert (text.start, text.end, "r-xp", "") in after
        assert tracee.read_memory(pid, data.start, data.length) == bytes(data.length)
        assert tracee.read_memory(pid, text.start, text.length) == plan.code
        names = [entry.path for entry in before if entry.path != "[vsyscall]"]
        assert sorted(name for *_, name in after if name.startswith("[v")) == sorted([*names, "[vsyscall]"])


def test_a_vdso_that_the_program_changed_is_an_blocker() -> None:
    (found,) = changed_blockers(7, altered(own_code()))
    assert str(found).startswith("the vdso of process 7")


def test_where_a_thread_may_stand() -> None:
    code = own_code()
    entry = next(entry for entry in entry_points(code) if entry.name == "clock_gettime")
    call = code.index(instructions.SYSCALL, entry.offset + vdso.PATCH_ROOM)
    assert vdso.is_passable(code, entry.offset)
    assert not vdso.is_passable(code, entry.offset + 4)
    assert not vdso.is_passable(code, entry.offset + vdso.PATCH_ROOM)
    assert vdso.is_passable(code, call)
    assert not vdso.is_passable(code, call + 1)
    assert vdso.is_passable(code, call + 2)


def test_the_places_to_which_handlers_return_are_found(tmp_path: Path, orphans: None) -> None:
    """A program that is in two handlers, the inner one on an alternate stack."""
    programs_help.build()
    running = programs_help.run(read_program(FOLDER / "signal_in_handler.c"), tmp_path)
    running.wait_ready()
    pid = running.process.pid
    memory = snapshot_address_space(pid)
    tracee.seize(pid)
    last = tracee.stop(pid)
    found = interrupted_places(pid, memory, tracee.get_registers(pid).stack_pointer)
    tracee.release(last, True)
    # The other one stands on the first stack.
    assert len(found) == 2
    for place in found:
        (where,) = (mapping for mapping in memory.mappings if mapping.start <= place < mapping.end)
        assert where.protection & mmap.PROT_EXEC
    running.say_moved()
    assert running.verdict() == "passed"


@pytest.mark.program
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_moved_twice_over_bridges(
    strategy: str, tmp_path: Path, machines: tuple[Machine, Machine], orphans: None
) -> None:
    """Threads are in the vdso nearly all of the time, and its functions are called by pointers of the first kernel."""
    programs_help.build()
    running = programs_help.run(read_program(FOLDER / "vdso_entries.c"), tmp_path, machines[0])
    running.wait_ready()
    pid = running.process.pid
    inside = None
    ways = [machines, (machines[1], machines[0])]
    for number, way in enumerate(ways, 1):
        move = begin_move(
            pid,
            way,
            tmp_path,
            strategy=strategy,
            restore=["--pid", "namespace"],
            number=number,
            inside=inside,
            serving=[str(OTHER_VDSO)],
        )
        try:
            inside = move.resumed()
            move.restore.event("complete")
        except BaseException:
            print(move.said())
            raise
        mapped = [entry for entry in maps(inside) if entry.permissions == "r-xp" and entry.inode == 0]
        bridges = [entry for entry in mapped if not entry.path]
        assert len(bridges) == number
        assert [entry.path for entry in mapped if entry.path] == ["[vdso]"]
    running.say_moved()
    assert running.verdict() == "passed"


@pytest.mark.program
@pytest.mark.parametrize("strategy", ["post-copy", "pre-copy", "hybrid"])
def test_frozen_again(
    strategy: str, tmp_path: Path, machines: tuple[Machine, Machine], orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread is in the vdso when the process is frozen first: it runs on. Rounds are corrected at both."""
    monkeypatch.setenv("PYTHONPATH", str(FROZEN_AGAIN.parents[2]))
    programs_help.build()
    running = programs_help.run(read_program(FOLDER / "memory_changing.c"), tmp_path, machines[0])
    running.wait_ready()
    move = begin_move(
        running.process.pid,
        machines,
        tmp_path,
        strategy=strategy,
        restore=["--pid", "namespace"],
        serving=[str(FROZEN_AGAIN)],
    )
    try:
        move.resumed()
        move.restore.event("complete")
    except BaseException:
        print(move.said())
        raise
    running.say_moved()
    assert running.verdict() == "passed", move.said()
