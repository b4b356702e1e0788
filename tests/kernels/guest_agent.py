"""Process 1 of a guest: runs what the host asks for through the shared folder, and tells how it ended.

NAME/N.command   what to run, in JSON: words, and the files for its output; it gets a session of its own.
                 Of `-m MODULE` after Python, main() is called in a fork of this process, which has imported it:
                 an interpreter's start takes seconds here
NAME/N.pid       its id, as soon as it runs
NAME/N.status    its exit status, -n for one that signal n ended
NAME/up          the kernel's release: the guest is ready
NAME/off         asks for the end
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 0.03
POWER_OFF = 0x4321FEDC  # reboot(2), LINUX_REBOOT_CMD_POWER_OFF
# What the commands import, also late.
PRELOADED = (
    "live_migration.cli.serve", "live_migration.source_server.serve",
    "live_migration.cli.restore", "live_migration.restorer.frontend", "live_migration.restorer.migrate",
)  # fmt: skip
OPEN_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def tell(path: Path, text: str) -> None:
    """Write a file that is complete when it appears."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)


def start(path: Path) -> int:
    """Start what a command file asks for; its process id."""
    asked = json.loads(path.read_text())
    words = asked["words"]
    files = [os.open("/dev/null", os.O_RDONLY), *(os.open(asked[name], OPEN_FILE, 0o644) for name in ("out", "err"))]
    try:
        if words[:2] == [sys.executable, "-m"]:
            return fork(words[2], words[3:], files)
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
        return os.posix_spawnp(words[0], words, dict(os.environ), file_actions=actions, setsid=True)
    finally:
        for file in files:
            os.close(file)


def fork(module: str, words: list[str], files: list[int]) -> int:
    """Run a module's main() in a child, as a command of its own would; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(len(files), max(files) + 1)
        sys.argv = [module, *words]
        status = importlib.import_module(module).main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def reap(running: dict[int, Path]) -> None:
    """Tell of everything that has ended; orphans are only reaped."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in running:
            tell(running.pop(pid).with_suffix(".status"), str(os.waitstatus_to_exitcode(status)))


def main(shared: Path, name: str) -> None:
    """Serve until the end is asked for."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for module in PRELOADED:
        importlib.import_module(module)
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LANG="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    box = shared / name
    running: dict[int, Path] = {}
    done: set[str] = set()
    tell(box / "up", os.uname().release)
    while not (box / "off").exists():
        for path in sorted(box.glob("*.command")):
            if path.name not in done:
                done.add(path.name)
                pid = start(path)
                running[pid] = path
                tell(path.with_suffix(".pid"), str(pid))
        reap(running)
        time.sleep(PAUSE)
    os.sync()
    ctypes.CDLL(None).reboot(POWER_OFF)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
