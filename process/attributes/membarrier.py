"""What a process has registered for membarrier(2): commands that fail in a process without a registration.

Only the process itself can tell (MEMBARRIER_CMD_GET_REGISTRATIONS, since Linux 6.3; before that nobody can).
"""

from __future__ import annotations

from live_migration.kernel.injection import syscall_numbers as numbers
from live_migration.kernel.injection.program import Program, Result

GET_REGISTRATIONS = 1 << 9
REGISTRATIONS = {
    1 << 2: "MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED",
    1 << 4: "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED",
    1 << 6: "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE",
    1 << 8: "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ",
}
"""The commands that register, and the bits with which the kernel tells of them (linux/membarrier.h)."""


def query_registrations(program: Program) -> Result:
    """The row of the query; its result is a set of REGISTRATIONS, or -EINVAL from a kernel that does not tell."""
    return program.call("membarrier", numbers.SYS_membarrier, GET_REGISTRATIONS, 0, 0, check=False)


def restore_registrations(program: Program, registrations: int) -> None:
    """Rows that register again, where `registrations` are those of the process."""
    for command, name in REGISTRATIONS.items():
        if registrations & command:
            program.call(name, numbers.SYS_membarrier, command, 0, 0)
