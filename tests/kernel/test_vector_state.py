"""The comparison of vector states sees every register and nothing else."""

from __future__ import annotations

import os

import pytest

from live_migration.kernel.arch.arch import cpu
from live_migration.kernel.tracing import tracee
from tests.kernel.husks import stopped_husk
from tests.kernel.vector_state import CONTROL_WORD, MXCSR, XMM, XSTATE_BV, vector_registers

COMPONENTS = cpu.read_processor().components
EXTENDED = [pytest.param(one, id=str(one.number)) for one in COMPONENTS]
ALL = 1 | 2 | sum(1 << one.number for one in COMPONENTS)
INITIAL = bytearray(cpu.read_processor().xstate_size)
INITIAL[CONTROL_WORD : CONTROL_WORD + 2] = b"\x7f\x03"
INITIAL[MXCSR : MXCSR + 4] = b"\x80\x1f\0\0"


def image(used: int, changes: dict[int, int] | None = None) -> bytes:
    """An image of the initial registers with these bits of XSTATE_BV and these bytes changed."""
    made = bytearray(INITIAL)
    made[XSTATE_BV : XSTATE_BV + 8] = used.to_bytes(8, "little")
    for place, value in (changes or {}).items():
        made[place] ^= value
    return bytes(made)


@pytest.mark.parametrize("used", [0, *(1 << number for number in (0, 1)), *(1 << one.number for one in COMPONENTS)])
def test_an_initial_component_is_the_same_with_its_bit_set_or_clear(used: int) -> None:
    assert vector_registers(image(used)) == vector_registers(image(ALL)) == vector_registers(image(ALL & ~used))


def test_every_byte_of_a_register_counts() -> None:
    """With all bits set, each byte of the image but the bits themselves."""
    known = vector_registers(image(ALL))
    for place in range(len(INITIAL)):
        if not XSTATE_BV <= place < XSTATE_BV + 8:
            assert vector_registers(image(ALL, {place: 1})) != known, place


@pytest.mark.parametrize("component", EXTENDED)
def test_a_component_whose_bit_is_clear_has_its_initial_value(component: cpu.Component) -> None:
    last = component.offset + component.length - 1
    kept = image(ALL, {component.offset: 1, last: 1})
    lost = image(ALL & ~(1 << component.number), {component.offset: 1, last: 1})
    assert vector_registers(lost) == vector_registers(image(ALL))
    assert vector_registers(kept) != vector_registers(lost)


def test_registers_without_a_bit_of_their_own() -> None:
    """x87 and SSE have no place that CPUID tells; MXCSR counts with either of two bits."""
    known = vector_registers(image(ALL))
    changed = {CONTROL_WORD: 1, XMM: 1, MXCSR: 1}
    assert vector_registers(image(ALL & ~0b111, changed)) == known
    assert vector_registers(image(ALL & ~0b111 | 0b010, {MXCSR: 1})) != known
    assert vector_registers(image(ALL & ~0b111 | 0b100, {MXCSR: 1})) != known
    assert vector_registers(image(ALL & ~0b001, {XMM: 1})) != known
    assert vector_registers(image(ALL & ~0b010, {CONTROL_WORD: 1})) != known


def test_what_the_kernel_tells_of_a_changed_register() -> None:
    """A register changed in a real thread is found; bits set for initial components are not a change."""
    with stopped_husk() as pid:
        before = tracee.get_xstate(pid)
        changed = bytearray(before)
        changed[XMM] ^= 1
        changed[XSTATE_BV] |= 2
        tracee.set_xstate(pid, bytes(changed))
        assert vector_registers(tracee.get_xstate(pid)) != vector_registers(before)
        marked = bytearray(before)
        marked[XSTATE_BV] |= 0b111 if COMPONENTS else 0b11
        tracee.set_xstate(pid, bytes(marked))
        again = tracee.get_xstate(pid)
        assert again != before, os.uname().release
        assert vector_registers(again) == vector_registers(before)
