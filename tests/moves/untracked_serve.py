"""lm-serve as on a kernel that tells of no writes: no PAGEMAP_SCAN, as before Linux 6.7, and no soft-dirty bits.

A script for tests, with lm-serve's arguments."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from live_migration.cli.serve import main
from live_migration.kernel.injection.syscall_numbers import SYS_ioctl

# prctl(2), seccomp(2), and linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K.
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
# Offsets in struct seccomp_data: the call's number, and its second argument's lower half.
NUMBER_AT, SECOND_ARGUMENT_AT = 0, 24
# linux/fs.h
PAGEMAP_SCAN = 0xC0606610


def forbid_ioctl(request: int) -> None:
    """Answer an ioctl(2) of this process and its children as a kernel does that does not know it."""
    steps = [
        (LOAD_WORD, 0, 0, NUMBER_AT),
        (JUMP_IF_EQUAL, 0, 3, SYS_ioctl),
        (LOAD_WORD, 0, 0, SECOND_ARGUMENT_AT),
        (JUMP_IF_EQUAL, 0, 1, request),
        (RETURN, 0, 0, RET_ERRNO | errno.ENOTTY),
        (RETURN, 0, 0, RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("=HxxxxxxQ", len(steps), ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    forbid_ioctl(PAGEMAP_SCAN)
    sys.exit(main())
