"""The part of make bench that is about encryption: the same moves with and without it, in the same rounds."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from live_migration.experiments.judgements import Judgement, at_most, shown
from live_migration.experiments.machines import Machine, descendants
from live_migration.experiments.measures import (
    MOVE_SECONDS,
    Laboratory,
    Samples,
    measure_downtime,
    measure_idle_faults,
    moving,
)

DOWNTIME_MIB = 64
SAMPLE_SECONDS = 0.005
BULK_THREAD = "lm-bulk"
"""What the thread is called that sends or fetches in bulk, on either side."""
CIPHER = ["openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp", "aes-128-gcm", "-mr"]
RATIO, CIPHERS_OWN, DOWNTIME_MS = 1.15, 1.1, 0.3
GIB = 2**30


@contextlib.contextmanager
def in_clear(laboratory: Laboratory) -> Iterator[Laboratory]:
    """The same machines at addresses of loopback's network, over the same link: --insecure works with no others."""

    def moved(machine: Machine, number: int) -> Machine:
        address = f"127.99.0.{number}"
        routes = f"/proc/sys/net/ipv4/conf/{machine.link}/route_localnet"
        subprocess.run(machine.command("sh", "-c", f"echo 1 > {routes}"), check=True)
        # The machine itself has all of 127.0.0.0/8 otherwise.
        machine.ip("address", "delete", "127.0.0.1/8", "dev", "lo")
        machine.ip("address", "add", "127.0.0.1/32", "dev", "lo")
        machine.ip("address", "add", f"{address}/24", "dev", machine.link)
        return replace(machine, address=address)

    ends = (laboratory.source, laboratory.destination)
    source, destination = (moved(machine, number) for number, machine in enumerate(ends, 1))
    try:
        yield replace(laboratory, source=source, destination=destination, options=("--insecure",))
    finally:
        for machine in (source, destination):
            machine.ip("address", "delete", f"{machine.address}/24", "dev", machine.link)
            machine.ip("address", "delete", "127.0.0.1/32", "dev", "lo")
            machine.ip("address", "add", "127.0.0.1/8", "dev", "lo")


@dataclass
class BulkThreads:
    """The processor time of the bulk threads of some processes, looked at until they have ended."""

    parents: list[int]
    spent: dict[tuple[int, str], int] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        tasks = [
            (pid, task)
            for parent in self.parents
            for pid in {parent, *descendants(parent)}
            for task in Path(f"/proc/{pid}/task").glob("*")
            if (task / "comm").read_text().strip() == BULK_THREAD
        ]
        thread = threading.Thread(target=self._run, args=[tasks])
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            thread.join()

    def _run(self, tasks: list[tuple[int, Path]]) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            for pid, task in tasks:
                with contextlib.suppress(OSError, IndexError):
                    self.spent[pid, task.name] = int((task / "schedstat").read_text().split()[0])

    def seconds(self) -> float:
        return sum(self.spent.values()) / 1e9


def measure_bulk_cost(laboratory: Laboratory, mebibytes: int) -> Samples:
    """processor_seconds: of both bulk threads, for one GiB. What they did before the resume is not much."""
    words = ["toucher", str(mebibytes), "1"]
    with moving(laboratory, words, memory=mebibytes, held_until="resumed") as trial:
        threads = BulkThreads([trial.move.serve.process.pid, trial.move.restore.process.pid])
        with threads.watched():
            trial.move.complete(MOVE_SECONDS)
        seconds = trial.moment("complete") - trial.moment("resumed")
        return {
            "processor_seconds": threads.seconds() * GIB / (mebibytes * 2**20),
            "bytes_per_second": mebibytes * 2**20 / seconds,
        }


def measure_cipher() -> Samples:
    """bytes_per_second of the cipher alone, on one processor; 0 where there is no openssl to ask."""
    if not shutil.which(CIPHER[0]):
        return {"bytes_per_second": 0.0}
    said = subprocess.run(CIPHER, capture_output=True, text=True).stdout
    found = [line.split(":") for line in said.splitlines() if line.startswith("+F:")]
    return {"bytes_per_second": float(found[0][3]) if found else 0.0}


def measures(laboratory: Laboratory, bulk_mib: int, fault_mib: int, faults: int) -> dict[str, Callable[[], Samples]]:
    """What is measured, by name."""

    def clear(measure: Callable[[Laboratory], Samples]) -> Callable[[], Samples]:
        def run() -> Samples:
            with in_clear(laboratory) as other:
                return measure(other)

        return run

    each: dict[str, Callable[[Laboratory], Samples]] = {
        "downtime": lambda where: measure_downtime(where, DOWNTIME_MIB),
        "fault": lambda where: measure_idle_faults(where, fault_mib, faults),
        "bulk": lambda where: measure_bulk_cost(where, bulk_mib),
    }
    found: dict[str, Callable[[], Samples]] = {}
    for name, measure in each.items():
        found[f"{name} in clear"] = clear(measure)
        found[f"{name} encrypted"] = lambda measure=measure: measure(laboratory)  # type: ignore[misc]
    return found | {"cipher": measure_cipher}


def judge(samples: dict[str, list[Samples]]) -> list[Judgement]:
    """The table's lines; what encryption adds is told between measurements of the same round."""

    def every(name: str, value: str) -> list[float]:
        return [float(one[value]) for one in samples[name]]

    def both(name: str, value: str) -> list[tuple[float, float]]:
        return list(zip(every(f"{name} encrypted", value), every(f"{name} in clear", value), strict=True))

    def faults(name: str) -> list[float]:
        return [statistics.median(one["fault_us"]) for one in samples[name]]

    pairs = list(zip(faults("fault encrypted"), faults("fault in clear"), strict=True))
    added = [one - other for one, other in both("downtime", "felt_ms")]
    lines = [
        shown("fault, link idle, encrypted", [one for one, _ in pairs], "us"),
        shown("  in clear (--insecure)", [other for _, other in pairs], "us"),
        at_most("  ratio", [one / other for one, other in pairs], "x", RATIO),
        at_most(f"encryption adds to the downtime felt, {DOWNTIME_MIB} MiB", added, "ms", DOWNTIME_MS),
        shown("bulk, process quiet, encrypted", [one / 2**20 for one, _ in both("bulk", "bytes_per_second")], "MiB/s"),
        shown("  in clear", [other / 2**20 for _, other in both("bulk", "bytes_per_second")], "MiB/s"),
        shown(
            "  processor time of a GiB, encrypted", [1e3 * one for one, _ in both("bulk", "processor_seconds")], "ms"
        ),
        shown("  in clear", [1e3 * other for _, other in both("bulk", "processor_seconds")], "ms"),
    ]
    rates = every("cipher", "bytes_per_second")
    if all(rates):
        # Each byte is enciphered on one side and deciphered on the other.
        own = [
            (one - other) * rate / (2 * GIB)
            for (one, other), rate in zip(both("bulk", "processor_seconds"), rates, strict=True)
        ]
        lines.append(at_most("  what encryption adds, to the cipher's own", own, "x", CIPHERS_OWN))
    return lines
