"""What programs are told beside the reader: --status-fd, --metrics, and the service manager."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from live_migration.cli.metrics import MetricsFile
from live_migration.cli.rendering import make_events
from live_migration.cli.watchers import StatusLines, Watcher, notifications
from live_migration.experiments.machines import wait_for
from live_migration.wire.blockers import Blocker
from live_migration.wire.errors import Refused
from live_migration.wire.exit_codes import ExitCode
from live_migration.wire.report import Faults
from tests.support import laws
from tests.support.reports import report

LABEL = r'\w+="([^"\\\n]|\\[\\"n])*"'
LINE = re.compile(rf"# (HELP|TYPE) live_migration_\w+ .+|live_migration_\w+\{{{LABEL}(,{LABEL})*\}} [-+.e0-9]+")


def parsed(path: Path) -> dict[str, Metric]:
    """The families of a file, which is as the format has it."""
    text = path.read_text()
    assert text.endswith("\n")
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    found = list(text_string_to_metric_families(text))
    samples = Counter((one.name, *sorted(one.labels.items())) for family in found for one in family.samples)
    assert {*samples.values()} == {1}
    assert {family.name: family for family in found}.keys() == {*(family.name for family in found)}
    return {family.name.removeprefix("live_migration_"): family for family in found}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The figure with these labels, among others."""
    found = [one.value for one in families[name].samples if labels.items() <= one.labels.items()]
    assert len(found) == 1, families[name]
    return float(found[0])


def test_a_line_a_stage_beside_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with make_events("lm-serve", json=False, watchers=[StatusLines(write_end)]) as events:
        events.emit("resumed", 12, downtime_ms=4.5, sure=True)
        events.progress(1, 2, 3)
        events.emit("stalled", 12, cause="gone\nlost\x1b[2J")
        events.checked(12, [Blocker("a", "b", "c")])
    with make_events("lm-serve", json=False, watchers=[StatusLines(write_end)]) as events:
        events.failed(Refused([Blocker("a", "b", "c")]), 12)
    with make_events("lm-serve", json=False, watchers=[StatusLines(write_end)]) as events:
        events.note("interrupted", 0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as told:
        lines = [re.sub(r"time=\d+\.\d{3}\b", "time=T", line.rstrip("\n")) for line in told]
    assert lines[0] == "resumed pid=12 time=T downtime_ms=4.5"
    assert lines[1].startswith("stalled pid=12 time=T text=gone")
    assert "\x1b" not in lines[1]
    assert lines[2] == "checked pid=12 time=T blockers=1"
    assert lines[3].startswith(f"failed pid=12 time=T code={int(ExitCode.REFUSED)} blockers=1 text=")
    assert lines[4:] == ["stopped"]
    assert "process 12 runs at the destination" in capsys.readouterr().err


def test_figures(tmp_path: Path) -> None:
    """A name that has to be quoted; two sides; an outcome; nothing while the process stands still."""
    path = tmp_path / 'a "b" \\.prom'
    faults = Faults(count=2, measured=3, sum_us=6e6, at_most=[(16.384, 1), (32.768, 2)])
    with make_events("lm-migrate", json=False, watchers=[MetricsFile("lm-migrate", str(path))]) as events:
        events.emit("staged", 12)
        before = path.read_bytes()
        events.emit("frozen", 12)
        assert path.read_bytes() == before
        events.emit("resumed", 13)
        events.progress(10, 30, 3)
        events.emit("stalled", 13, cause="gone")
        assert value(parsed(path), "waiting", **{"for": "connection"}) == 1
        events.emit("reconnected", 13)
        found = parsed(path)
        assert (value(found, "stage", stage="resumed"), value(found, "stage", stage="stalled")) == (1, 0)
        assert (value(found, "waiting", **{"for": "memory"}), value(found, "stalls")) == (1, 1)
        assert (value(found, "pages_arrived"), value(found, "pages_missing"), value(found, "faults")) == (10, 20, 3)
        events.measured(msgspec.structs.replace(report(), side="source"))
        events.emit("complete", 13)
        events.result(msgspec.structs.replace(report(), faults=faults))
    found = parsed(path)
    assert value(found, "info", move='a "b" \\', command="lm-migrate", pid="13", strategy="post-copy") == 1
    assert value(found, "stage", stage="complete") == 1
    assert value(found, "outcome", side="destination", outcome="complete") == 1
    assert value(found, "downtime_seconds", side="destination") == 0.00412
    assert value(found, "bytes", side="source", kind="memory") == 1 << 30
    assert 0 <= value(found, "brownout_seconds") < 600
    of_destination = [one for one in found["fault_seconds"].samples if one.labels["side"] == "destination"]
    assert [(one.name.rpartition("_")[2], one.labels.get("le"), one.value) for one in of_destination] == [
        ("bucket", "1.6384e-05", 1), ("bucket", "3.2768e-05", 2), ("bucket", "+Inf", 3), ("sum", None, 6),
        ("count", None, 3),
    ]  # fmt: skip
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_watcher_that_cannot_be_told_ends_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with make_events("lm-serve", json=False, watchers=[MetricsFile("lm-serve", str(folder / "x.prom"))]) as events:
        events.emit("staged", 12)
        (folder / "x.prom").unlink()
        folder.rmdir()
        events.emit("complete", 12)
        events.emit("ended", 12)
    assert capsys.readouterr().err.count("nothing more is told there") == 1


def test_a_service_manager_that_is_deaf_or_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(address: str) -> list[Watcher]:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        return notifications("lm-serve")

    assert told("vsock:2:1") == []
    assert "NOTIFY_SOCKET" not in os.environ
    with make_events("lm-serve", json=False, watchers=told(str(tmp_path / "none"))) as events:
        events.emit("staged", 12)
    name = f"@lm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}")
        with make_events("lm-serve", json=False, watchers=told(name)) as events:
            for _ in range(2000):
                events.emit("frozen", 12, sentence="")
        assert manager.recv(4096) == b"STATUS=the process is frozen"


def test_a_move_is_watched(tmp_path: Path, orphans: None) -> None:
    """Both commands, by all that may watch them."""
    if os.geteuid() != 0:
        pytest.skip("moving a process needs root")
    (tmp_path / "program").mkdir()
    subject = laws.start_subject(laws.build(tmp_path / "program"), tmp_path / "subject")
    subject.await_progress()
    ticket = tmp_path / "ticket"
    with contextlib.ExitStack() as closed:
        serving = Watched("serve", tmp_path, str(subject.pid), f"--ticket-file={ticket}")
        closed.callback(serving.end)
        wait_for("the ticket", lambda: ticket.exists() or None, 100)
        # It is asked to say so, and waits for its destination.
        wait_for("its being alive", lambda: "WATCHDOG=1" in serving.told or None, 100)
        assert value(parsed(serving.metrics), "waiting", **{"for": "peer"}) == 1
        restoring = Watched("restore", tmp_path, "--detach", f"@{ticket}")
        closed.callback(restoring.end)
        stages = {one.name: one.stages() for one in (restoring, serving)}
        assert serving.process.wait(100) == restoring.process.wait(100) == 0
        pids = {re.search(r"^resumed pid=(\d+) ", line) for line in restoring.lines}
        (pid,) = [int(found[1]) for found in pids if found]
        subject.await_progress()
        os.kill(pid, signal.SIGKILL)
    assert stages["restore"] == ["staged", "frozen", "resumed", "complete"]
    assert stages["serve"] == ["listening", *stages["restore"]]
    for one, side in ((serving, "source"), (restoring, "destination")):
        found = parsed(one.metrics)
        assert value(found, "stage", stage="complete") == 1
        assert value(found, "outcome", side=side, outcome="complete") == 1
        assert value(found, "bytes", side=side, kind="memory") > 0
        assert value(found, "phase_seconds", side=side, phase="staging") > 0
        buckets = [sample.value for sample in found["fault_seconds"].samples if sample.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert len(buckets) > 20
        notes = one.told
        said = (tmp_path / f"{one.name}.err").read_text()
        assert {"READY=1", "STATUS=every page is at the destination"} < {*notes}, (notes, said)
        assert [note for note in notes if note != "WATCHDOG=1"][-1] == "STOPPING=1", (notes, said)


class Watched:
    """A command, with all that may watch it."""

    def __init__(self, name: str, folder: Path, *words: str) -> None:
        self.name, self.metrics = name, folder / f"{name}.prom"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / f"{name}.notify"))
        self.told: list[str] = []
        self.hearing = threading.Thread(target=self.hear)
        self.hearing.start()
        self.lines: list[str] = []
        self.status, write_end = os.pipe()
        line = [sys.executable, "-m", f"live_migration.cli.{name}", f"--status-fd={write_end}"]
        environment = laws.environment() | {
            "NOTIFY_SOCKET": str(folder / f"{name}.notify"), "WATCHDOG_USEC": "3000000",
        }  # fmt: skip
        null = subprocess.DEVNULL
        with (folder / f"{name}.err").open("wb") as said:
            self.process = subprocess.Popen(
                [*line, f"--metrics={self.metrics}", *words], cwd=laws.ROOT, env=environment, pass_fds=[write_end],
                stdin=null, stdout=null, stderr=said,
            )  # fmt: skip
        os.close(write_end)

    def hear(self) -> None:
        """What the service manager is told, until an empty message."""
        while heard := self.manager.recv(4096):
            self.told += heard.decode().splitlines()

    def stages(self) -> list[str]:
        """The stages, until nobody can tell of any more."""
        with open(self.status, closefd=False) as status:
            self.lines = status.read().splitlines()
        return [line.partition(" ")[0] for line in self.lines]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", self.manager.getsockname())
        self.hearing.join()
        self.manager.close()
        os.close(self.status)
