"""The network of an experiment: source and destination with the link under test between them, and a client beside.

The client reaches both machines over plain links of its own, and asks a service address that is routed to one of them,
so that only the migration uses the link under test. Needs root; removed on every way out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import NetNS, netns
from pyroute2.netlink.exceptions import NetlinkError

from live_migration.experiments import processors
from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.links import queue_bytes
from live_migration.experiments.machines import Machine
from live_migration.experiments.programs import program
from live_migration.experiments.results import Link

SERVICE = "10.99.9.9"
DEVICE = "link0"
ROOT = 0xFFFFFFFF
"""The parent of a device's first queueing discipline (tc(8))."""
TBF_BURST = 256 * 1024
"""Bytes: at least a packet of 64 KiB as offloads make them, and what 10 Gbit/s carry between two ticks of the timer."""
TBF_LATENCY = "5ms"


@dataclass(frozen=True)
class Network:
    """What is there: two machines, the client, and the link between the machines as asked for."""

    source: Machine
    destination: Machine
    client: Machine
    link: Link
    _sockets: dict[str, Any]
    relay: subprocess.Popen[bytes] | None = None

    def route_service_to(self, machine: Machine) -> None:
        """From now on the service address leads to this machine, as a router or a load balancer would do it."""
        gateway = "10.99.1.1" if machine is self.source else "10.99.2.1"
        self._sockets["client"].route("replace", dst=f"{SERVICE}/32", gateway=gateway)

    def carried(self) -> int:
        """Bytes that the link under test has carried so far, in both directions, as the source's device counts them.
        Of a large packet that an offload has made the headers are counted once."""
        device = self._sockets["source"].link("get", ifname=DEVICE)[0]
        counted = device.get_attr("IFLA_STATS64")
        return int(counted["rx_bytes"]) + int(counted["tx_bytes"])


def check_root() -> None:
    """ExperimentError unless this is root."""
    if os.geteuid() != 0:
        raise ExperimentError(
            "network namespaces and migrations need root; run it as root", Status.NO_PERMISSION
        )


@contextlib.contextmanager
def network(link: Link) -> Iterator[Network]:
    """Build it; idle processors are kept awake as long as it is there.

    ExperimentError when the kernel does not make it."""
    check_root()
    unique = f"{os.getpid()}-{secrets.token_hex(2)}"
    names = {name: f"lm-{name}-{unique}" for name in ("source", "destination", "client")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(processors.awake())
        try:
            sockets = {name: _namespace(stack, full) for name, full in names.items()}
            by, relay = _join(stack, link, names, sockets)
            for number, name in enumerate(("source", "destination"), 1):
                _up(sockets[name], DEVICE, f"10.99.0.{number}")
                _join_client(number, name, names, sockets)
        except (NetlinkError, OSError) as error:
            raise ExperimentError(
                f"link {link.name}: the kernel does not make it ({error}); network namespaces, veth, tbf and TUN are "
                "needed, as root"
            ) from error
        source = Machine(names["source"], DEVICE, "10.99.0.1")
        destination = Machine(names["destination"], DEVICE, "10.99.0.2")
        asked = Link(
            name=link.name, asked_rtt_ms=link.asked_rtt_ms, asked_rate=link.asked_rate, loss=link.loss, by=by
        )  # fmt: skip
        built = Network(source, destination, Machine(names["client"], "", ""), asked, sockets, relay)
        built.route_service_to(source)
        yield built


def _namespace(stack: contextlib.ExitStack, name: str) -> Any:
    """A new namespace that goes with the stack, and a netlink socket in it."""
    with _signals_wait():
        netns.create(name)
        stack.callback(_remove, name)
        opened = NetNS(name)
        stack.callback(opened.close)
    opened.link("set", index=opened.link_lookup(ifname="lo")[0], state="up")
    return opened


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that end lm-bench wait. pyroute2 enters a namespace in a fork of this process and ends that with SIGTERM:
    the fork would unwind this process's stack, with all its clean-ups, and remove what is still used."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        netns.remove(name)


def _up(socket: Any, device: str, address: str, length: int = 24) -> None:
    """Give a device its address and set it up."""
    index = socket.link_lookup(ifname=device)[0]
    socket.addr("add", index=index, address=address, prefixlen=length)
    socket.link("set", index=index, state="up")


def _join_client(number: int, name: str, names: dict[str, str], sockets: dict[str, Any]) -> None:
    """The client's link to one of the machines; the machine has the service address too."""
    device, socket = f"to-{number}", sockets[name]
    peer = {"ifname": "client", "net_ns_fd": names[name]}
    sockets["client"].link("add", ifname=device, kind="veth", peer=peer)
    _up(sockets["client"], device, f"10.99.{number}.254")
    _up(socket, "client", f"10.99.{number}.1")
    socket.addr("add", index=socket.link_lookup(ifname="lo")[0], address=SERVICE, prefixlen=32)


def _join(
    stack: contextlib.ExitStack, link: Link, names: dict[str, str], sockets: dict[str, Any]
) -> tuple[str, subprocess.Popen[bytes] | None]:
    """Make the link under test; what makes its delay and rate: veth, tbf, netem or relay, and the relay's process."""
    delayed = link.asked_rtt_ms > 0 or link.loss > 0
    if delayed and not has_netem(sockets["source"]):
        return "relay", _start_relay(stack, link, names)
    peer = {"ifname": DEVICE, "net_ns_fd": names["destination"]}
    sockets["source"].link("add", ifname=DEVICE, kind="veth", peer=peer)
    for name in ("source", "destination"):
        index = sockets[name].link_lookup(ifname=DEVICE)[0]
        if delayed:
            _add_netem(sockets[name], index, link)
        elif link.asked_rate:
            sockets[name].tc(
                "add", "tbf", index, 0x10000, rate=link.asked_rate, burst=max(TBF_BURST, link.asked_rate // 250),
                latency=TBF_LATENCY,
            )  # fmt: skip
    return "netem" if delayed else "tbf" if link.asked_rate else "veth", None


def has_netem(socket: Any) -> bool:
    """Whether the kernel delays packets itself; asked by doing it on the loopback device of a namespace."""
    index = socket.link_lookup(ifname="lo")[0]
    try:
        socket.tc("add", "netem", index, 0x10000, delay=1000)
    except NetlinkError as error:
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    socket.tc("del", index=index, handle=0x10000, parent=ROOT)
    return True


def _add_netem(socket: Any, index: int, link: Link) -> None:
    """Half the delay in each direction, and loss and rate."""
    options: dict[str, Any] = {"delay": int(link.asked_rtt_ms * 500), "loss": link.loss * 100}
    if link.asked_rate:
        options["rate"] = link.asked_rate
    # Packets that wait in it: those under way, and those in front of the bottleneck.
    in_flight = (link.asked_rate or 10**9) * link.asked_rtt_ms / 2000 + queue_bytes(link)
    socket.tc("add", "netem", index, 0x10000, limit=max(1000, int(in_flight / 1500)), **options)


def _start_relay(
    stack: contextlib.ExitStack, link: Link, names: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start our relay, which makes a TUN device in each namespace; it ends with the stack."""
    if not Path("/dev/net/tun").exists():
        raise ExperimentError(
            f"link {link.name}: it needs netem, which this kernel lacks, or /dev/net/tun for a relay, which is not "
            "there; enable CONFIG_NET_SCH_NETEM or CONFIG_TUN, or choose a link without delay and loss"
        )
    words = [program("relay"), f"/run/netns/{names['source']}", f"/run/netns/{names['destination']}", DEVICE]
    words += [f"rtt={round(link.asked_rtt_ms * 1e6)}", f"rate={link.asked_rate}", f"loss={link.loss}"]
    words += [f"queue={queue_bytes(link)}"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stack.callback(_end_relay, process)
    assert process.stdout
    assert process.stderr
    if process.stdout.readline() != b"ready\n":
        raise ExperimentError(f"link {link.name}: the relay does not make it; {process.stderr.read().decode().strip()}")
    return process


def _end_relay(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
