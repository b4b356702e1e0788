"""What Python uses of this machine's architecture; arch.h tells what else an architecture has. Modules outside this
folder import only from here."""

from __future__ import annotations

from live_migration.kernel.arch.x86_64 import cpu, instructions
from live_migration.kernel.arch.x86_64.registers import RED_ZONE, REGISTERS_SIZE, Registers
from live_migration.kernel.arch.x86_64.sigreturn_frame import signal_frames

__all__ = ["RED_ZONE", "REGISTERS_SIZE", "Registers", "cpu", "instructions", "signal_frames"]
