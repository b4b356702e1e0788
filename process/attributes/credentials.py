"""Credentials: ids, groups, capabilities, securebits, no_new_privs (credentials(7), capabilities(7)).

Every thread has its own; the C library keeps those of a process equal, other programs may not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from live_migration._lm import ffi, lib
from live_migration.kernel.errors import ProcessGone
from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program
from live_migration.kernel.process_snapshot import ProcessSnapshot
from live_migration.wire.blockers import Blocker

CAPABILITY_VERSION_3 = 0x20080522
CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
CAPABILITIES = 64
LOW_WORD = 0xFFFFFFFF
_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NAMES = tuple(_NAMES.split())
# What a thread does not tell itself with its other credentials (proc_pid_status(5)).
ONLY_IN_STATUS = re.compile(rb"^Groups:([^\n]*)$.*?^CapBnd:([^\n]*)\nCapAmb:([^\n]*)$", re.MULTILINE | re.DOTALL)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A thread's credentials. Ids are real, effective, saved, file system; capability sets are bit masks."""

    user_ids: tuple[int, int, int, int]
    group_ids: tuple[int, int, int, int]
    groups: tuple[int, ...] = ()
    inheritable: int = 0
    permitted: int = 0
    effective: int = 0
    bounding: int = 0
    ambient: int = 0
    secure_bits: int = 0
    no_new_privileges: bool = False


def capability_names(mask: int) -> str:
    """CAP_... names of the bits in `mask`, comma separated."""
    found = [bit for bit in range(CAPABILITIES) if mask >> bit & 1]
    return ", ".join(f"CAP_{NAMES[bit]}" if bit < len(NAMES) else f"capability {bit}" for bit in found)


def snapshot_credentials(status: dict[str, str], secure_bits: int = 0) -> Credentials:
    """The credentials in the lines of /proc/PID/status; securebits are not told there (proc_pid_status(5))."""
    users = [int(word) for word in status["Uid"].split()]
    group_ids = [int(word) for word in status["Gid"].split()]
    return Credentials(
        user_ids=(users[0], users[1], users[2], users[3]),
        group_ids=(group_ids[0], group_ids[1], group_ids[2], group_ids[3]),
        groups=tuple(int(word) for word in status.get("Groups", "").split()),
        inheritable=int(status["CapInh"], 16),
        permitted=int(status["CapPrm"], 16),
        effective=int(status["CapEff"], 16),
        bounding=int(status["CapBnd"], 16),
        ambient=int(status.get("CapAmb", "0"), 16),
        secure_bits=secure_bits,
        no_new_privileges=status.get("NoNewPrivs", "0").strip() == "1",
    )


def may_change_unseen(known: Credentials) -> bool:
    """May a thread with these credentials give itself others that only its status shows? Without any capability it can
    drop nothing from its bounding set, raise nothing to be ambient, and set no groups (capabilities(7))."""
    return known.permitted != 0 or known.ambient != 0


def only_in_status(known: Credentials) -> tuple[object, ...]:
    """What a thread does not tell itself of its credentials."""
    return known.groups, known.bounding, known.ambient


def showing(process: ProcessSnapshot, tids: Sequence[int]) -> list[int]:
    """Which of these threads of a process show the same of that as its leader (`process.status_text`), in one pass."""
    same = ffi.new("unsigned char[]", len(tids))
    lib.lm_threads_show(process.pid, process.status_text, ffi.new("int[]", tids), len(tids), same)
    return [tid for tid, is_same in zip(tids, same, strict=True) if is_same]


def shows(text: bytes, known: Credentials) -> bool:
    """Does the text of a status show those groups, and those bounding and ambient capabilities?"""
    found = ONLY_IN_STATUS.search(text)
    if found is None:
        return False
    groups, bounding, ambient = found.groups()
    return (
        int(bounding, 16) == known.bounding
        and int(ambient, 16) == known.ambient
        and tuple(map(int, groups.split())) == known.groups
    )


def preflight_credentials(wanted: Credentials, present: Credentials) -> list[Blocker]:
    """Blockers on the destination: what of `wanted` a worker that has `present` cannot give."""
    if wanted == present:
        return []
    blockers = []
    lacking = wanted.permitted & ~(present.permitted & present.bounding)
    lacking |= wanted.inheritable & ~(present.inheritable | present.bounding)
    if lacking:
        blockers.append(
            Blocker(
                object="capabilities",
                cause=f"the process has {capability_names(lacking)}, and lm-restore does not",
                remedy="run lm-restore with them, or drop them from the process",
            )
        )
    needed = 0
    if wanted.user_ids != present.user_ids:
        needed |= 1 << CAP_SETUID
    if wanted.group_ids != present.group_ids or wanted.groups != present.groups:
        needed |= 1 << CAP_SETGID
    if present.bounding & ~wanted.bounding or wanted.secure_bits != present.secure_bits:
        needed |= 1 << CAP_SETPCAP
    if needed & ~present.effective:
        blockers.append(
            Blocker(
                object="credentials",
                cause=f"to become user {wanted.user_ids[0]}, group {wanted.group_ids[0]} lm-restore needs "
                f"{capability_names(needed & ~present.effective)}",
                remedy=f"run lm-restore as root or as user {wanted.user_ids[0]}",
            )
        )
    if present.no_new_privileges and not wanted.no_new_privileges:
        blockers.append(
            Blocker(
                object="no_new_privs",
                cause="it is set in lm-restore and would be set in the process for ever",
                remedy="start lm-restore without it",
            )
        )
    return blockers


def credential_warnings(wanted: Credentials, present: Credentials) -> list[str]:
    """Sentences on what programs that the process executes will lack: bounding capabilities that lm-restore lacks."""
    lacking = wanted.bounding & ~present.bounding
    if not lacking:
        return []
    return [
        f"bounding set: lm-restore lacks {capability_names(lacking)}, so programs that the process executes lose them"
    ]


def restore_credentials(program: Program, wanted: Credentials, present: Credentials) -> None:
    """Rows that turn a thread's `present` credentials into `wanted`; none when they are the same.

    The order is: groups while the capabilities are there; ids with the capability fix-up switched off; what is
    inheritable; the bounding set; capabilities with CAP_SETPCAP kept; ambient ones, which must be permitted and
    inheritable; securebits; the last capabilities. Changing ids clears the parent-death signal and dumpable: others set
    both afterwards.
    """
    if wanted == present:
        return

    def prctl(label: str, *arguments: int) -> None:
        program.call(label, numbers.SYS_prctl, *(*arguments, 0, 0, 0, 0)[:5])

    if wanted.groups != present.groups:
        groups = ffi.new("uint32_t[]", list(wanted.groups) or [0])
        place = program.data(bytes(ffi.buffer(groups)))
        program.call("setgroups", numbers.SYS_setgroups, len(wanted.groups), place)
    ids_differ = wanted.user_ids != present.user_ids or wanted.group_ids != present.group_ids
    bits = present.secure_bits
    if ids_differ and present.effective >> CAP_SETPCAP & 1:
        bits = present.secure_bits | lib.SECBIT_KEEP_CAPS | lib.SECBIT_NO_SETUID_FIXUP
        prctl("PR_SET_SECUREBITS for the ids", int(lib.PR_SET_SECUREBITS), bits)
    if wanted.group_ids != present.group_ids:
        program.call("setresgid", numbers.SYS_setresgid, *wanted.group_ids[:3])
        program.call("setfsgid", numbers.SYS_setfsgid, wanted.group_ids[3], check=False)
    if wanted.user_ids != present.user_ids:
        program.call("setresuid", numbers.SYS_setresuid, *wanted.user_ids[:3])
        program.call("setfsuid", numbers.SYS_setfsuid, wanted.user_ids[3], check=False)
    if wanted.inheritable & ~wanted.bounding & ~present.inheritable:
        # Nothing can become inheritable that is not in the bounding set (capset(2)); it was dropped from there later.
        _capset(program, present.effective, present.permitted, present.inheritable | wanted.inheritable)
    for bit in range(CAPABILITIES):
        if (present.bounding & ~wanted.bounding) >> bit & 1:
            prctl(f"PR_CAPBSET_DROP of {capability_names(1 << bit)}", int(lib.PR_CAPBSET_DROP), bit)
    keep = present.permitted & (1 << CAP_SETPCAP)
    sets_differ = (wanted.inheritable, wanted.permitted, wanted.effective) != (
        present.inheritable,
        present.permitted,
        present.effective,
    )
    if sets_differ or ids_differ or wanted.ambient != present.ambient:
        _capset(program, wanted.effective | keep, wanted.permitted | keep, wanted.inheritable)
        prctl("PR_CAP_AMBIENT_CLEAR_ALL", int(lib.PR_CAP_AMBIENT), int(lib.PR_CAP_AMBIENT_CLEAR_ALL))
        for bit in range(CAPABILITIES):
            if wanted.ambient >> bit & 1:
                label = f"PR_CAP_AMBIENT_RAISE of {capability_names(1 << bit)}"
                prctl(label, int(lib.PR_CAP_AMBIENT), int(lib.PR_CAP_AMBIENT_RAISE), bit)
    if wanted.secure_bits != bits:
        prctl("PR_SET_SECUREBITS", int(lib.PR_SET_SECUREBITS), wanted.secure_bits)
    if keep & ~(wanted.permitted & wanted.effective):
        _capset(program, wanted.effective, wanted.permitted, wanted.inheritable)
    if wanted.no_new_privileges and not present.no_new_privileges:
        prctl("PR_SET_NO_NEW_PRIVS", int(lib.PR_SET_NO_NEW_PRIVS), 1)


def _capset(program: Program, effective: int, permitted: int, inheritable: int) -> None:
    header = ffi.new("lm_capability_header *")
    header.version = CAPABILITY_VERSION_3
    words = ffi.new("lm_capability_word[2]")
    for index in range(2):
        shift = 32 * index
        words[index].effective = effective >> shift & LOW_WORD
        words[index].permitted = permitted >> shift & LOW_WORD
        words[index].inheritable = inheritable >> shift & LOW_WORD
    places = program.data(bytes(ffi.buffer(header))), program.data(bytes(ffi.buffer(words)))
    program.call("capset", numbers.SYS_capset, *places)


def namespace_blockers(process: ProcessSnapshot) -> list[Blocker]:
    """Blockers: a user namespace or a security label that the destination would not give. Needs the right to
    trace the process.
    """
    blockers = []
    if not process.in_our_namespace("user"):
        blockers.append(
            Blocker(
                object="user namespace",
                cause="the process lives in another one than lm-serve, and its ids mean other users there",
                remedy="run lm-serve inside that namespace (nsenter --user)",
            )
        )
    label = security_label(process)
    if label not in ("", "unconfined", security_label(ProcessSnapshot(os.getpid()))):
        blockers.append(
            Blocker(
                object="security label",
                cause=f"the process is confined as {label!r}",
                remedy="run lm-serve under the same label, or the process without a profile",
            )
        )
    return blockers


def security_label(process: ProcessSnapshot) -> str:
    """The label that a security module gave to the process, "" without one (proc_pid_attr(5))."""
    try:
        return process.read("attr/current").rstrip(b"\0\n").decode("utf-8", "replace")
    except (OSError, ProcessGone):
        return ""
