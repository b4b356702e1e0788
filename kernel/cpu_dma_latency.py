"""What idle processors do while somebody waits for them to wake up: /dev/cpu_dma_latency.

It is of the whole host, and open to root alone (Documentation/power/pm_qos_interface.rst).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

FILE = Path("/dev/cpu_dma_latency")
NONE_US = bytes(4)
"""A native 32-bit number."""
MOST_SECONDS = 10.0


@contextlib.contextmanager
def awake(path: Path = FILE, most_seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Within, idle processors of this host wait in a loop and do not sleep; where the kernel does not offer it, or not
    to us, nothing is changed. The kernel keeps to it while the file is open: it ends with this process, whatever
    becomes of it, and after `most_seconds`, for whoever waits for a peer that hangs costs this host no processor.

    A processor of a virtual machine that sleeps has to be scheduled by the host to wake up, which takes 50 us to 1 ms,
    and a handover wakes one up some ten times.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(path.open("r+b", buffering=0))
            end = threading.Timer(most_seconds, file.close)
            end.daemon = True
            end.start()
            stack.callback(end.cancel)
            file.write(NONE_US)
        yield
