"""make demo-ssh: moves a process by lm-migrate to a host that has never heard of it, and back.

The other host is a Debian root without Python and compiler, in namespaces of its own, with a real sshd (far_host.py).
What the two share is one folder, as by NFS: the process's program, and the file that it writes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.far_host import FarHost, far_host
from live_migration.experiments.machines import (
    Machine,
    adopt_orphans,
    kill_descendants,
    leave_on_signals,
    two_machines,
    wait_for,
)

MEBIBYTES = 256
COUNT_SECONDS = 0.5


def say(text: str) -> None:
    """Print a line at once: the commands print beside this program."""
    print(text, flush=True)


def lines(log: Path) -> list[str]:
    """What the process has written, without a line that is not whole."""
    return [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def lm_migrate(here: Machine, far: FarHost, *words: str) -> bool:
    """Show a command line of lm-migrate, and run it; whether it went well."""
    say(f"\n# lm-migrate {shlex.join(words)}")
    start = time.monotonic()
    line = [sys.executable, "-m", "live_migration.cli.migrate", "--ssh", far.ssh, *words]
    done = subprocess.run(here.command(*line), stdin=subprocess.DEVNULL)
    say(f"({time.monotonic() - start:.1f} s)")
    return done.returncode == 0


def look(log: Path) -> bool:
    """Say what the process does; whether it does what it should."""
    time.sleep(COUNT_SECONDS)
    found = lines(log)
    well = found == [f"{number}\n" for number in range(len(found))]
    say(f"it has counted to {len(found):,}, {'nothing left out, its memory as it was' if well else 'with errors'}")
    return well


def run(here: Machine, far: FarHost, shared: Path) -> bool:
    """The demo itself; whether all is well."""
    log = shared / "log"
    null = subprocess.DEVNULL
    words = here.command(str(shared / "counter"), str(log), str(MEBIBYTES))
    process = subprocess.Popen(words, cwd="/", stdin=null, stdout=null, stderr=null, start_new_session=True)
    wait_for("the process", lambda: (log.exists() and lines(log)) or None)
    say(f"this host    process {process.pid} counts in a file, and looks at its {MEBIBYTES} MiB of memory")
    missing = [name for name in ("python3", "gcc", "lm-restore") if not far.path(f"/usr/bin/{name}").exists()]
    say(f"the other    {far.run('cat', '/etc/debian_version')}, without {', '.join(missing)}")
    well = lm_migrate(here, far, str(process.pid), "far") and look(log)
    process.wait(10)
    well = well and lm_migrate(here, far, "--list", "far")
    there = [pid for pid in far.run("ls", "/run/live-migration/moved").split() if pid.isdecimal()]
    well = well and lm_migrate(here, far, "--via=ssh", "--back", "far", *there) and look(log)
    return well and lm_migrate(here, far, "--clean", "far")


def main() -> int:
    """Run it between two hosts that are made for it."""
    if os.geteuid() != 0:
        print("demo-ssh: namespaces need root; run it as root, or with sudo make demo-ssh", file=sys.stderr)
        return 1
    adopt_orphans()
    leave_on_signals()
    with two_machines() as (here, there), tempfile.TemporaryDirectory(prefix="lm-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        far_folder, shared = folder / "far", folder / "shared"
        for path in (far_folder, shared):
            path.mkdir()
        source = Path(__file__).with_name("counter.c")
        subprocess.run(["gcc", "-static", "-O1", str(source), "-o", str(shared / "counter")], check=True)
        try:
            with far_host(there, far_folder, [shared]) as far:
                return 0 if run(here, far, shared) else 1
        finally:
            kill_descendants()


if __name__ == "__main__":
    sys.exit(main())
