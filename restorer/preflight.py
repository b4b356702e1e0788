"""Every blocker to restoring the process here, all at once, before anything is frozen."""

from __future__ import annotations

import os
from dataclasses import dataclass

from live_migration.kernel import probe
from live_migration.kernel.arch.arch import cpu
from live_migration.process import task_restore
from live_migration.process.attributes import limits, timers
from live_migration.process.descriptors.blockers import descriptor_blockers, preflight_descriptors
from live_migration.process.descriptors.files import File, preflight_file
from live_migration.process.descriptors.options import DescriptorOptions
from live_migration.process.descriptors.reach import is_same_machine
from live_migration.process.member import Member
from live_migration.process.memory.bridge import bridge_blockers, is_needed
from live_migration.process.memory.mapped_files import preflight_mapped_files, unnamed_blockers
from live_migration.process.migration import Migration, whole_table
from live_migration.process.threads.rseq_fields import rseq_blockers
from live_migration.restorer import room
from live_migration.restorer.husk_process import taken_ids
from live_migration.restorer.network import rules_blockers, taken_blockers
from live_migration.restorer.options import RestoreOptions
from live_migration.wire.blockers import Blocker
from live_migration.wire.host import HostFacts


@dataclass(frozen=True)
class Peer:
    """The two hosts."""

    there: HostFacts
    here: HostFacts


def preflight(
    migration: Migration, hosts: Peer, options: RestoreOptions, described: DescriptorOptions
) -> list[Blocker]:
    """The blockers to restoring all members of a migration on this host. Raises OSError."""
    table = whole_table(migration)
    needed = sum(member.resident for member in migration.members)
    return [
        *_host_blockers(hosts, options),
        *_ability_blockers(migration, hosts, options),
        *(one for member in migration.members for one in member_blockers(member, options, described)),
        *(one for member in migration.members for one in room.count_blockers(member, len(migration.open_files))),
        *preflight_mapped_files(migration.mapped_files, described),
        *(
            one
            for member in migration.members
            for one in unnamed_blockers(member.memory.mappings, migration.mapped_files, described)
        ),
        *descriptor_blockers(table, described),
        *taken_blockers(options.take_address),
        *(rules_blockers(table) if described.tcp == "keep" else []),
        *preflight_descriptors(table, described),
        *room.memory_blockers(needed, room.available()),
        *room.most_memory_blockers(needed, options.max_memory),
    ]


def member_blockers(member: Member, options: RestoreOptions, described: DescriptorOptions) -> list[Blocker]:
    """The blockers to restoring this member, beside what it shares. Raises OSError."""
    return [
        *bridge_blockers(member.memory),
        *_bridge_and_filters(member),
        *rseq_blockers(member.task.memory_plan.auxiliary_vector, member.memory.mappings, described.map_path),
        *_executable_blockers(member, described),
        *task_restore.preflight_task(
            member.task, task_restore.present_credentials(), described.map_bytes, timers.ids_can_be_chosen()
        ),
        *_id_blockers(member, options),
    ]


def _bridge_and_filters(member: Member) -> list[Blocker]:
    """Through a bridge, functions of the vdso make system calls, which filters have not been asked about."""
    if not member.task.filters or not is_needed(member.memory):
        return []
    cause = "the process has filters, and where the kernel's vdso is another one, its calls of it become system calls"
    return [Blocker("seccomp", cause, "choose a host with the same kernel, or run the process without filters")]


def new_file_blockers(final: Migration, staged: Migration, described: DescriptorOptions) -> list[Blocker]:
    """Blockers: files that members have mapped and opened since they were staged, and directories that they have
    changed to. Raises OSError."""
    known_files = frozenset(staged.mapped_files)
    known = {one.identity for one in staged.open_files}
    found = preflight_mapped_files([one for one in final.mapped_files if one not in known_files], described)
    for member, before in zip(final.members, staged.members, strict=True):
        if not member.as_staged:
            found += unnamed_blockers(member.memory.mappings, final.mapped_files, described)
            found += room.mapping_blockers(len(member.memory.mappings))
        if limits.directories(member.task.limits) != limits.directories(before.task.limits):
            found += limits.preflight_limits(member.task.limits, described.map_bytes)
    for one in final.open_files:
        if isinstance(one.object, File) and one.identity not in known and one.standard is None:
            # Checked only here: it reads a file while the process is frozen.
            same_machine = is_same_machine(final.members[0].place)
            found += preflight_file(one.object, one.flags, one.name, described, same_machine)
    return found


def _ability_blockers(migration: Migration, hosts: Peer, options: RestoreOptions) -> list[Blocker]:
    """What this kernel lacks, or this user may not do, found by trying."""
    taken = (taken_ids(member.task) for member in migration.members)
    lacks = probe.destination_lacks(
        keep_ids=True,
        namespace=options.pid == "namespace" or (options.pid == "auto" and any(taken)),
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


def _executable_blockers(member: Member, described: DescriptorOptions) -> list[Blocker]:
    path = described.map_path(member.executable)
    if os.path.isfile(path) and os.access(path, os.R_OK | os.X_OK):
        return []
    return [
        Blocker(
            f"executable {member.executable}",
            f"{path} is not here or may not be executed",
            "install it here or point to it with --map-path OLD=NEW",
        )
    ]


def _id_blockers(member: Member, options: RestoreOptions) -> list[Blocker]:
    if options.pid != "keep":
        return []
    return [
        Blocker(f"id {tid}", "is taken on this host", "use --pid namespace, or end the process that has it")
        for tid in taken_ids(member.task)
    ]
