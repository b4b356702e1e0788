#include "kernel/arch/x86_64/cpu.h"

#include <cpuid.h>

enum { LEAF_FEATURES = 1, OSXSAVE = 1 << 27 };

void lm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers) {
    registers[0] = registers[1] = registers[2] = registers[3] = 0;
    __get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}

uint64_t lm_xcr0(void) {
    uint32_t registers[4], low = 0, high = 0;

    lm_cpuid(LEAF_FEATURES, 0, registers);
    if ((registers[2] & OSXSAVE) == 0)
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
