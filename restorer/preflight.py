"""Every obstacle to rebuilding the process here, all at once, before anything is frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass

from linux import cpu, probe
from process import task_rebuild, timers
from process.bridge import bridge_obstacles
from process.description import ProcessDescription
from process.descriptor_obstacles import descriptor_obstacles, preflight_descriptors
from process.descriptor_options import DescriptorOptions
from process.files import File, preflight_file
from process.mapped_files import preflight_mapped_files
from process.reach import is_same_machine
from process.rseq_fields import rseq_obstacles
from restorer.husk_process import taken_ids
from restorer.options import RestoreOptions
from wire.host import HostFacts
from wire.obstacles import Obstacle
from wire.report import show_bytes


@dataclass(frozen=True)
class Peer:
    """The two hosts."""

    there: HostFacts
    here: HostFacts


def preflight(
    process: ProcessDescription, hosts: Peer, options: RestoreOptions, described: DescriptorOptions
) -> list[Obstacle]:
    """What stands in the way of rebuilding `process` on this host. Raises OSError."""

    def map_path(path: bytes) -> bytes:
        return os.fsencode(described.map_path(os.fsdecode(path)))

    return [
        *_host_obstacles(hosts, options),
        *_ability_obstacles(process, hosts, options),
        *bridge_obstacles(process.memory),
        *rseq_obstacles(process.task.memory_plan.auxiliary_vector, process.memory.mappings, described.map_path),
        *_executable_obstacles(process, described),
        *preflight_mapped_files(process.files, described),
        *descriptor_obstacles(process.descriptors, described),
        *preflight_descriptors(process.descriptors, described),
        *task_rebuild.preflight_task(
            process.task, task_rebuild.present_credentials(), map_path, timers.ids_can_be_chosen()
        ),
        *_id_obstacles(process, options),
        *room_obstacles(process.resident, available_bytes()),
    ]


def new_file_obstacles(
    final: ProcessDescription, staged: ProcessDescription, described: DescriptorOptions
) -> list[Obstacle]:
    """What is in the way of the files that the process has mapped and opened since it was staged. Raises OSError."""
    known_files = frozenset(staged.files)
    known = staged.descriptors.by_identity()
    found = preflight_mapped_files([one for one in final.files if one not in known_files], described)
    for one in final.descriptors.descriptions:
        if isinstance(one.kind, File) and one.identity not in known and one.standard is None:
            # Asked for here alone: a file that is read, while the process is frozen.
            same_machine = is_same_machine(final.descriptors.place)
            found += preflight_file(one.kind, one.flags, one.name, described, same_machine)
    return found


def available_bytes() -> int:
    """Bytes of memory and swap that this host can give (proc_meminfo(5)). Raises OSError."""
    with open("/proc/meminfo") as meminfo:
        known = dict(line.split(":", 1) for line in meminfo)
    return sum(int(known.get(name, "0").split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024


def room_obstacles(needed: int, available: int) -> list[Obstacle]:
    """Whether there is room for so many bytes."""
    if needed <= available:
        return []
    return [
        Obstacle(
            "this host's memory",
            f"has room for {show_bytes(available)}, the process needs {show_bytes(needed)}",
            "end something here, add swap, or choose another host",
        )
    ]


def _ability_obstacles(process: ProcessDescription, hosts: Peer, options: RestoreOptions) -> list[Obstacle]:
    """What this kernel lacks, or this user may not do: found by doing it."""
    lacks = probe.destination_lacks(
        keep_ids=True,
        namespace=options.pid == "namespace" or (options.pid == "auto" and bool(taken_ids(process.task))),
        clocks=hosts.here.boot_id != hosts.there.boot_id,
    )
    return [Obstacle(lack.object, lack.cause, lack.remedy) for lack in lacks]


def _host_obstacles(hosts: Peer, options: RestoreOptions) -> list[Obstacle]:
    found = []
    for what, there, here in (
        ("architecture", hosts.there.machine, hosts.here.machine),
        ("page size", hosts.there.page_size, hosts.here.page_size),
    ):
        if there != here:
            found.append(Obstacle(f"this host's {what}", f"is {here}, the source's is {there}", "choose another host"))
    if options.cpu == "strict":
        for lack in cpu.lacking(hosts.there.cpu, hosts.here.cpu):
            found.append(
                Obstacle(
                    "this host's processor",
                    f"lacks {lack}, which the source's has",
                    "choose another host, or --cpu trust if the program does not use it",
                )
            )
    return found


def _executable_obstacles(process: ProcessDescription, described: DescriptorOptions) -> list[Obstacle]:
    path = described.map_path(process.executable)
    if os.access(path, os.R_OK | os.X_OK):
        return []
    return [
        Obstacle(
            f"executable {process.executable}",
            f"{path} is not here or may not be executed",
            "install it here or point to it with --map-path OLD=NEW",
        )
    ]


def _id_obstacles(process: ProcessDescription, options: RestoreOptions) -> list[Obstacle]:
    if options.pid != "keep":
        return []
    return [
        Obstacle(f"id {tid}", "is taken on this host", "use --pid namespace, or end the process that has it")
        for tid in taken_ids(process.task)
    ]
