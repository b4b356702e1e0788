"""What a processor and a kernel offer, and the sentences where they do not."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from live_migration.kernel import probe
from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.errors import ProcessGone
from tests.conftest import skip

ROOT = Path(__file__).resolve().parents[2]


def test_the_processor_is_described_by_what_it_has() -> None:
    here = cpu.describe()
    known = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    assert {"sse2", "cmov", "fxsr"} <= set(here["features"])
    assert ("avx2" in here["features"]) == ("avx2" in known)
    assert ("pku" in here["features"]) == ("ospke" in known)
    assert here["xcr0"] & 3 == 3
    assert here["xstate_size"] >= 576
    for _, offset, length in here["components"]:
        assert 576 <= offset < offset + length <= here["xstate_size"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(here)) == here


def test_a_processor_lacks_nothing_of_itself_and_of_a_lesser_one() -> None:
    here = cpu.describe()
    assert cpu.lacking(here, here) == []
    lesser = copy.deepcopy(here)
    lesser["features"].remove("sse2")
    assert cpu.lacking(lesser, here) == []
    assert cpu.lacking(here, lesser) == ["sse2"]


def test_another_vector_state_is_a_lack() -> None:
    here = {"features": ["avx"], "xcr0": 0b111, "xstate_size": 832, "components": [[2, 576, 256]]}
    bare = {"features": ["avx"], "xcr0": 0b11, "xstate_size": 576, "components": []}
    moved = {**here, "components": [[2, 640, 256]]}
    larger = {**here, "xcr0": 0x207, "xstate_size": 2696, "components": [[2, 576, 256], [9, 2688, 8]]}
    assert cpu.lacking(here, bare) == ["the vector state of AVX"]
    assert cpu.lacking(here, moved) == ["the source's layout of the vector state of AVX"]
    assert cpu.lacking(here, larger) == ["a vector state of 832 bytes (it is 2696 here)"]
    assert cpu.lacking({**here, "xcr0": 1 << 40 | 0b111}, here) == ["the vector state of component 40"]


@pytest.mark.parametrize(
    "broken", [{}, {"features": 3}, {"features": [], "xcr0": "x", "xstate_size": 0, "components": []}]
)
def test_a_broken_description_is_no_reason_to_fall_over(broken: dict[str, object]) -> None:
    assert cpu.lacking(broken, cpu.describe()) == ["a description of the processor that can be compared"]


def need_root() -> None:
    if os.geteuid() != 0:
        skip("needs root, to have privileges and to drop them")


def test_root_lacks_nothing() -> None:
    need_root()
    assert probe.destination_lacks(keep_ids=True, namespace=True) == []
    assert probe.source_lacks(os.getpid()) == []


def test_a_process_that_has_gone_cannot_be_probed() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(ProcessGone):
        probe.source_lacks(child.pid)


def test_without_privileges_every_lack_has_its_remedy() -> None:
    need_root()
    code = """
import dataclasses, json, os
from live_migration.kernel import probe
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
lacks = probe.destination_lacks(keep_ids=True, namespace=True, clocks=True) + probe.source_lacks(1)
print(json.dumps([dataclasses.asdict(lack) for lack in lacks]))
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True).stdout
    lacks = {lack["object"]: lack for lack in json.loads(output)}
    assert set(lacks) == {"userfaultfd", "process ids", "PID namespaces", "time namespaces", "process 1"}
    assert "CAP_SYS_PTRACE" in lacks["userfaultfd"]["remedy"]
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() == "0\n":
        assert "vm.unprivileged_userfaultfd" in lacks["userfaultfd"]["remedy"]
        assert "/dev/userfaultfd" in lacks["userfaultfd"]["remedy"]
    assert lacks["process ids"] == {
        "object": "process ids",
        "cause": "choosing them is not allowed (Operation not permitted)",
        "remedy": "run with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
    }
    assert lacks["process 1"]["cause"] == "may not be traced (Permission denied)"


def refuse_with(error: int) -> probe.Lack | None:
    return probe._lack(lambda: -error, "a thing", "doing it", "CAP_X", "Linux 9")


def test_the_cause_decides_the_remedy() -> None:
    assert refuse_with(0) is None
    assert refuse_with(38) == probe.Lack(
        "a thing", "this kernel has no way of doing it (Function not implemented)", "boot Linux 9"
    )
    assert refuse_with(28) == probe.Lack(
        "a thing", "doing it failed (No space left on device)", "look at the limits of this host and its user"
    )
