"""lm-bench as a whole: runs over every kind of link, failing peers, bad input, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from live_migration.experiments.errors import Status
from live_migration.experiments.links import parse_link
from live_migration.experiments.machines import descendants, wait_for
from live_migration.experiments.measured_links import measure_link, probe
from live_migration.experiments.network import network
from live_migration.experiments.results import Result, read
from tests.conftest import skip

SECONDS = 120
pytestmark = pytest.mark.experiment
QUICK = ("--memory", "8MiB", "--seconds", "0.6")


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        skip("network namespaces need root")


def bench(*words: str, status: int | None = 0) -> str:
    """Run lm-bench; what it said on standard error."""
    line = [sys.executable, "-m", "live_migration.experiments.main", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == status, done.stderr
    return " ".join(done.stderr.split())


def results(folder: Path) -> list[Result]:
    """What was measured."""
    return list(read(folder / "results.jsonl"))


@pytest.mark.program
@pytest.mark.alone
def test_strategies_over_a_relay_and_again(tmp_path: Path) -> None:
    words = ["run", *QUICK, "--strategy", "post-copy,stop-and-copy", "--link", "rtt=2ms,rate=500mbit"]
    words += ["--dirty-rate", "1MiB/s", "-o", str(tmp_path)]
    assert "2 of 2 runs measured now, 0 failed" in bench(*words)
    post, stop = results(tmp_path)
    for one in (post, stop):
        assert one.verified
        assert one.link.by in ("relay", "netem")
        assert 2 <= one.link.measured_rtt_ms < 20
        assert 0 < one.link.measured_rate < 70_000_000
        assert one.wire_bytes
        assert one.wire_bytes > 2**20, "half of each page does not shrink"
        assert one.pages
        assert one.pages > 2048
        assert one.downtime_ms
        assert one.speed
        assert one.speed.before > 0
        assert one.speed.timeline
        assert one.moments_ms["resumed"] == 0
        assert one.moments_ms["start"] < one.moments_ms["frozen"] <= 0 <= one.moments_ms["complete"]
        assert one.costs["serve"].cpu_seconds > 0
        assert one.costs["restore"].memory > 2**20
        assert one.operations.count
        assert one.reports["restore"]["outcome"] == "complete"
    assert post.faults.count
    assert post.pages_resent == 0
    assert stop.downtime_ms
    assert stop.total_ms
    assert stop.downtime_ms < stop.total_ms
    assert "0 of 2 runs measured now" in bench(*words), "what is done is not done again"
    assert len(results(tmp_path)) == 2


@pytest.mark.program
@pytest.mark.parametrize("workload", ["redis", "python", "node", "sqlite"])
def test_real_programs(workload: str, tmp_path: Path) -> None:
    keys = "zipf" if workload == "sqlite" else "uniform"
    bench("run", *QUICK, "--workload", workload, "--keys", keys, "--strategy", "post-copy", "-o", str(tmp_path))
    (one,) = results(tmp_path)
    assert one.verified
    assert one.speed
    assert one.speed.before > 0
    assert (one.client_downtime_ms is None) == (workload in ("python", "sqlite"))
    assert (one.downtime_ms is None) == (workload == "redis")


@pytest.mark.program
def test_a_peer_that_fails_is_quoted_and_the_sweep_goes_on(tmp_path: Path) -> None:
    peer = tmp_path / "criu"
    peer.write_text("#!/bin/sh\necho 'Error (criu/fake.c:1): no such luck' >&2\nexit 1\n")
    peer.chmod(0o755)
    words = ["run", *QUICK, "--strategy", "stop-and-copy", "--peer", f"criu={peer}", "-o", str(tmp_path)]
    said = bench(*words, status=Status.RUNS_FAILED)
    assert "criu page-server ended with 1: Error (criu/fake.c:1): no such luck" in said
    assert "2 of 2 runs measured now, 1 failed" in said
    assert [one.verified for one in results(tmp_path)] == [True, False]


@pytest.mark.program
@pytest.mark.alone
def test_the_floor(tmp_path: Path) -> None:
    bench("floor", "--link", "rate=1gbit", "-o", str(tmp_path))
    found = json.loads((tmp_path / "floor.jsonl").read_text())
    assert found["link"]["by"] == "tbf"
    assert found["fault_p99_us"] >= found["fault_p50_us"] > 5
    assert found["bulk_rate"] < 150_000_000
    assert found["downtime_ms"] > 0
    # On a quiet machine it is below 0.02; here others may run.
    assert found["samples"]["measuring"]["cost"] < 0.1


@pytest.mark.program
@pytest.mark.alone
def test_the_relay_is_fast_and_even(tmp_path: Path) -> None:
    """Bounds far from what it reaches, 4 Gbit/s and some 0.01 ms: others may use the machine meanwhile."""
    with network(parse_link("rtt=1ms")) as built:
        if built.link.by != "relay":
            skip("this kernel has netem, so no relay is needed")
        found = probe(built)
        assert min(found["rtt_us"]) >= 1000
        assert statistics.median(found["rtt_us"]) < 3000
        assert found["rate"] * 8 > 1e9
    with network(parse_link("rtt=1ms,rate=100mbit,loss=1%")) as built:
        lossy = measure_link(built)
        assert 0 < lossy.measured_rate < 12_500_000


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run", "--workload", "quake", "-o", "OUT"], Status.USAGE, "workload 'quake': there is none of that name"),
        (["run", "--strategy", "teleport", "-o", "OUT"], Status.USAGE, "choose from stop-and-copy, pre-copy"),
        (["run", "--link", "rtt=1", "-o", "OUT"], Status.USAGE, "link 'rtt=1': rtt=1 is not a number with"),
        (["run", "--memory", "900GiB", "-o", "OUT"], Status.SYSTEM, "ask for less"),
        (["run", "--runs", "0", "-o", "OUT"], Status.USAGE, "--runs is at least 1"),
        (["run", "-o", "/proc/x"], Status.NO_SPACE, "name another folder with -o"),
        (["floor", "--link", "nothing", "-o", "OUT"], Status.USAGE, "neither a preset"),
    ],
)
def test_bad_input_is_one_sentence(words: Sequence[str], status: int, said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert said in bench(*(str(out) if word == "OUT" else word for word in words), status=status)
    assert not out.exists()


def test_it_needs_root(tmp_path: Path) -> None:
    line = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "live_migration.experiments.main"]
    line += ["run", "-o", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    if "setpriv" in done.stderr or "ermission denied" in done.stderr or "No module" in done.stderr:
        skip("another user cannot use this environment")
    assert done.returncode == Status.NO_PERMISSION
    assert done.stderr == "lm-bench: network namespaces and migrations need root; run it as root\n"


@pytest.mark.program
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    words = ["run", "--link", "rtt=1ms", "--memory", "64MiB", "--strategy", "post-copy", "-o", str(tmp_path / "out")]
    with (tmp_path / "said").open("wb") as said:
        line = [sys.executable, "-m", "live_migration.experiments.main", *words]
        started = subprocess.Popen(line, stdout=said, stderr=said, env=environment)
    try:
        wait_for("the link", lambda: b"link rtt=1ms" in (tmp_path / "said").read_bytes() or None)
        wait_for("the toucher", lambda: len(descendants(started.pid)) > 1 or None)
        time.sleep(1.5)
        begun = descendants(started.pid)
        started.send_signal(number)
        assert started.wait(60) == 128 + number
    finally:
        started.kill()
        started.wait()
    assert [pid for pid in begun if Path(f"/proc/{pid}").exists()] == []
    assert sorted(name.name for name in tmp_path.iterdir()) == ["out", "said"]
    assert [name.name for name in Path("/run/netns").iterdir() if f"-{started.pid}-" in name.name] == []
    assert list(Path("/dev/shm").glob(f"lm-bench-run-{started.pid}-*")) == []
