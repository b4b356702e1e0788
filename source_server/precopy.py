"""Copying while the process runs: round after round, until few pages are dirty, or their number stops falling.

The rounds change nothing in the process except that its writes are tracked, and that ends with this object, on every
way out. What they have sent is corrected when the process stands still (`correct`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.memory.maps import maps, maps_text
from live_migration.kernel.memory.referenced import clear_referenced, resident_bytes, snapshot_touched
from live_migration.process.attributes.status import merges_all
from live_migration.process.descriptors.contents import inodes_without_path
from live_migration.process.descriptors.files import File
from live_migration.process.descriptors.table import DescriptorTable
from live_migration.process.member import Layout, Runs
from live_migration.process.memory.layout_change import layout_difference
from live_migration.process.memory.mapped_files import mapped_file_blockers, snapshot_mapped_files_live
from live_migration.process.memory.mappings import AddressSpace, MappingKind, layout_text, mapping_blockers, reread
from live_migration.process.threads.sleeps import longest_epoll_wait
from live_migration.source_server.convergence import NextStep, allowed_downtime_ms, next_step, pause_before_next
from live_migration.source_server.pages.client import PageClient, PushRun
from live_migration.source_server.pages.rounds import Rounds, round_ranges
from live_migration.source_server.same_program import program_gone
from live_migration.source_server.snapshot import PAGE, SourceSnapshot, changed_file_pages
from live_migration.source_server.tracking import OURS, brief_freeze, start_tracking
from live_migration.wire import messages
from live_migration.wire.control import ControlChannel
from live_migration.wire.errors import ConnectionLost, LocalError, Refused
from live_migration.wire.events import Events
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.failpoints import failpoint
from live_migration.wire.report import Round, show_seconds
from live_migration.wire.strategy import AUTO, STRATEGIES, Parameters
from live_migration.wire.stream import means_lost

STEP = "copying while the process runs"
ROUND_PUSH = 16
CORRECTION_PUSH = 1 << 30
PART_NS = 250_000_000
ANSWER_SECONDS = 600.0
LEARNING_SECONDS = 0.3
HOT_RUNS = 16384
HOT_SECONDS, HOT_SECONDS_MOST = 0.05, 0.5
HOT_BYTES_PER_SECOND = 10 << 30
"""Large processes are watched for longer, for about a tenth of the time that a fast link would take to move them."""
MOSTLY = 0.5
"""If so much of a mapping is touched while it is watched, all of it is hot."""
HARMLESS_WAIT_MS = 200
LAST_WORDS_SECONDS = 2.0


@dataclass
class LiveCopy:
    """What was copied of a running process, and how. `seen` is the snapshot that the destination has; `plain`: one
    round without tracking."""

    seen: SourceSnapshot
    client: PageClient
    control: ControlChannel
    events: Events
    parameters: Parameters
    strategy: str
    resume_at_once: bool
    rounds: Rounds | None = None
    done: list[Round] = field(default_factory=list)
    plain: bool = False
    touched: list[Runs] = field(default_factory=list)
    corrections: int = 0

    @property
    def tracking(self) -> str:
        """How writes are tracked, as the report says it."""
        return "none" if self.rounds is None else self.rounds.kind.name.lower().replace("_", "-")

    @property
    def is_to_correct(self) -> bool:
        """Whether anything was sent that may have changed since."""
        return bool(self.done)

    @property
    def is_tracked(self) -> bool:
        """Whether a tracker tells what has changed since, so that correcting needs no description."""
        return self.rounds is not None and self.is_to_correct

    def next_correction(self) -> int:
        """A number for another push that corrects."""
        self.corrections += 1
        return CORRECTION_PUSH + self.corrections

    def close(self) -> None:
        """End the tracking."""
        if self.rounds is not None:
            self.rounds.close()
            self.rounds = None

    def correct(self, push: int, memory: AddressSpace, *, void: bool = False) -> None:
        """At the frozen process, which has this layout: push what has changed since it was sent, or tell the
        destination to discard it. `void`: trust nothing that was sent. Earlier corrections are repeated.

        Raises OSError, ProcessGone."""
        if self.plain:
            self.client.push(push, _plain_runs(self.seen.space, memory), changed=True, urgent=True)
            return
        assert self.rounds is not None
        if memory is not self.seen.memory:
            self.rounds.watch(round_ranges(memory))
        self.rounds.last(push, discard=self.resume_at_once, void=void)
        self.client.push(push, [], urgent=True)

    def hot(self) -> list[Runs]:
        """What was written to last, when the process stands still, then the mappings of which most was read. It never
        raises: it is a help, nothing more."""
        if self.rounds is not None:
            with contextlib.suppress(OSError, ProcessGone):
                return self.rounds.hot(HOT_RUNS) + self.touched
        return self.touched


def writes_past_the_tracker(table: DescriptorTable) -> bool:
    """Whether a file is open with O_DIRECT: devices then write to memory of the process, and no page table tells."""
    return any(isinstance(one.object, File) and one.flags & os.O_DIRECT for one in table.open_files)


def copy_live(
    seen: SourceSnapshot, client: PageClient, control: ControlChannel, events: Events, parameters: Parameters
) -> LiveCopy:
    """Copy in rounds as the destination wants it. Raises MigrationError; the process then runs on, untracked."""
    strategy = parameters.strategy if parameters.strategy in STRATEGIES else "hybrid"
    copy = LiveCopy(seen, client, control, events, parameters, strategy, parameters.resume_at_once)
    with closed_on_error(copy):
        try:
            _begin(copy)
            if copy.rounds is not None and parameters.rounds:
                _run_rounds(copy)
            elif parameters.rounds:
                _without_tracking(copy)
            elif parameters.resume_at_once and parameters.hot_first:
                _learn_what_is_hot(copy)
        except ProcessGone:
            raise program_gone(seen, STEP) from None
        except (OSError, TimeoutError) as error:
            raise push_failed(copy.control, copy.seen.pid, STEP, error) from None
    return copy


@contextlib.contextmanager
def closed_on_error(copy: LiveCopy) -> Iterator[None]:
    """Within, an error ends the tracking."""
    try:
        yield
    except BaseException:
        copy.close()
        raise


def _begin(copy: LiveCopy) -> None:
    if not copy.parameters.rounds and not (copy.parameters.resume_at_once and copy.parameters.hot_first):
        return
    if writes_past_the_tracker(copy.seen.descriptors.table):
        return
    # Knowing what is hot is not worth a wait that lasts much too long.
    if not copy.parameters.rounds and longest_epoll_wait(copy.seen.task.outside) > HARMLESS_WAIT_MS:
        return
    tracker = start_tracking(copy.seen, soft=copy.parameters.rounds > 0)
    if tracker is None:
        return
    copy.rounds = Rounds(copy.client, copy.seen.space, copy.seen.pid, tracker)
    copy.seen = dataclasses.replace(copy.seen, ours=OURS)
    copy.rounds.watch(round_ranges(copy.seen.memory))


def _learn_what_is_hot(copy: LiveCopy) -> None:
    """Watch for a while what the process touches. Raises OSError, ProcessGone."""
    pid = copy.seen.pid
    # If /proc may not be written to, as in many containers, reads stay unknown: that is no reason not to move.
    cleared = False
    with contextlib.suppress(OSError, ProcessGone):
        clear_referenced(pid)
        cleared = True
    if copy.rounds is not None:
        copy.rounds.arm()
    time.sleep(min(max(HOT_SECONDS, resident_bytes(pid) / HOT_BYTES_PER_SECOND), HOT_SECONDS_MOST))
    if cleared:
        with contextlib.suppress(OSError, ProcessGone):
            copy.touched = _touched_ranges(copy.seen)


def _touched_ranges(seen: SourceSnapshot) -> list[Runs]:
    """The mappings paged on demand of which most was touched. Raises OSError, ProcessGone."""
    ranges = {one.start: one for one in round_ranges(seen.memory)}
    touched = [one for one in snapshot_touched(seen.pid) if one.start in ranges]
    mostly = [one for one in touched if one.referenced >= MOSTLY * one.resident]
    # The smaller a mapping is, the more it says.
    mostly.sort(key=lambda one: one.resident)
    return [Runs(one.start, (min(one.end, ranges[one.start].end) - one.start) // PAGE) for one in mostly]


def _without_tracking(copy: LiveCopy) -> None:
    """Pre-copy becomes one plain round, which is compared with the memory in the freeze; others become post-copy."""
    direct = writes_past_the_tracker(copy.seen.descriptors.table)
    why = "a file is open with O_DIRECT, whose reads cannot be tracked" if direct else "this kernel tracks no writes"
    if copy.strategy != "pre-copy":
        copy.strategy, copy.resume_at_once = "post-copy", True
        _say(copy, f"{why}: nothing is copied before the freeze, and the process resumes at once")
        return
    _say(copy, f"{why}: there is one round, and the freeze compares all memory with what was sent")
    copy.plain = True
    push = ROUND_PUSH + 1
    copy.control.send(messages.Round(number=1, push=push))
    begun, before = time.monotonic_ns(), copy.client.counters["wire_bytes"]
    sent = copy.client.counters["pushed_pages"]
    copy.client.push(push, _plain_runs(copy.seen.space, copy.seen.memory), remember=True)
    copy.control.expect(messages.Pushed, ANSWER_SECONDS)
    done = Round(pages=copy.client.counters["pushed_pages"] - sent, ms=(time.monotonic_ns() - begun) / 1e6)
    done.bytes = copy.client.counters["wire_bytes"] - before
    done.rate, done.dirty = done.bytes / (done.ms / 1000), done.pages
    copy.done.append(done)


def _plain_runs(space: int, memory: AddressSpace) -> list[PushRun]:
    return [PushRun(space, one.start, one.end, present=not one.shared) for one in round_ranges(memory)]


def _say(copy: LiveCopy, text: str) -> None:
    copy.events.note(text, 0)


def _run_rounds(copy: LiveCopy) -> None:
    if copy.parameters.strategy == AUTO:
        _choose(copy)
    step = NextStep.GO_ON
    while step is NextStep.GO_ON and len(copy.done) < copy.parameters.rounds:
        if copy.done:
            time.sleep(pause_before_next(copy.done[-1]))
        _round(copy)
        step = next_step(copy.done, copy.parameters)
    if step is NextStep.FREEZE or copy.resume_at_once:
        return
    last = copy.done[-1]
    cause = f"{step.value}: {last.dirty} pages are dirty after round {len(copy.done)}"
    if copy.parameters.no_convergence == "abort":
        raise LocalError(
            step=STEP,
            object=f"process {copy.seen.pid}",
            cause=cause,
            remedy="it runs on here; choose --on-no-convergence post-copy or freeze, or a higher --max-downtime",
            code=ExitCode.TIMEOUT,
        )
    if copy.parameters.no_convergence == "post-copy":
        copy.resume_at_once = True
        copy.strategy = "hybrid"
        _say(copy, f"{cause}; the process resumes at once, and the rest follows")
    else:
        _say(copy, f"{cause}; the process is frozen all the same")


def _choose(copy: LiveCopy) -> None:
    """Measure the process and the link, and choose. The pages that are sent meanwhile are not sent in vain."""
    parameters = copy.parameters
    _round(copy, PART_NS)
    begun, before = time.monotonic(), copy.done[-1].dirty
    time.sleep(LEARNING_SECONDS)
    assert copy.rounds is not None
    first = copy.done[-1]
    size = first.pages + before
    link = first.pages / max(first.ms, 0.001) * 1000
    # Only pages that have been sent are armed, and show when they are written to: a part stands for the whole.
    writes = max(0, copy.rounds.dirty() - before) / (time.monotonic() - begun) * size / max(first.pages, 1)
    share = writes / link if link else 1.0
    said = (
        f"{size * PAGE >> 20} MiB, {writes * PAGE / 2**20:.0f} MiB/s of it written, "
        f"a link of {link * PAGE / 2**20:.0f} MiB/s"
    )
    allowed = allowed_downtime_ms(parameters)
    if before <= link * allowed / 1000:
        name, why = "stop-and-copy", f"the rest fits into {show_seconds(allowed)}"
    elif share <= 0.5:
        name, why = "pre-copy", "rounds converge, and nothing is missing afterwards"
    elif share < 1:
        name, why = "hybrid", "rounds would converge slowly"
    else:
        name, why = "post-copy", "the process writes faster than the link sends"
    chosen = STRATEGIES[name]
    copy.strategy, copy.resume_at_once = name, chosen.resume_at_once
    copy.parameters = msgspec.structs.replace(parameters, strategy=name, rounds=len(copy.done) + chosen.rounds)
    _say(copy, f"{name}: {said}: {why}")


def _round(copy: LiveCopy, most_ns: int | None = None) -> None:
    """One round, on both sides. Raises MigrationError, OSError, ProcessGone."""
    assert copy.rounds is not None
    number = len(copy.done) + 1
    push = ROUND_PUSH + number
    layout = _follow_layout(copy)
    payload = messages.pack([layout]) if layout is not None else messages.NOTHING
    copy.control.send(messages.Round(number=number, push=push, payload=payload))
    copy.rounds.watch(round_ranges(copy.seen.memory))
    begun = time.monotonic_ns()
    if copy.rounds.collects:
        # Soft-dirty bits are read and cleared in two steps, between which nothing may be written.
        with brief_freeze(copy.seen):
            copy.rounds.collect()
    if most_ns is None and copy.parameters.round_timeout is not None:
        most_ns = int(copy.parameters.round_timeout * 1e9)
    done = Round()
    while True:
        now = time.monotonic_ns()
        part = min(now + PART_NS, begun + most_ns if most_ns is not None else now + PART_NS)
        result = copy.rounds.round(push, number, part)
        done.pages += result.pages
        done.zero += result.zero
        done.again += result.again
        done.deferred += result.deferred
        done.bytes += result.bytes
        if not result.cut or (most_ns is not None and time.monotonic_ns() >= begun + most_ns):
            break
    _push_eager(copy, push)
    copy.control.expect(messages.Pushed, ANSWER_SECONDS)
    done.ms = (time.monotonic_ns() - begun) / 1e6
    done.dirty = copy.rounds.dirty()
    done.rate = done.bytes / (done.ms / 1000)
    copy.done.append(done)
    copy.events.note(
        f"round {number}: {done.pages} pages in {show_seconds(done.ms)}, {done.dirty} are dirty afterwards", 1
    )
    failpoint("source-round")


def _push_eager(copy: LiveCopy, push: int) -> None:
    """Push what cannot be paged on demand and has changed since the last push, and the end of the round's push."""
    changed = changed_file_pages(copy.seen.pid, copy.seen.memory)
    known = set(copy.seen.pushed)
    copy.seen.pushed.extend(run for run in changed if run not in known)
    runs = [PushRun(copy.seen.space, run.address, run.address + run.pages * PAGE) for run in changed]
    copy.client.push(push, runs, remember=True, changed=True)


def _follow_layout(copy: LiveCopy) -> Layout | None:
    """The layout, if it differs from the destination's and can be described while the process runs: memory that is
    mapped by a new descriptor waits for the end. Raises Refused for what cannot be moved, ProcessGone."""
    pid, seen = copy.seen.pid, copy.seen
    if maps_text(pid) == seen.layout:
        return None
    pathless, merged = inodes_without_path(seen.descriptors.table), merges_all(pid)
    memory = reread(pid, maps(pid), seen.memory, pathless, seen.ours)
    if memory is seen.memory:
        return None
    known = {(one.start, one.end, one.inode) for one in seen.memory.mappings if one.kind is MappingKind.BY_DESCRIPTOR}
    if any(
        one.kind is MappingKind.BY_DESCRIPTOR and (one.start, one.end, one.inode) not in known
        for one in memory.mappings
    ):
        return None
    memory, files = snapshot_mapped_files_live(pid, memory)
    if blockers := [*mapping_blockers(memory, pathless), *mapped_file_blockers(files)]:
        raise Refused(blockers, object=f"process {pid}", step=STEP)
    copy.client.discard_pushed(seen.space, layout_difference(seen.memory, memory).unmap)
    layout = layout_text(maps_text(pid), memory, pathless)
    copy.seen = dataclasses.replace(seen, memory=memory, layout=layout, files=files, merged=merged)
    return Layout(space=seen.space, memory=memory, files=files)


def push_failed(control: ControlChannel, pid: int, step: str, error: OSError) -> LocalError:
    """The error of a push that failed. If the other side gave up, it raises what that has said: RemoteError,
    Refused."""
    lost = means_lost(error)
    if lost:
        with contextlib.suppress(LocalError, ConnectionLost):
            control.expect(messages.Pushed, LAST_WORDS_SECONDS)
    return LocalError(
        step=step,
        object=f"process {pid}",
        cause=str(error),
        remedy="it runs on here; try again",
        code=ExitCode.LOST_BEFORE if lost else ExitCode.SYSTEM,
    )
