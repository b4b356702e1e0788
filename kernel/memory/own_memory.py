"""Our own memory before something urgent (own_memory.h)."""

from __future__ import annotations

from live_migration._lm import lib


def make_own() -> None:
    """Make every page that this process has and may write to its own, and every function of the C side known.

    Memory that was shared with a child since a fork costs a fault and a copy at the first write, and a function that is
    called for the first time is looked up. A kernel before Linux 5.14 cannot do the first; then the faults come later.
    """
    lib.lm_own_memory_populate()
    for name in dir(lib):
        getattr(lib, name)
