"""What idle processors do while somebody waits for them to wake up: /dev/cpu_dma_latency.

It is of the whole host, and open to root alone (Documentation/power/pm_qos_interface.rst).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

FILE = Path("/dev/cpu_dma_latency")
NONE_US = bytes(4)
"""A native 32-bit number."""


@contextlib.contextmanager
def awake(path: Path = FILE) -> Iterator[None]:
    """Within, idle processors of this host wait in a loop and do not sleep; where the kernel does not offer it, or not
    to us, nothing is changed. The kernel keeps to it while the file is open: it ends with this process, whatever
    becomes of it.

    A processor of a virtual machine that sleeps has to be scheduled by the host to wake up, which takes 50 us to 1 ms,
    and a handover wakes one up some ten times.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            os.write(descriptor, NONE_US)
        yield
