"""Who moves and who stays: the members of a migration, and one scan over the other processes of the host.

What a member shares with a process that stays cannot be moved with it: children, memory, open files, the other ends
of pipes and sockets. All questions about those that stay go to one `HostScan`. It lists them once, and reads each of
them once, when it is first needed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from live_migration.kernel import kcmp
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.proc import read_proc
from live_migration.kernel.process_snapshot import ProcessSnapshot

# A file as /proc/PID/maps tells it: device in hexadecimal, and inode.
FileIdentity = tuple[str, int]
# A descriptor on this host: the process, and the number there.
DescriptorAt = tuple[int, int]
SHARED: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("memory", kcmp.same_address_space),
    ("descriptors", kcmp.same_descriptor_table),
    ("directories", kcmp.same_filesystem_state),
)


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that stays and holds an object of a member."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True)
class Scope:
    """The processes that move together, by their ids on this host. `observers` stay too, but what they hold does not
    count: lm-serve has duplicates of what it reads."""

    members: frozenset[int]
    observers: frozenset[int] = frozenset()

    def is_outside(self, pid: int) -> bool:
        """Does the process stay?"""
        return pid not in self.members


def scope_of(*pids: int) -> Scope:
    """The scope of a migration of these processes, with this one as its observer."""
    return Scope(frozenset(pids), frozenset((os.getpid(),)))


@dataclass(frozen=True)
class OtherProcess:
    """A process that stays. Nothing is known of one that has gone or may not be read."""

    process: ProcessSnapshot

    @property
    def pid(self) -> int:
        """Its id."""
        return self.process.pid

    @property
    def parent(self) -> int:
        """The id of its parent, 0 where it is not known."""
        try:
            return int(self.process.stat[3])
        except ProcessGone:
            return 0

    @property
    def tracer(self) -> int:
        """The id of the thread that traces it, 0 for none."""
        try:
            return int(self.process.status.get("TracerPid", "0"))
        except (ProcessGone, PermissionError):
            return 0

    @functools.cached_property
    def links(self) -> tuple[tuple[int, str], ...]:
        """Its descriptors with what /proc/PID/fd says of them."""
        return tuple(links_of(self.pid))

    @functools.cached_property
    def holder(self) -> Holder:
        """The process as one that holds something."""
        return Holder(pid=self.pid, name=self.process.name)


class HostScan:
    """What the processes outside of a scope have to do with its members."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    @functools.cached_property
    def others(self) -> tuple[OtherProcess, ...]:
        """All that stay, listed at the first question."""
        return tuple(OtherProcess(ProcessSnapshot(pid)) for pid in all_processes() if self.scope.is_outside(pid))

    def children(self, pid: int) -> list[int]:
        """The children of all threads of a process that stay, as they are now: /proc/PID/task/TID/children, else by the
        parents of all processes. Raises ProcessGone."""
        found: list[int] = []
        try:
            for tid in ProcessSnapshot(pid).thread_ids:
                found += [int(word) for word in read_proc(f"/proc/{pid}/task/{tid}/children").split()]
        except FileNotFoundError:
            found = [one.pid for one in self.others if one.parent == pid]
        return [child for child in found if self.scope.is_outside(child)]

    def sharing(self, pid: int) -> list[tuple[OtherProcess, list[str]]]:
        """Who shares memory, descriptors or directories with a process (clone(2)), and which of them."""
        found = ((one, [what for what, same in SHARED if _is_same(same, pid, one.pid)]) for one in self.others)
        return [(one, shared) for one, shared in found if shared]

    def traced_by(self, tids: Collection[int]) -> list[OtherProcess]:
        """Whom these threads trace."""
        return [one for one in self.others if one.tracer in tids]

    def holders(
        self, objects: Collection[str], open_files: Mapping[str, Sequence[DescriptorAt]]
    ) -> tuple[dict[str, list[Holder]], dict[DescriptorAt, list[Holder]]]:
        """Who holds these objects and open files of members.

        `objects` are links of pipes, FIFOs and sockets, any descriptor of which counts; `open_files` are, by
        link, descriptors whose very open file is looked for, told apart by kcmp(2), each of another open file. The
        answers are by link and by descriptor."""
        by_object: dict[str, list[Holder]] = {}
        for other in self._that_count():
            for link in {link for _, link in other.links if link in objects}:
                by_object.setdefault(link, []).append(other.holder)
        files = {link: in_order(those) for link, those in open_files.items()}
        by_descriptor = self._holders_of_files(files)
        # A running member may have opened another file under one of the numbers meanwhile.
        changed = {link: OpenFiles(one.descriptors, False) for link, one in files.items() if not one.is_as_found()}
        if changed:
            again = {own for one in changed.values() for own in one.descriptors}
            by_descriptor = {own: held for own, held in by_descriptor.items() if own not in again}
            by_descriptor |= self._holders_of_files(changed)
        return by_object, by_descriptor

    def _holders_of_files(self, files: Mapping[str, OpenFiles]) -> dict[DescriptorAt, list[Holder]]:
        by_descriptor: dict[DescriptorAt, list[Holder]] = {}
        for other in self._that_count() if files else ():
            found = (files[link].find((other.pid, number)) for number, link in other.links if link in files)
            for own in {own for own in found if own is not None}:
                by_descriptor.setdefault(own, []).append(other.holder)
        return by_descriptor

    def sharers(self, files: Collection[FileIdentity], links: Collection[str]) -> dict[FileIdentity, list[Holder]]:
        """Who maps one of the files, or has it open under one of the `links`."""
        texts = {f" {device} {inode} ": (device, inode) for device, inode in files}
        found: dict[FileIdentity, list[Holder]] = {}
        for other in self._that_count() if files else ():
            maps = maps_of(other.pid)
            held = {identity for text, identity in texts.items() if text in maps}
            for number, link in other.links if links else ():
                if link in links:
                    held |= {opened_file(other.pid, number)} & set(files)
            for identity in held:
                found.setdefault(identity, []).append(other.holder)
        return found

    def _that_count(self) -> Iterator[OtherProcess]:
        return (one for one in self.others if one.pid not in self.scope.observers)


def _is_same(compare: Callable[[int, int], bool], pid: int, other: int) -> bool:
    try:
        return compare(pid, other)
    except OSError:
        return False


@dataclass(frozen=True)
class OpenFiles:
    """Descriptors, each of another open file, `ordered` as kcmp(2) orders these or not."""

    descriptors: tuple[DescriptorAt, ...]
    ordered: bool

    def find(self, other: DescriptorAt) -> DescriptorAt | None:
        """The one that stands for the open file of another descriptor; None if there is none, or one has gone."""
        if self.ordered:
            with contextlib.suppress(OSError):
                return self._bisect(other)
        return next((own for own in self.descriptors if is_held(own, other)), None)

    def is_as_found(self) -> bool:
        """False where the order has turned out to be another one."""
        try:
            return not self.ordered or all(in_place(*pair) < 0 for pair in itertools.pairwise(self.descriptors))
        except OSError:
            return False

    def _bisect(self, other: DescriptorAt) -> DescriptorAt | None:
        low, high = 0, len(self.descriptors)
        while low < high:
            middle = (low + high) // 2
            place = in_place(self.descriptors[middle], other)
            if place == 0:
                return self.descriptors[middle]
            low, high = (middle + 1, high) if place < 0 else (low, middle)
        return None


def in_place(one: DescriptorAt, other: DescriptorAt) -> int:
    """Below 0, 0 or above 0, as kcmp(2) orders their open files. Raises OSError."""
    return kcmp.order_open_files(one[0], one[1], other[0], other[1])


def in_order(those: Sequence[DescriptorAt]) -> OpenFiles:
    """These descriptors, so that one of a thousand is found by ten comparisons; as they are, if one of them goes
    meanwhile."""
    try:
        return OpenFiles(tuple(sorted(those, key=functools.cmp_to_key(in_place))), True)
    except OSError:
        return OpenFiles(tuple(those), False)


def is_held(own: DescriptorAt, other: DescriptorAt) -> bool:
    """Do the two descriptors stand for one open file? A process that has gone holds nothing."""
    try:
        return kcmp.same_open_file(*own, *other)
    except OSError:
        return False


def holders_text(holders: Sequence[Holder]) -> str:
    """The holders in words; at most three by name."""
    named = [str(holder) for holder in holders[:3]]
    if len(holders) > 3:
        named.append(f"{len(holders) - 3} more")
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def all_processes() -> list[int]:
    """The processes that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def links_of(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors of a process with what /proc/PID/fd says; nothing if it has gone or may not be looked
    at.
    """
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue


def maps_of(pid: int) -> str:
    """The text of /proc/PID/maps; empty if the process has gone or may not be read."""
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""


def opened_file(pid: int, number: int) -> FileIdentity:
    """The identity of the file behind a descriptor of another process; one of nothing if it has gone."""
    try:
        status = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return "", 0
    return device_name(status.st_dev), status.st_ino


def device_name(device: int) -> str:
    """A device number as /proc/PID/maps writes it."""
    return f"{os.major(device):02x}:{os.minor(device):02x}"
