"""x86-64: registers, under names that every architecture has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from live_migration._lm import lib
from live_migration.kernel.arch.x86_64.instructions import SYSCALL

# The order of struct user_regs_struct, sys/user.h; every register is 8 bytes.
# fmt: off
_NAMES = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
]
# fmt: on
_PLACES: Mapping[str, int] = {name: 8 * index for index, name in enumerate(_NAMES)}
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_CODE_SEGMENT_64 = 0x33
# By the numbers that DWARF has for them (System V psABI for x86-64, 3.6.2).
# fmt: off
_DWARF_NAMES = (
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)
# fmt: on

REGISTERS_SIZE: int = lib.LM_REGISTERS_SIZE
assert len(_NAMES) * 8 == REGISTERS_SIZE
# Bytes below the stack pointer that a function may use (System V psABI, 3.2.2).
RED_ZONE = 128


@dataclass(frozen=True)
class Registers:
    """The general registers of a stopped thread (struct user_regs_struct)."""

    raw: bytes

    @property
    def instruction_pointer(self) -> int:
        return self._get("rip")

    @property
    def stack_pointer(self) -> int:
        return self._get("rsp")

    @property
    def syscall_number(self) -> int:
        """The system call that the thread is in, -1 outside of one."""
        return self._get_signed("orig_rax")

    @property
    def result(self) -> int:
        """The result of a system call, signed: -errno for an error."""
        return self._get_signed("rax")

    @property
    def arguments(self) -> tuple[int, ...]:
        """The six arguments of a system call."""
        return tuple(self._get(name) for name in _ARGUMENTS)

    @property
    def thread_pointer(self) -> int:
        """Where the thread's own storage ends."""
        return self._get("fs_base")

    @property
    def is_64_bit(self) -> bool:
        """Whether the thread runs 64-bit code just now."""
        return self._get("cs") == _CODE_SEGMENT_64

    def replaced(
        self,
        *,
        instruction_pointer: int | None = None,
        stack_pointer: int | None = None,
        syscall_number: int | None = None,
        result: int | None = None,
        thread_pointer: int | None = None,
        arguments: tuple[int, ...] = (),
    ) -> Registers:
        """A copy with some registers changed; `arguments` replaces as many as it has."""
        raw = bytearray(self.raw)
        changes = {
            "rip": instruction_pointer,
            "rsp": stack_pointer,
            "orig_rax": syscall_number,
            "rax": result,
            "fs_base": thread_pointer,
            **dict(zip(_ARGUMENTS, arguments, strict=False)),
        }
        for name, value in changes.items():
            if value is not None:
                place = _PLACES[name]
                raw[place : place + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
        return Registers(bytes(raw))

    def rewound(self) -> Registers:
        """Before its system call, which resuming makes again."""
        return self.replaced(
            instruction_pointer=self.instruction_pointer - len(SYSCALL),
            result=self.syscall_number,
            syscall_number=-1,
        )

    def at_call(self, instruction: int, number: int, *arguments: int) -> Registers:
        """About to make a system call with the syscall instruction at `instruction`."""
        return self.replaced(
            instruction_pointer=instruction, result=number, syscall_number=-1, arguments=arguments
        )

    def dwarf_register(self, number: int) -> int:
        """The register of this number in debugging information. Raises ValueError for one that is not here."""
        if not 0 <= number < len(_DWARF_NAMES):
            raise ValueError(f"no general register has the number {number}")
        return self._get(_DWARF_NAMES[number])

    def after_detour(self, detour: int, return_address: int) -> Registers:
        """At `return_address`, for a thread that is anywhere in the detour at `detour`."""
        saved = "rax" if self.instruction_pointer == detour else "r10"
        return self.replaced(instruction_pointer=return_address, result=self._get(saved), syscall_number=-1)

    def _get(self, name: str) -> int:
        place = _PLACES[name]
        return int.from_bytes(self.raw[place : place + 8], "little")

    def _get_signed(self, name: str) -> int:
        place = _PLACES[name]
        return int.from_bytes(self.raw[place : place + 8], "little", signed=True)
