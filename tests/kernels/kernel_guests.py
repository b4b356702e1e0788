"""Two guests with different kernels under qemu, joined by a link; commands run in them as on any machine.

Whatever is started here ends on every way out: when this process ends, too (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from live_migration.experiments.machines import Command, wait_for
from tests.kernels import kernel_packages
from tests.kernels.kernel_initramfs import write_initramfs
from tests.kernels.kernel_packages import Kernel

NEEDED = {
    "qemu-system-x86_64": "qemu-system-x86",
    "/usr/lib/qemu/virtiofsd": "qemu-system-common",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MEMORY = "1G"
BOOT_SECONDS = 180.0
OFF_SECONDS = 30.0
SOCKET_SECONDS = 20.0
COMMAND_SECONDS = 120.0
CONSOLE_TAIL = 3000
# A bind mount does not bring along what is mounted under it, and can be read-only by itself.
SHARE_READ_ONLY = 'mount --bind / "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@dataclass
class GuestProcess:
    """A command in a guest, with what of subprocess.Popen a `Command` uses. `pid` is its id in the guest."""

    box: Path
    number: int
    pid: int = 0
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        with contextlib.suppress(FileNotFoundError):
            self.returncode = int((self.box / f"{self.number}.status").read_text())
        return self.returncode

    def wait(self, seconds: float = COMMAND_SECONDS) -> int:
        """Wait for its exit status. Raises TimeoutError."""
        return wait_for(f"the end of command {self.number}", self.poll, seconds)


@dataclass
class Guest:
    """A running guest: its kernel, the address on the link, and the folder through which it is told what to run."""

    kernel: Kernel
    address: str
    box: Path
    machine: subprocess.Popen[bytes]
    console: Path
    commands: int = field(default=0)

    def start(self, words: Sequence[str], folder: Path, name: str) -> Command:
        """Start a command, its output in folder/name.out and .err; the folder is a shared one. Raises TimeoutError."""
        self.commands += 1
        asked = {"words": list(words), "out": str(folder / f"{name}.out"), "err": str(folder / f"{name}.err")}
        unfinished = self.box / f"{self.commands}.unfinished"
        unfinished.write_text(json.dumps(asked))
        unfinished.rename(self.box / f"{self.commands}.command")
        process = GuestProcess(self.box, self.commands)

        def started() -> int | None:
            if self.machine.poll() is not None:
                raise RuntimeError(f"the guest with {self.kernel.series} has ended\n{self.said()}")
            with contextlib.suppress(FileNotFoundError):
                return int((self.box / f"{process.number}.pid").read_text())
            return None

        process.pid = wait_for(f"the start of {words[0]}", started, COMMAND_SECONDS)
        return Command(name, cast("subprocess.Popen[bytes]", process), folder)

    def run(self, words: Sequence[str], folder: Path, name: str) -> str:
        """Run a command to its end; what it printed. Raises RuntimeError with that when it failed."""
        command = self.start(words, folder, name)
        if command.process.wait(COMMAND_SECONDS):
            raise RuntimeError(command.said())
        return (folder / f"{name}.out").read_text()

    def said(self) -> str:
        """The end of what its console shows."""
        return self.console.read_text(errors="replace")[-CONSOLE_TAIL:] if self.console.exists() else ""


def missing_packages() -> list[str]:
    """Debian packages that have to be installed on the host for this."""
    return sorted({package for name, package in NEEDED.items() if shutil.which(name) is None})


def bound_to_us(words: Sequence[str]) -> list[str]:
    """The command line of a process that does not outlive this one."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *words]


@contextlib.contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, with its output in a file; ended on every way out."""
    with log.open("wb") as output:
        process = subprocess.Popen(bound_to_us(words), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_file(path: Path) -> None:
    """Wait until something of the host's has made a file. Raises TimeoutError."""
    wait_for(str(path), lambda: path.exists() or None, SOCKET_SECONDS)


def share(folder: Path, name: str, read_only: bool) -> tuple[list[str], Path]:
    """What serves one of the host's folders to a guest, and the socket at which it does."""
    socket, mounted = folder / f"{name}.sock", folder / name
    mounted.mkdir(exist_ok=True)
    options = "cache=always" if read_only else "cache=none"
    words = [VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={mounted}", "-o", options, "-o", "log_level=err"]
    if read_only:
        words = ["unshare", "--mount", "sh", "-c", SHARE_READ_ONLY, "sh", str(mounted), *words]
    return words, socket


def machine(kernel: Kernel, folder: Path, sockets: dict[str, Path], first: bool) -> list[str]:
    """qemu's command line. The `first` guest waits for the other one at its end of the link."""
    words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-nodefaults", "-display", "none"]
    words += ["-no-reboot", "-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")]
    words += ["-append", "console=ttyS0 quiet panic=-1 net.ifnames=0", "-serial", f"file:{folder / 'console'}"]
    words += ["-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-numa", "node,memdev=memory"]
    for tag, socket in sockets.items():
        words += ["-chardev", f"socket,id={tag},path={socket}"]
        words += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    link = f"stream,id=link,server={'on' if first else 'off'},addr.type=unix,addr.path={folder.parent / 'link.sock'}"
    return [*words, "-netdev", link, "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{2 - first}"]


@contextlib.contextmanager
def guest(series: str, folder: Path, shared: Path, first: bool) -> Iterator[Guest]:
    """Boot one guest; it may not be up yet. Raises LookupError, OSError, subprocess.CalledProcessError."""
    kernel = kernel_packages.kernel(series)
    own, box = folder / series, shared / series
    own.mkdir()
    box.mkdir()
    address = f"10.99.7.{1 if first else 2}"
    agent = Path(__file__).with_name("guest_agent.py")
    words = {"shared": shared, "name": series, "address": address, "python": sys.executable, "agent": agent}
    write_initramfs(own / "initramfs", kernel, kernel_packages.busybox(), **words)
    with contextlib.ExitStack() as stack:
        sockets = {}
        for name, read_only in (("root", True), ("shared", False)):
            line, sockets[name] = share(own, name, read_only)
            if name == "shared":
                line = [word.replace(f"source={own / name}", f"source={shared}") for word in line]
            stack.enter_context(started(line, own / f"{name}.log"))
        for socket in sockets.values():
            wait_for_file(socket)
        line = machine(kernel, own, sockets, first)
        running = stack.enter_context(started(line, own / "qemu.log"))
        if first:
            wait_for_file(folder / "link.sock")
        yield Guest(kernel, address, box, running, own / "console")


@contextlib.contextmanager
def two_guests(series: Sequence[str] = kernel_packages.SERIES) -> Iterator[tuple[list[Guest], Path]]:
    """Two guests that are up, and the folder, at one path everywhere, that they and the host write.

    Raises TimeoutError, RuntimeError with the console's end when one does not come up."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lm-kernels-")))
        shared = folder / "shared"
        shared.mkdir()
        guests = [stack.enter_context(guest(name, folder, shared, first=not i)) for i, name in enumerate(series)]
        for one in guests:

            def up(one: Guest = one) -> bool | None:
                if one.machine.poll() is not None:
                    raise RuntimeError(f"the guest with {one.kernel.series} did not boot\n{one.said()}")
                return (one.box / "up").exists() or None

            try:
                wait_for(f"the guest with {one.kernel.series}", up, BOOT_SECONDS, pause=0.05)
            except TimeoutError as error:
                raise RuntimeError(f"{error}\n{one.said()}") from None
        yield guests, shared
        for one in guests:
            (one.box / "off").touch()
        for one in guests:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.machine.wait(OFF_SECONDS)
