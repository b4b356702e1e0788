"""Who else holds what the process holds: a scan of the other processes' descriptors through /proc.

A pipe, a socket or an open file description of which a process that stays holds an end cannot be moved alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from live_migration.kernel.kcmp import same_open_file
from live_migration.process.descriptors.open_file import Holder


def other_processes(pid: int, ignore: Collection[int]) -> Iterator[int]:
    """The ids of all processes but `pid` and those to be ignored."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != pid and int(name) not in ignore:
            yield int(name)


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


def process_name(pid: int) -> str:
    """The name of a process (proc(5), comm), or "?" if it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def is_shared_object(link: str) -> bool:
    """Does the link name the object itself, so that equal links mean the same pipe or socket?"""
    return link.startswith(("pipe:[", "socket:["))


def find_holders(
    pid: int, objects: Collection[str], descriptions: dict[str, list[int]], ignore: Collection[int]
) -> tuple[dict[str, list[Holder]], dict[int, list[Holder]]]:
    """Who else holds these objects and descriptions of process `pid`.

    `objects` are links of pipes, FIFOs and sockets, any descriptor of which counts; `descriptions` are, by
    link, descriptors whose very description is looked for, told apart by kcmp(2). The answers are by link
    and by descriptor.
    """
    by_object: dict[str, list[Holder]] = {}
    by_number: dict[int, list[Holder]] = {}
    for other in other_processes(pid, ignore):
        found_objects: set[str] = set()
        found_numbers: set[int] = set()
        for number, link in links_of(other):
            if link in objects:
                found_objects.add(link)
            for own in descriptions.get(link, ()):
                if own not in found_numbers and is_held(pid, own, other, number):
                    found_numbers.add(own)
        if not found_objects and not found_numbers:
            continue
        holder = Holder(pid=other, name=process_name(other))
        for link in found_objects:
            by_object.setdefault(link, []).append(holder)
        for own in found_numbers:
            by_number.setdefault(own, []).append(holder)
    return by_object, by_number


def is_held(pid: int, own: int, other: int, number: int) -> bool:
    """Do the two descriptors stand for one description? A process that has gone holds nothing."""
    try:
        return same_open_file(pid, own, other, number)
    except OSError:
        return False


def holders_text(holders: Sequence[Holder]) -> str:
    """The holders in words; at most three by name."""
    named = [str(holder) for holder in holders[:3]]
    if len(holders) > 3:
        named.append(f"{len(holders) - 3} more")
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
