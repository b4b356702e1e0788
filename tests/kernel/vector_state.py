"""What of an xsave image is defined: the registers, not how the processor keeps account of them.

A component in its initial state may be told with its bit of XSTATE_BV set or clear, and differently from one save to
the next, as it pleases the processor (Intel SDM vol. 1, 13.6 and 13.7: "XINUSE[i] may be either 0 or 1"). AMD's Zen was
seen to: the more often, the more threads and guests it switches between. The bytes of a component whose bit is clear
say nothing: its registers have their initial values."""

from __future__ import annotations

from live_migration.kernel.arch.arch import cpu

# The legacy region and the header (Intel SDM vol. 1, 13.4): x87, MXCSR and its mask, XMM.
CONTROL_WORD, MXCSR, MXCSR_MASK, X87_REGISTERS, XMM, XMM_END = 0, 24, 28, 32, 160, 416
XSTATE_BV, XSTATE_BV_END = 512, 520
X87, SSE, AVX = 0, 1, 2
INITIAL_CONTROL_WORD = (0x37F).to_bytes(2, "little")
INITIAL_MXCSR = (0x1F80).to_bytes(4, "little")


def vector_registers(xstate: bytes) -> bytes:
    """The image with the initial value in every component whose bit is clear, and without the bits.

    Two images are of the same registers if and only if this is the same. Everything else in them is compared too."""
    image = bytearray(xstate)
    used = int.from_bytes(image[XSTATE_BV:XSTATE_BV_END], "little")
    image[XSTATE_BV:XSTATE_BV_END] = bytes(XSTATE_BV_END - XSTATE_BV)
    if not used >> X87 & 1:
        image[CONTROL_WORD:MXCSR] = INITIAL_CONTROL_WORD.ljust(MXCSR, b"\0")
        image[X87_REGISTERS:XMM] = bytes(XMM - X87_REGISTERS)
    if not used >> SSE & 1:
        image[XMM:XMM_END] = bytes(XMM_END - XMM)
    # MXCSR belongs to both (13.5.3).
    if not (used >> SSE | used >> AVX) & 1:
        image[MXCSR:MXCSR_MASK] = INITIAL_MXCSR
    for component in cpu.read_processor().components:
        end = component.offset + component.length
        if not used >> component.number & 1 and end <= len(image):
            image[component.offset : end] = bytes(component.length)
    return bytes(image)
