"""x86-64: instructions as bytes, both those that are searched for in programs and those that are written into them."""

from __future__ import annotations

from live_migration._lm import lib

# e_machine of an ELF file (elf(5)): EM_X86_64.
ELF_MACHINE = 62

SYSCALL = b"\x0f\x05"
RETURN = b"\xc3"
SYSCALL_RETURN = SYSCALL + RETURN
LEAVE_RETURN = b"\xc9" + RETURN
# rt_sigreturn as glibc (mov $15, %rax; syscall) and musl (mov $15, %eax; syscall) write it.
SIGNAL_RETURN = (b"\x48\xc7\xc0\x0f\x00\x00\x00" + SYSCALL, b"\xb8\x0f\x00\x00\x00" + SYSCALL)
# `mov $number, %eax; syscall`: how the number stands before the instruction pointer in nearly all code.
NUMBER_ROOM = 7
# A function that says that it does not exist.
NOT_THERE = b"\x48\xc7\xc0\xda\xff\xff\xff" + RETURN  # mov $-ENOSYS, %rax; ret
SHORT_JUMP = 5

AUDIT_ARCHITECTURE = 0xC000003E
"""What a seccomp filter is told (AUDIT_ARCH_X86_64, linux/audit.h)."""

# Code to which a function may return instead of its caller. It makes a system call, at whose entry a tracer stops the
# thread and brings it to the caller; without a tracer it goes on there. Of the registers that the code changes, only
# the result of a function has to be kept.
_DETOUR = (
    b"\x49\x89\xc2"  # mov %rax, %r10
    b"\xb8" + int(lib.SYS_getpid).to_bytes(4, "little") +  # mov $SYS_getpid, %eax
    SYSCALL +
    b"\x4c\x89\xd0"  # mov %r10, %rax
    b"\xff\x25\x00\x00\x00\x00"  # jmp *(%rip), which is what follows
)  # fmt: skip
DETOUR_ROOM = 32


def call_number(before: bytes) -> int | None:
    """The number of the system call that the last NUMBER_ROOM bytes before an instruction pointer have made, None if
    they do not tell."""
    made = before[-NUMBER_ROOM:]
    if made[:1] != b"\xb8" or made[5:] != SYSCALL:
        return None
    return int.from_bytes(made[1:5], "little")


def call(number: int) -> bytes:
    """A function that is the system call of this number."""
    return b"\xb8" + number.to_bytes(4, "little") + SYSCALL_RETURN  # mov $number, %eax; syscall; ret


def call_unless_all_ones(number: int) -> bytes:
    """The same, but with a fifth argument of ~0 the function says that it does not exist."""
    made = call(number)
    # cmp $-1, %r8; je behind the call
    return b"\x49\x83\xf8\xff\x74" + len(made).to_bytes(1, "little") + made + NOT_THERE


def jump(address: int) -> bytes:
    """Code that goes on anywhere, for the beginning of a function: it changes no argument, and %r11 is the caller's to
    save."""
    return b"\x49\xbb" + address.to_bytes(8, "little") + b"\x41\xff\xe3"  # movabs $address, %r11; jmp *%r11


def short_jump(distance: int) -> bytes:
    """Code of SHORT_JUMP bytes that goes on `distance` bytes from its beginning."""
    return b"\xe9" + (distance - SHORT_JUMP).to_bytes(4, "little", signed=True)


def detour(return_address: int) -> bytes:
    """DETOUR_ROOM bytes that lead to `return_address`, to be run anywhere."""
    return (_DETOUR + return_address.to_bytes(8, "little")).ljust(DETOUR_ROOM, b"\0")
