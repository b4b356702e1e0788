"""A guest's initramfs: busybox, the modules that its kernel needs, and a script that goes over to the host's files.

The guest sees the host's root read-only with a layer of memory over it, and one folder that both write.
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.kernels.kernel_packages import Kernel

# What the guests use, where it is not part of the kernel itself: the disks, the layer, the link, what lm asks sockets
# with, and packet filters, which lm holds established connections with.
WANTED = (
    "virtio_pci",
    "virtiofs",
    "overlay",
    "virtio_net",
    "unix_diag",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_tables",
)
SUFFIXES = (".ko", ".ko.xz")
# The first field of a header in the cpio format that kernels take (cpio(5), newc).
MAGIC = b"070701"

SCRIPT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module || echo "no module $module"; done
mount -t virtiofs -o ro root /lower
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new
mkdir -p /new{shared}
mount -t virtiofs shared /new{shared}
for folder in proc sys dev; do mount --move /$folder /new/$folder; done
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t devpts pts /new/dev/pts
mount -t tmpfs run /new/run
hostname {name}
ip address add 127.0.0.1/8 dev lo
ip address add {address}/24 dev eth0
ip link set lo up
ip link set eth0 up
exec switch_root /new {python} {agent} {shared} {name}
"""


def module_files(kernel: Kernel) -> dict[str, Path]:
    """A kernel's modules by name."""
    return {
        path.name.partition(".")[0].replace("-", "_"): path
        for path in kernel.modules.rglob("*.ko*")
        if path.name.endswith(SUFFIXES)
    }


def content(path: Path) -> bytes:
    """A module's content, uncompressed."""
    raw = path.read_bytes()
    return lzma.decompress(raw) if path.suffix == ".xz" else raw


def needed_modules(kernel: Kernel) -> dict[str, bytes]:
    """The contents of the wanted modules and of those that they need (modinfo(8), depends), in the order of loading."""
    files = module_files(kernel)
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in found or name not in files:
            return
        module = content(files[name])
        needed = re.search(rb"\0depends=([^\0]*)\0", module)
        for other in needed[1].decode().split(",") if needed else []:
            if other:
                add(other)
        found[name] = module

    for name in WANTED:
        add(name)
    return found


def entries(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """The records of an archive: path -> (mode, content)."""
    for number, (path, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        head = MAGIC + b"".join(b"%08x" % field for field in fields) + name
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def write_initramfs(target: Path, kernel: Kernel, busybox: Path, **words: object) -> None:
    """Write a guest's initramfs; `words` fill the script: shared, name, address, python, agent."""
    modules = needed_modules(kernel)
    script = SCRIPT.format(modules=" ".join(modules), **words)
    folders = ("bin", "proc", "sys", "dev", "modules", "lower", "upper", "new")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(folders, (stat.S_IFDIR | 493, b""))
    files["bin/busybox"] = (stat.S_IFREG | 0o755, busybox.read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, script.encode())
    for name, module in modules.items():
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, module)
    target.write_bytes(b"".join(entries(files)))
