"""Every blocker to restoring the process here, all at once, before anything is frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass

from live_migration.kernel import probe
from live_migration.kernel.arch.arch import cpu
from live_migration.process import task_restore
from live_migration.process.attributes import timers
from live_migration.process.description import ProcessDescription
from live_migration.process.descriptors.blockers import descriptor_blockers, preflight_descriptors
from live_migration.process.descriptors.files import File, preflight_file
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import is_same_machine
from live_migration.process.memory.bridge import bridge_blockers
from live_migration.process.memory.mapped_files import preflight_mapped_files
from live_migration.process.threads.rseq_fields import rseq_blockers
from live_migration.restorer.husk_process import taken_ids
from live_migration.restorer.options import RestoreOptions
from live_migration.wire.blockers import Blocker
from live_migration.wire.host import HostFacts
from live_migration.wire.report import show_bytes


@dataclass(frozen=True)
class Peer:
    """The two hosts."""

    there: HostFacts
    here: HostFacts


def preflight(
    process: ProcessDescription, hosts: Peer, options: RestoreOptions, described: DescriptorOptions
) -> list[Blocker]:
    """What stands in the way of restoring `process` on this host. Raises OSError."""

    def map_path(path: bytes) -> bytes:
        return os.fsencode(described.map_path(os.fsdecode(path)))

    return [
        *_host_blockers(hosts, options),
        *_ability_blockers(process, hosts, options),
        *bridge_blockers(process.memory),
        *rseq_blockers(process.task.memory_plan.auxiliary_vector, process.memory.mappings, described.map_path),
        *_executable_blockers(process, described),
        *preflight_mapped_files(process.files, described),
        *descriptor_blockers(process.descriptors, described),
        *preflight_descriptors(process.descriptors, described),
        *task_restore.preflight_task(
            process.task, task_restore.present_credentials(), map_path, timers.ids_can_be_chosen()
        ),
        *_id_blockers(process, options),
        *room_blockers(process.resident, available_bytes()),
    ]


def new_file_blockers(
    final: ProcessDescription, staged: ProcessDescription, described: DescriptorOptions
) -> list[Blocker]:
    """What is in the way of the files that the process has mapped and opened since it was staged. Raises OSError."""
    known_files = frozenset(staged.files)
    known = staged.descriptors.by_identity()
    found = preflight_mapped_files([one for one in final.files if one not in known_files], described)
    for one in final.descriptors.descriptions:
        if isinstance(one.object, File) and one.identity not in known and one.standard is None:
            # Asked for here alone: a file that is read, while the process is frozen.
            same_machine = is_same_machine(final.descriptors.place)
            found += preflight_file(one.object, one.flags, one.name, described, same_machine)
    return found


def available_bytes() -> int:
    """Bytes of memory and swap that this host can give (proc_meminfo(5)). Raises OSError."""
    with open("/proc/meminfo") as meminfo:
        known = dict(line.split(":", 1) for line in meminfo)
    return sum(int(known.get(name, "0").split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024


def room_blockers(needed: int, available: int) -> list[Blocker]:
    """Whether there is room for so many bytes."""
    if needed <= available:
        return []
    return [
        Blocker(
            "this host's memory",
            f"has room for {show_bytes(available)}, the process needs {show_bytes(needed)}",
            "end something here, add swap, or choose another host",
        )
    ]


def _ability_blockers(process: ProcessDescription, hosts: Peer, options: RestoreOptions) -> list[Blocker]:
    """What this kernel lacks, or this user may not do: found by doing it."""
    lacks = probe.destination_lacks(
        keep_ids=True,
        namespace=options.pid == "namespace" or (options.pid == "auto" and bool(taken_ids(process.task))),
        clocks=hosts.here.boot_id != hosts.there.boot_id,
    )
    return [Blocker(lack.object, lack.cause, lack.remedy) for lack in lacks]


def _host_blockers(hosts: Peer, options: RestoreOptions) -> list[Blocker]:
    found = []
    for what, there, here in (
        ("architecture", hosts.there.machine, hosts.here.machine),
        ("page size", hosts.there.page_size, hosts.here.page_size),
    ):
        if there != here:
            found.append(Blocker(f"this host's {what}", f"is {here}, the source's is {there}", "choose another host"))
    if options.cpu == "strict":
        for lack in cpu.lacking(hosts.there.cpu, hosts.here.cpu):
            found.append(
                Blocker(
                    "this host's processor",
                    f"lacks {lack}, which the source's has",
                    "choose another host, or --cpu trust if the program does not use it",
                )
            )
    return found


def _executable_blockers(process: ProcessDescription, described: DescriptorOptions) -> list[Blocker]:
    path = described.map_path(process.executable)
    if os.access(path, os.R_OK | os.X_OK):
        return []
    return [
        Blocker(
            f"executable {process.executable}",
            f"{path} is not here or may not be executed",
            "install it here or point to it with --map-path OLD=NEW",
        )
    ]


def _id_blockers(process: ProcessDescription, options: RestoreOptions) -> list[Blocker]:
    if options.pid != "keep":
        return []
    return [
        Blocker(f"id {tid}", "is taken on this host", "use --pid namespace, or end the process that has it")
        for tid in taken_ids(process.task)
    ]
