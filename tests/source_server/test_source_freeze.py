"""The freeze at the source: whatever fails in it, the process goes on with nothing of it left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection.syscall_numbers import SYS_clock_nanosleep
from live_migration.kernel.memory.maps import MapEntry, maps, maps_text, smaps
from live_migration.process.member import Runs
from live_migration.process.memory import mappings
from live_migration.process.memory.mappings import PAGE
from live_migration.process.threads.landlock import witnesses
from live_migration.source_server import handover
from live_migration.source_server.pages.client import PageClient
from live_migration.source_server.pages.pusher import Pusher, pushing
from live_migration.source_server.pages.store import PageStore
from live_migration.source_server.same_program import check_same_program
from live_migration.source_server.serve import snapshot_or_refuse
from live_migration.source_server.snapshot import SourceSnapshot, snapshot_source
from live_migration.source_server.tracking import start_tracking
from live_migration.wire.errors import LocalError, Refused
from live_migration.wire.handshake import Side
from live_migration.wire.session import Session, State
from tests.kernel.husks import kill_and_reap, wait_until, without_preload

pytestmark = pytest.mark.timeout(180)


def frozen(seen: SourceSnapshot) -> contextlib.AbstractContextManager[handover.Frozen]:
    """The freeze of a migration that has come so far."""
    return handover.frozen(seen, Session(Side.SOURCE, State.FREEZING))


def await_sleep(pid: int) -> None:
    """Wait until a sleep(1) sleeps: only then are its libraries mapped, and nothing changes any more."""
    asleep = f"{SYS_clock_nanosleep} "
    wait_until(lambda: Path(f"/proc/{pid}/syscall").read_text().startswith(asleep))


@pytest.fixture
def seen() -> Iterator[SourceSnapshot]:
    process = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
    try:
        await_sleep(process.pid)
        found, blockers = snapshot_source(process.pid)
        assert not blockers
        yield found
    finally:
        kill_and_reap(process.pid)


def test_an_error_after_the_threads_were_asked_leaves_no_mapping(seen: SourceSnapshot) -> None:
    before = maps_text(seen.pid)

    def fail_halfway() -> None:
        with frozen(seen) as state:
            handover.query_threads(state)
            assert maps_text(seen.pid) != before
            raise OSError(24, "no more descriptors")

    with pytest.raises(LocalError, match="no more descriptors"):
        fail_halfway()
    assert maps_text(seen.pid) == before


MAPS_AT_WORDS = """
import ctypes, mmap, sys
file = open(sys.executable, "rb")
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
place = None
for word in sys.stdin:
    if word == "advise\\n":
        libc.madvise(place, 1 << 20, mmap.MADV_DONTFORK)
    elif word == "map\\n":
        place = libc.mmap(place, 1 << 20, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0)
    else:
        libc.munmap(place, 1 << 20)
    print(place, flush=True)
"""


@pytest.fixture
def mapping_program() -> Iterator[tuple[int, Callable[[str], int]]]:
    """A process that maps a MiB of a file, always at the same address, and takes it away when it is told to.

    Its id and what tells it `map`, `unmap` or `advise` (MADV_DONTFORK) and answers with the address."""
    command = [sys.executable, "-c", MAPS_AT_WORDS]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=without_preload()
    )
    assert process.stdin is not None
    assert process.stdout is not None
    words, answers = process.stdin, process.stdout

    def say(word: str) -> int:
        words.write(word + "\n")
        words.flush()
        return int(answers.readline())

    try:
        say("map")
        yield process.pid, say
    finally:
        kill_and_reap(process.pid)
        words.close()
        answers.close()


@pytest.mark.parametrize("at_the_freeze", ["map", "unmap"])
def test_what_is_mapped_and_unmapped_while_it_is_looked_at_is_known_at_the_freeze(
    at_the_freeze: str, mapping_program: tuple[int, Callable[[str], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that tells whether the layout has changed is read at another moment than the layout itself."""
    pid, say = mapping_program
    while_it_is_looked_at = "unmap" if at_the_freeze == "map" else "map"

    def read_in_between(pid: int) -> list[MapEntry]:
        say(while_it_is_looked_at)
        entries = smaps(pid)
        say(at_the_freeze)
        return entries

    place = say(at_the_freeze)
    monkeypatch.setattr(mappings, "smaps", read_in_between)
    seen, blockers = snapshot_source(pid)
    monkeypatch.undo()
    assert not blockers
    with frozen(seen) as state:
        asked = handover.query_threads(state)
    is_mapped = any(one.start <= place < one.end for one in asked.memory.mappings)
    assert is_mapped == (at_the_freeze == "map")


def test_no_copy_is_dropped_of_what_is_a_file_no_more(mapping_program: tuple[int, Callable[[str], int]]) -> None:
    """A page that was pushed shows the file again: only where the file is still mapped, not where other memory is."""
    pid, say = mapping_program
    place = say("map")
    seen, _ = snapshot_source(pid)
    whole = next(mapping for mapping in seen.memory.mappings if mapping.start <= place < mapping.end)
    seen.pushed.append(Runs(whole.start, whole.length // PAGE))
    with frozen(seen) as state:
        described = handover.describe(state, handover.query_threads(state))
        described.descriptors.close()
    assert sum(run.pages for run in described.description.member.dropped) == whole.length // PAGE
    say("unmap")
    with frozen(seen) as state:
        described = handover.describe(state, handover.query_threads(state))
        described.descriptors.close()
    assert described.description.member.dropped == []


@contextlib.contextmanager
def changed_after_the_look(program: str, answer: str) -> Iterator[SourceSnapshot]:
    """The snapshot of a Python program that says that it is ready, and has changed itself since: a line told it to, and
    it has answered."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=without_preload()) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            seen, blockers = snapshot_source(process.pid)
            assert not blockers
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline().decode() == f"{answer}\n"
            yield seen
        finally:
            process.kill()


LOSES_ITS_DESCRIPTOR = """
import mmap, os, sys
memfd = os.memfd_create("lost")
os.truncate(memfd, 4096)
memory = mmap.mmap(memfd, 4096)
# The object keeps a duplicate of its own, one number higher.
os.close(memfd + 1)
print(memfd, flush=True)
sys.stdin.readline()
os.close(memfd)
print("closed", flush=True)
sys.stdin.readline()
os._exit(0)
"""


def test_a_memfd_that_loses_its_descriptor_after_the_look_is_refused() -> None:
    """The layout is the same, and nothing leads to what the mapping shows any more."""
    with changed_after_the_look(LOSES_ITS_DESCRIPTOR, "closed") as seen, frozen(seen) as state:
        described = handover.describe(state, handover.query_threads(state))
        described.descriptors.close()
    assert [blocker.cause for blocker in described.blockers] == ["is a memfd without a descriptor"]


LOCKS_ITS_MEMORY = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ctypes.CDLL(None).madvise(ctypes.c_void_p(address), 1 << 20, 1)  # MADV_RANDOM: a mapping of its own
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.CDLL(None).mlock(ctypes.c_void_p(address), 1 << 20), flush=True)
sys.stdin.readline()
"""


def test_memory_that_is_locked_after_the_look_is_locked() -> None:
    """The layout is the same."""
    with changed_after_the_look(LOCKS_ITS_MEMORY, "0") as seen:
        assert seen.memory.locked_bytes == 0
        with frozen(seen) as state:
            found = handover.query_threads(state).memory
        assert found.locked_bytes == 1 << 20


MERGES_ITS_MEMORY = """
import ctypes, sys
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.CDLL(None).prctl(67, 1, 0, 0, 0), flush=True)  # PR_SET_MEMORY_MERGE
sys.stdin.readline()
"""


def test_memory_that_is_to_be_merged_after_the_look_is_seen_so() -> None:
    """The layout is the same."""
    with changed_after_the_look(MERGES_ITS_MEMORY, "0") as seen:
        assert not any("mg" in mapping.flags for mapping in seen.memory.mappings)
        with frozen(seen) as state:
            found = handover.query_threads(state).memory
        assert any("mg" in mapping.flags for mapping in found.mappings)


DROPS_IN_A_THREAD = """
import ctypes, sys, threading
libc, told, done = ctypes.CDLL(None), threading.Event(), threading.Event()

def drop():
    told.wait()
    print(libc.prctl(24, 20, 0, 0, 0), flush=True)  # PR_CAPBSET_DROP
    done.wait()

threading.Thread(target=drop, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
told.set()
sys.stdin.readline()
"""


def test_what_a_thread_drops_from_its_bounding_set_after_the_look_is_dropped() -> None:
    """It tells its other credentials itself."""
    with changed_after_the_look(DROPS_IN_A_THREAD, "0") as seen, frozen(seen) as state:
        described = handover.describe(state, handover.query_threads(state))
        described.descriptors.close()
    leader, thread = (one.credentials.bounding for one in described.description.member.task.threads)
    assert leader & ~thread == 1 << 20


LEAVES_ITS_NAMESPACE = """
import ctypes, sys
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.CDLL(None).unshare(%#x), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("flag", "kind"), [(0x20000000, "pid_for_children"), (0x04000000, "uts"), (0x10000000, "user")], ids=str
)
def test_another_namespace_after_the_look_is_refused(flag: int, kind: str) -> None:
    with changed_after_the_look(LEAVES_ITS_NAMESPACE % flag, "0") as seen:
        before = maps_text(seen.pid)
        with pytest.raises(Refused, match=f"its {kind} namespace has changed"), frozen(seen) as state:
            handover.query_threads(state)
        assert maps_text(seen.pid) == before


FILTERS_ITS_CALLS = """
import ctypes, struct, sys
print("ready", flush=True)
sys.stdin.readline()
program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))  # SECCOMP_RET_ALLOW
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
print(libc.prctl(22, 2, ctypes.byref(Filter(1, ctypes.addressof(program)))), flush=True)  # PR_SET_SECCOMP
sys.stdin.readline()
"""


def test_what_has_filters_by_now_is_refused_before_anything_is_run_in_it() -> None:
    """A filter may kill for any system call."""
    with changed_after_the_look(FILTERS_ITS_CALLS, "0") as seen:
        before = maps_text(seen.pid)
        with pytest.raises(Refused, match="its seccomp filters have changed"), frozen(seen) as state:
            handover.query_threads(state)
        assert maps_text(seen.pid) == before


A_THREAD_GOES_APART = """
import ctypes, sys, threading
told = threading.Event()
def apart():
    told.wait()
    print(ctypes.CDLL(None).unshare({flag}), flush=True)
    threading.Event().wait()
thread = threading.Thread(target=apart, daemon=True)
if {known}:
    thread.start()
print(0, flush=True)
sys.stdin.readline()
told.set()
if not {known}:
    thread.start()
sys.stdin.readline()
"""
CLONE_FS, CLONE_NEWUTS = 0x200, 0x04000000


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("flag", "what"), [(CLONE_FS, "working directory, root and umask"), (CLONE_NEWUTS, "uts namespace")]
)
def test_a_thread_that_has_gone_apart_by_now_is_refused(flag: int, what: str, known: bool) -> None:
    """Whether the thread was there at the look or not."""
    program = A_THREAD_GOES_APART.format(flag=flag, known=known)
    refused = pytest.raises(Refused, match=f"it has a {what} of its own")
    with changed_after_the_look(program, "0") as seen, refused, frozen(seen) as state:
        handover.query_threads(state)


def test_a_layout_that_has_not_changed_is_the_one_known(seen: SourceSnapshot) -> None:
    assert seen.layout == maps_text(seen.pid)
    assert mappings.reread(seen.pid, maps(seen.pid), seen.memory) is seen.memory
    with frozen(seen) as state:
        assert handover.query_threads(state).memory is seen.memory


@pytest.fixture
def replaced() -> Iterator[SourceSnapshot]:
    """A process that has executed another program since its snapshot."""
    process = subprocess.Popen(
        ["sh", "-c", "read word; exec sleep 600"], stdin=subprocess.PIPE, env=without_preload()
    )
    try:
        seen, _ = snapshot_source(process.pid)
        assert process.stdin is not None
        with process.stdin as words:
            words.write(b"go\n")
        wait_until(lambda: "sleep" in os.readlink(f"/proc/{process.pid}/exe"))
        await_sleep(process.pid)
        yield seen
        # Signals that nobody should have sent to it would end it.
        assert process.poll() is None
    finally:
        kill_and_reap(process.pid)


def freeze(seen: SourceSnapshot) -> None:
    with frozen(seen) as state:
        handover.query_threads(state)


def track(seen: SourceSnapshot) -> None:
    start_tracking(seen, soft=False)


@pytest.mark.parametrize("step", [freeze, track])
def test_another_program_is_not_touched(replaced: SourceSnapshot, step: Callable[[SourceSnapshot], None]) -> None:
    before = maps_text(replaced.pid)
    with pytest.raises(LocalError, match="it has executed another program; it runs on here; start again"):
        step(replaced)
    time.sleep(0.05)
    assert maps_text(replaced.pid) == before


def test_no_thread_is_sent_to_code_that_has_changed(seen: SourceSnapshot) -> None:
    moved = dataclasses.replace(seen.gadgets, signal_return=seen.gadgets.signal_return + 16)
    with pytest.raises(LocalError, match="the code of the process that brings its threads home has changed"):
        freeze(dataclasses.replace(seen, gadgets=moved))
    os.kill(seen.pid, 0)


def test_what_executes_another_program_before_a_destination_comes_is_looked_at_anew(replaced: SourceSnapshot) -> None:
    with witnesses(replaced.pid) as seen_by:
        seen = snapshot_or_refuse(replaced.pid, seen_by)
        assert seen.executable != replaced.executable
        freeze(seen)


def test_what_is_advised_before_a_destination_comes_is_known(
    mapping_program: tuple[int, Callable[[str], int]],
) -> None:
    """Advice for the whole of a mapping leaves the text of /proc/PID/maps as it was."""
    pid, say = mapping_program
    seen, _ = snapshot_source(pid)
    place = say("advise")
    assert maps_text(pid) == seen.layout
    with witnesses(pid) as seen_by:
        now = snapshot_or_refuse(pid, seen_by)
    assert "dc" not in next(one.flags for one in seen.memory.mappings if one.start <= place < one.end)
    assert "dc" in next(one.flags for one in now.memory.mappings if one.start <= place < one.end)


def test_what_has_ended_is_not_taken_for_another_program(seen: SourceSnapshot) -> None:
    kill_and_reap(seen.pid)
    with pytest.raises(LocalError, match="it has ended; nothing is left to move"):
        check_same_program(seen, "the freeze")


def test_pushes_are_done_in_order_and_an_error_of_one_ends_nothing() -> None:
    done = []

    def fail() -> None:
        raise OSError(32, "the peer is gone")

    pusher = Pusher()
    pusher.do(lambda: done.append(1))
    pusher.do(fail)
    pusher.do(lambda: done.append(2))
    assert pusher.wait(60)
    assert done == [1, 2]
    pusher.close()


def test_waiting_for_a_push_that_hangs_ends() -> None:
    release = threading.Event()
    pusher = Pusher()
    pusher.do(lambda: release.wait(60))
    assert not pusher.wait(0.01)
    release.set()
    pusher.close()


def test_an_error_hangs_up_so_that_the_push_under_way_comes_back() -> None:
    store = PageStore()
    client = PageClient(store)
    hung_up = threading.Event()
    client.hang_up = hung_up.set  # type: ignore[method-assign]

    def fail_meanwhile() -> None:
        with store, client, pushing(client) as pusher:
            pusher.do(lambda: hung_up.wait(60))
            raise KeyError

    with pytest.raises(KeyError):
        fail_meanwhile()
    assert hung_up.is_set()


def test_a_process_that_has_ended_and_was_not_waited_for_has_no_layout() -> None:
    """Its name is still there, and an empty layout would be followed like any other."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessGone):
        maps_text(ended.pid)
    ended.wait()
