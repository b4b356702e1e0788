"""lm-bench's parts that measure nothing: links, plans, histograms, speeds, records."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from live_migration.experiments import processors
from live_migration.experiments.errors import ExperimentError, Status
from live_migration.experiments.floors import sizes
from live_migration.experiments.histograms import bucket_of, from_counts, from_latencies, upper_bound
from live_migration.experiments.links import PRESETS, parse_link, queue_bytes
from live_migration.experiments.load_client import chooser
from live_migration.experiments.moves import STRATEGIES
from live_migration.experiments.numeric_job import MASK, A, C, Job, first_numbers, stepped_sum
from live_migration.experiments.plans import Plan, choose, done_already, parse_memory, parse_peers, parse_rates
from live_migration.experiments.recorder import Recorder, read_record
from live_migration.experiments.results import VERSION, Cell, Link, Machine, Result, append
from live_migration.experiments.run import add_parser, keep_line, make_folder, plan_of
from live_migration.experiments.speed import Moments, Timeline, lowest, recovery, speed_of
from live_migration.experiments.standard import PLANS, finished
from live_migration.experiments.trial import longest, reported_faults
from live_migration.experiments.workloads import Toucher, observe

MIB = 2**20


def test_links_are_presets_or_made_of_three_words() -> None:
    assert parse_link("lan-1gbit") is PRESETS["lan-1gbit"]
    link = parse_link("rtt=1ms,rate=1gbit,loss=0.1%")
    assert (link.asked_rtt_ms, link.asked_rate) == (1.0, 125_000_000)
    assert link.loss == pytest.approx(0.001)
    assert parse_link("rtt=250us").asked_rtt_ms == 0.25
    assert queue_bytes(link) == 625_000
    assert queue_bytes(Link(name="")) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("moon", "neither a preset"),
        ("rtt=1", "us, ms or s"),
        ("rate=fast", "bit, kbit, mbit or gbit"),
        ("rtt=20s", "out of range"),
        ("loss=100%", "out of range"),
        ("rate=1kbit", "out of range"),
        ("loss=1ms", "% or nothing"),
    ],
)
def test_a_link_that_cannot_be_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ExperimentError, match=said) as caught:
        parse_link(text)
    assert caught.value.status == Status.USAGE
    assert repr(text) in str(caught.value)


def test_words_of_a_plan() -> None:
    assert parse_memory("64MiB,2G,64MiB") == (64 * MIB, 2048 * MIB)
    assert parse_rates("0,10MiB/s,own") == (0, 10 * MIB, None)
    assert choose("all", "strategy", ("a", "b")) == ("a", "b")
    for call in (
        lambda: parse_memory("much"),
        lambda: parse_memory("1K"),
        lambda: parse_rates("10 a day"),
        lambda: choose("c", "workload", ("a", "b")),
        lambda: parse_peers(["dmtcp=/bin/true"]),
        lambda: parse_peers(["criu=/no/such/file"]),
    ):
        with pytest.raises(ExperimentError) as caught:
            call()
        assert caught.value.status == Status.USAGE


def test_a_list_may_be_given_in_several_options() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    words = "run -o out --workload redis --workload node,redis --memory 1MiB --memory 2MiB --keys zipf"
    plan = plan_of(parser.parse_args(words.split()))
    assert plan.workloads == ("redis", "node")
    assert plan.memory == (MIB, 2 * MIB)
    assert plan.strategies == STRATEGIES
    assert plan.dirty_rates == (None,)
    assert {cell.variant for cell in plan.cells(plan.links[0])} == {"keys=zipf"}


def test_few_entries_are_asked_for_most_of_the_time() -> None:
    chosen = random.Random(1)
    for keys, least, most in (("uniform", 0.0, 0.05), ("zipf", 0.4, 0.6)):
        draw = chooser(chosen, 1000, keys)
        counts = Counter(draw() for _ in range(10000))
        assert len(counts) > 500
        assert max(counts) < 1000
        hottest = sum(count for _, count in counts.most_common(20))
        assert least < hottest / 10000 < most
    assert Counter(counts).most_common(1)[0][0] != 0, "ranks are drawn, and no order of memory"


def test_strategies_take_turns_and_keys_are_unique() -> None:
    plan = Plan(
        links=(PRESETS["loopback"],), memory=(MIB, 2 * MIB), runs=2, peers={"criu": "/x"}, toucher=Toucher(threads=2)
    )
    cells = list(plan.cells(plan.links[0]))
    assert len(cells) == 2 * 2 * (4 + 2)
    assert [cell.strategy for cell in cells[:4]] == ["stop-and-copy", "pre-copy", "post-copy", "hybrid"]
    assert [cell.peer for cell in cells[:6]] == ["", "", "", "", "criu", "criu"]
    assert [cell.run for cell in cells] == [0] * 12 + [1] * 12
    assert len({cell.key() for cell in cells}) == len(cells)
    assert all("threads=2" in cell.key() for cell in cells)


def result(run: int, verified: bool) -> Result:
    """Of a run that never was."""
    machine = Machine(kernel="", processor="", cores=1, memory=0, python="")
    cell = Cell(workload="toucher", strategy="post-copy", link="loopback", memory=MIB, run=run)
    return Result(cell=cell, link=Link(name="loopback"), machine=machine, started=0, verified=verified)


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    assert done_already(tmp_path) == set()
    path = tmp_path / "results.jsonl"
    append(path, result(0, True))
    append(path, result(1, False))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"version":1,"cel')
    assert done_already(tmp_path) == {result(0, True).cell.key()}, "a failed run is done again"
    assert path.read_bytes() == whole, "a torn line is removed"


def test_a_finished_standard_set_is_measured_anew_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    cells = [cell for plan in PLANS for link in plan.links for cell in plan.cells(link)]
    assert not finished(tmp_path)
    for cell in cells[1:]:
        append(tmp_path / "results.jsonl", msgspec.structs.replace(result(0, True), cell=cell))
    assert not finished(tmp_path)
    append(tmp_path / "results.jsonl", msgspec.structs.replace(result(0, True), cell=cells[0]))
    assert finished(tmp_path)


def test_results_of_another_version_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"version": VERSION + 1}) + "\n")
    with pytest.raises(ExperimentError, match="name another folder") as caught:
        done_already(tmp_path)
    assert caught.value.status == Status.BAD_DATA
    path.write_text("no results\n")
    with pytest.raises(ExperimentError, match="not a file of results"):
        done_already(tmp_path)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="goes on from here") as caught:
        keep_line(Path("/dev/full"), result(0, True))
    assert caught.value.status == Status.NO_SPACE
    with pytest.raises(ExperimentError, match="name another folder with -o"):
        make_folder(Path("/proc/nowhere"))


def test_buckets_are_as_fine_as_they_say() -> None:
    chosen = random.Random(1)
    for _ in range(2000):
        value = int(10 ** chosen.uniform(0, 10))
        bound = upper_bound(bucket_of(value))
        assert value <= bound <= value * 1.04
        assert bucket_of(bound) == bucket_of(value)
        assert bucket_of(bound + 1) == bucket_of(value) + 1


def test_a_histogram_knows_its_quantiles() -> None:
    found = from_latencies([1000] * 90 + [50_000] * 9 + [900_000])
    assert found.count == 100
    assert found.p50_us == pytest.approx(1, rel=0.04)
    assert found.p99_us == pytest.approx(50, rel=0.04)
    assert found.max_us == pytest.approx(900, rel=0.04)
    assert from_counts({}).count == 0
    told = reported_faults({"count": 10, "p50_us": 1.0, "p90_us": 2.0, "p99_us": 3.0, "max_us": 4.0})
    assert (told.count, told.p99_us, sum(count for _, count in told.buckets)) == (10, 3.0, 10)
    odd = reported_faults({"count": 5, "p50_us": 1.0, "p90_us": 2.0, "p99_us": 3.0, "max_us": 4.0})
    assert odd.buckets[0] == (1.0, 3), "half of all took at most as long as the median"


def moved(dip: int, steps: int) -> tuple[Timeline, Moments]:
    """100 operations per step of 10 ms; from the resume at 3 s for some steps fewer."""
    counts = [100] * 300 + [dip] * steps + [100] * 200
    return Timeline(1000, 0.01, counts), Moments(1001, 1002, 1002.5, 1002.99, 1003, 1003.2)


def test_recovery_is_when_the_old_speed_is_held() -> None:
    timeline, moments = moved(10, 40)
    speed = speed_of(timeline, moments)
    assert speed.before == pytest.approx(10_000)
    assert speed.recovered_ms == pytest.approx(400, abs=11)
    assert speed.lost == pytest.approx(40 * 90, rel=0.05)
    assert speed.lowest == pytest.approx(1000)
    assert speed.during_rounds is None
    assert recovery(timeline, 20_000, 1003) is None
    never, moments = moved(10, 0)
    assert lowest(never, 1003, 1003.5) == pytest.approx(10_000)
    assert speed_of(never, moments).recovered_ms == 0


def test_a_timeline_is_kept_relative_to_the_resume() -> None:
    timeline, moments = moved(10, 40)
    speed = speed_of(timeline, moments)
    assert speed.timeline[0][0] < -1000
    assert sum(count for _, count in speed.timeline) <= sum(timeline.counts)
    assert dict(speed.timeline)[min((at for at, _ in speed.timeline), key=abs)] in (10, 100)


def test_the_longest_wait_is_looked_for_around_the_move() -> None:
    waits = [(10.0, 0.5), (20.0, 0.008), (20.02, 0.001), (30.0, 0.7)]
    assert longest(waits, 19.9, 20.1) == pytest.approx(8)
    assert longest(waits, 25, 26) is None
    assert longest(waits, 29.5, 29.6) == pytest.approx(700), "a wait around all of it"


def test_a_record_is_read_while_it_is_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record", capacity=2)
    recorder.add(5_000_000_000, 7)
    assert read_record(tmp_path / "record") == [(5_000_000_000, 7)]
    recorder.add(5_020_000_000, 2_000_000)
    recorder.add(6, 8)
    assert len(read_record(tmp_path / "record")) == 2, "what does not fit is left out"
    seen = observe(read_record(tmp_path / "record"), 5.01, 0.001, error=None, at_client=True)
    assert seen.client_waits == [(5.02, 0.002)]
    assert seen.waits is None
    assert list(seen.timeline.counts) == [1, 0]
    assert seen.operations.count == 1


def test_the_numeric_job_knows_what_its_blocks_must_be() -> None:
    numbers = list(first_numbers(3))
    first = sum(numbers)
    for steps in range(4):
        assert sum(numbers) & MASK == stepped_sum(first, steps)
        numbers = [(A * number + C) & MASK for number in numbers]
    job = Job(4 * 4096, -1)
    for _ in range(20):
        job.operate(time.time_ns())
    assert sum(job.steps) == 20
    assert job.wrong() == 0
    job.blocks[2][7] ^= 1
    assert job.wrong() == 1


def test_the_floor_fits_its_link() -> None:
    assert sizes(Link(name="", measured_rate=10**9, measured_rtt_ms=0.03)) == (65536, 1500)
    pages, faults = sizes(Link(name="", measured_rate=10**6, measured_rtt_ms=20))
    assert pages == 6144
    assert 10 <= faults <= 300


def test_processors_are_kept_awake_where_the_kernel_offers_it(tmp_path: Path) -> None:
    asked = tmp_path / "cpu_dma_latency"
    asked.touch()
    with processors.awake(asked):
        assert asked.read_bytes() == bytes(4)
        assert processors.wake_up_us(asked) == 0
    with processors.awake(tmp_path / "nowhere"):
        assert processors.wake_up_us(tmp_path / "nowhere") is None
