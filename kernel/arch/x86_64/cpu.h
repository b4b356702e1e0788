/* What the processor tells programs of itself (Intel SDM vol. 2A, CPUID and XGETBV; AMD APM vol. 3, appendix
 * E). */
#ifndef LM_KERNEL_ARCH_X86_64_CPU_H
#define LM_KERNEL_ARCH_X86_64_CPU_H

#include <stdint.h>

/* cffi: begin */
/* eax, ebx, ecx, edx of a leaf; all 0 for one that the processor does not have. */
void lm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers);

/* XCR0: which components of the vector state the kernel has enabled. 0 without xsave. */
uint64_t lm_xcr0(void);
/* cffi: end */

#endif
