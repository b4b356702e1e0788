"""What idle processors do while something is measured."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LATENCY = Path("/dev/cpu_dma_latency")


@contextlib.contextmanager
def awake(path: Path = LATENCY) -> Iterator[None]:
    """Idle processors wait in a loop and do not sleep, as cyclictest and tuned's latency-performance ask for it too.

    A processor of a virtual machine that sleeps has to be scheduled by the host to wake up, which takes from 50 us to
    1 ms and changes from minute to minute: as a part of every delay that an emulated link makes, it would be measured
    as the link's. The kernel keeps to it while the file is open, whatever becomes of this process
    (Documentation/power/pm_qos_interface.rst). Where the kernel does not offer it they sleep; see wake_up_us.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            # Microseconds, a native 32-bit number.
            os.write(descriptor, bytes(4))
        yield


def wake_up_us(path: Path = LATENCY) -> int | None:
    """How long an idle processor may take to wake up by what everybody asks for now: 0 when they are kept awake. None
    where the kernel does not tell."""
    try:
        return int.from_bytes(path.read_bytes()[:4], sys.byteorder)
    except OSError:
        return None
