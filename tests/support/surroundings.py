"""A command that prints what it finds around it, as JSON: what a forked one must find as a started one does."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path


def main() -> int:
    """Print it; the exit status is the first argument. Without one, wait for a signal."""
    if not sys.argv[1:]:
        signal.pause()
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(
        json.dumps(
            {
                "arguments": sys.argv[1:],
                "environment": dict(os.environ),
                "folder": os.getcwd(),
                "descriptors": {name: os.readlink(f"/proc/self/fd/{name}") for name in ("0", "1", "2")},
                "how many": len(os.listdir("/proc/self/fd")),
                "parent": os.getppid(),
                "group": os.getpgrp(),
                "session": os.getsid(0),
                "leads": os.getsid(0) == os.getpid(),
                "network": os.readlink("/proc/self/ns/net"),
                "name": Path("/proc/self/comm").read_text(),
                "signals": [status[key] for key in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd")],
                "interrupt": repr(signal.getsignal(signal.SIGINT)),
                "threads": threading.active_count(),
                "collects": gc.isenabled(),
                "streams": [
                    (stream.encoding, stream.errors, stream.line_buffering, stream.isatty())
                    for stream in (sys.stdin, sys.stdout, sys.stderr)
                ],
                "dumpable": status["CoreDumping"],
                "rights": [status[key] for key in ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp", "Umask")],
            }
        )
    )
    return int(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
