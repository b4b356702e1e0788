"""What ps(1) and pgrep(1) call a process that was forked from a command of ours (own_name.h)."""

from __future__ import annotations

from live_migration._lm import lib


def call_ourselves(name: str, purpose: str) -> None:
    """Take a name of at most 15 bytes, and "name: purpose" as the command line as far as the old one gives room."""
    lib.lm_own_name(name.encode(), purpose.encode())
