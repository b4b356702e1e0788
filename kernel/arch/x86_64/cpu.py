"""What the processor offers to programs: instructions, and the vector state with its layout in memory.

The source of all this is CPUID, not /proc/cpuinfo: programs used CPUID when they chose their code, and its names do
not change with the kernel. The list has the features that programs use directly. Hints about speed and what only a
kernel uses are left out (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from live_migration._lm import ffi, lib

_EAX, _EBX, _ECX, _EDX = range(4)
_LEAF_XSTATE = 0xD
_XSTATE_COMPONENTS = 63
_FIRST_COMPONENT = 2  # x87 and SSE have their fixed places

# (leaf, subleaf, register): names by bit.
_FEATURES: dict[tuple[int, int, int], dict[int, str]] = {
    (1, 0, _ECX): {
        0: "sse3", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cmpxchg16b", 19: "sse4_1", 20: "sse4_2",
        22: "movbe", 23: "popcnt", 25: "aes", 27: "xsave", 28: "avx", 29: "f16c", 30: "rdrand",
    },
    (1, 0, _EDX): {
        0: "fpu", 4: "tsc", 8: "cmpxchg8b", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2",
    },
    (7, 0, _EBX): {
        0: "fsgsbase", 3: "bmi1", 5: "avx2", 8: "bmi2", 11: "rtm", 16: "avx512f", 17: "avx512dq", 18: "rdseed",
        19: "adx", 21: "avx512ifma", 23: "clflushopt", 24: "clwb", 26: "avx512pf", 27: "avx512er", 28: "avx512cd",
        29: "sha", 30: "avx512bw", 31: "avx512vl",
    },
    (7, 0, _ECX): {
        1: "avx512vbmi", 4: "pku", 5: "waitpkg", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq",
        11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq", 22: "rdpid", 25: "cldemote", 27: "movdiri",
        28: "movdir64b",
    },
    (7, 0, _EDX): {
        2: "avx512_4vnniw", 3: "avx512_4fmaps", 8: "avx512_vp2intersect", 14: "serialize", 16: "tsxldtrk",
        22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8",
    },
    (7, 1, _EAX): {
        0: "sha512", 1: "sm3", 2: "sm4", 4: "avx_vnni", 5: "avx512_bf16", 7: "cmpccxadd", 21: "amx_fp16",
        23: "avx_ifma",
    },
    (7, 1, _EDX): {
        4: "avx_vnni_int8", 5: "avx_ne_convert", 8: "amx_complex", 10: "avx_vnni_int16", 14: "prefetchi",
        19: "avx10", 21: "apx",
    },
    (_LEAF_XSTATE, 1, _EAX): {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1"},
    (0x80000001, 0, _ECX): {
        0: "lahf", 5: "lzcnt", 6: "sse4a", 7: "misalignsse", 8: "prefetchw", 11: "xop", 15: "lwp", 16: "fma4",
        21: "tbm", 29: "mwaitx",
    },
    (0x80000001, 0, _EDX): {22: "mmxext", 27: "rdtscp", 30: "3dnowext", 31: "3dnow"},
    (0x80000008, 0, _EBX): {0: "clzero"},
}  # fmt: skip

_COMPONENTS = {
    0: "x87", 1: "SSE", 2: "AVX", 3: "MPX bounds", 4: "MPX configuration", 5: "AVX-512 masks",
    6: "AVX-512 upper halves", 7: "AVX-512 upper registers", 9: "protection keys",
    17: "AMX configuration", 18: "AMX tiles", 19: "APX",
}  # fmt: skip


class Component(msgspec.Struct, frozen=True, array_like=True):
    """One part of the vector state: its bit in XCR0, and where it stands in an xsave image of standard form,
    in bytes."""

    number: int
    offset: int
    length: int


class Processor(msgspec.Struct, frozen=True, kw_only=True):
    """The features by name; XCR0; the bytes of an xsave image with everything that XCR0 enables, and its
    layout."""

    features: list[str]
    xcr0: int
    xstate_size: int
    components: list[Component]


def read_processor() -> Processor:
    """What this host's processor offers."""
    features = [
        name
        for (leaf, subleaf, register), names in _FEATURES.items()
        for bit, name in names.items()
        if _cpuid(leaf, subleaf)[register] >> bit & 1
    ]
    xcr0 = int(lib.lm_xcr0())
    components = []
    for number in range(_FIRST_COMPONENT, _XSTATE_COMPONENTS):
        if xcr0 >> number & 1:
            length, offset, _, _ = _cpuid(_LEAF_XSTATE, number)
            components.append(Component(number, offset, length))
    size = _cpuid(_LEAF_XSTATE, 0)[_EBX]
    return Processor(features=sorted(features), xcr0=xcr0, xstate_size=size, components=components)


def describe() -> dict[str, Any]:
    """The same as plain values, to be sent."""
    plain: dict[str, Any] = msgspec.to_builtins(read_processor())
    return plain


def lacking(source: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What the source's processor has and this one lacks, each as it is named in a sentence.

    A vector state of another size or layout counts too: signal frames that stand on the stacks hold its
    image.
    """
    try:
        theirs, ours = msgspec.convert(dict(source), Processor), msgspec.convert(dict(here), Processor)
    except msgspec.ValidationError:
        return ["a description of the processor that can be compared"]
    found = [name for name in theirs.features if name not in ours.features]
    missing = theirs.xcr0 & ~ours.xcr0
    found += [f"the vector state of {_component_name(number)}" for number in range(64) if missing >> number & 1]
    places = {component.number: component for component in ours.components}
    moved = [c.number for c in theirs.components if c.number in places and places[c.number] != c]
    found += [f"the source's layout of the vector state of {_component_name(number)}" for number in moved]
    if not found and theirs.xstate_size != ours.xstate_size:
        found.append(f"a vector state of {theirs.xstate_size} bytes (it is {ours.xstate_size} here)")
    return found


def _component_name(number: int) -> str:
    return _COMPONENTS.get(number, f"component {number}")


def _cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    registers = ffi.new("uint32_t[4]")
    lib.lm_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = ffi.unpack(registers, 4)
    return eax, ebx, ecx, edx
