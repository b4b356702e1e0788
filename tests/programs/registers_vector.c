/*
 * feature: vector registers (SSE, AVX and AVX-512 where the processor has them), x87 and MXCSR
 * limits: both processors need the same xsave layout (--cpu trust overrides)
 */
#include "check.h"
#include <immintrin.h>

static volatile int go;

static void expect(const char *name, const void *found, const void *wanted, size_t length) {
    CHECK(memcmp(found, wanted, length) == 0, "%s changed", name);
}

static void *hold_sse(void *argument) {
    uint8_t in[16], out[16];
    uint32_t mxcsr = 0x5f80, mxcsr_after;
    uint16_t control = 0x0c7f, control_after;
    double seven = 7.25, top = 0;
    memset(in, 0xa5, sizeof(in));
    __asm__ volatile(
        "ldmxcsr %[mxcsr]\n\t"
        "fninit\n\t fldcw %[control]\n\t fldl %[seven]\n\t"
        "movdqu %[in], %%xmm15\n\t"
        "1: cmpl $0, %[go]\n\t pause\n\t je 1b\n\t"
        "movdqu %%xmm15, %[out]\n\t"
        "fstpl %[top]\n\t fnstcw %[control_after]\n\t fninit\n\t"
        "stmxcsr %[mxcsr_after]\n\t"
        :
        [out] "=m"(out), [top] "=m"(top), [control_after] "=m"(control_after), [mxcsr_after] "=m"(mxcsr_after)
        : [in] "m"(in), [go] "m"(go), [mxcsr] "m"(mxcsr), [control] "m"(control), [seven] "m"(seven)
        : "xmm15", "cc", "memory");
    expect("xmm15", out, in, sizeof(in));
    CHECK(top == seven, "the x87 stack holds %f", top);
    CHECK(control_after == control, "the x87 control word is %#x", control_after);
    CHECK((mxcsr_after & ~0x3fu) == mxcsr, "MXCSR is %#x", mxcsr_after);
    return argument;
}

__attribute__((target("avx"))) static void *hold_avx(void *argument) {
    uint8_t in[2][32], out[2][32];
    memset(in[0], 0x3c, 32);
    memset(in[1], 0xc3, 32);
    __asm__ volatile("vmovdqu %[first], %%ymm0\n\t vmovdqu %[second], %%ymm14\n\t"
                     "1: cmpl $0, %[go]\n\t pause\n\t je 1b\n\t"
                     "vmovdqu %%ymm0, %[first_out]\n\t vmovdqu %%ymm14, %[second_out]\n\t vzeroupper\n\t"
                     : [first_out] "=m"(out[0]), [second_out] "=m"(out[1])
                     : [first] "m"(in[0]), [second] "m"(in[1]), [go] "m"(go)
                     : "xmm0", "xmm14", "cc", "memory");
    expect("ymm0", out[0], in[0], 32);
    expect("ymm14", out[1], in[1], 32);
    return argument;
}

__attribute__((target("avx512f"))) static void *hold_avx512(void *argument) {
    uint8_t in[64], out[64];
    uint16_t mask = 0;
    memset(in, 0x77, 64);
    __asm__ volatile(
        "vmovdqu64 %[in], %%zmm29\n\t mov $0x5aa5, %%eax\n\t kmovw %%eax, %%k5\n\t"
        "1: cmpl $0, %[go]\n\t pause\n\t je 1b\n\t"
        "vmovdqu64 %%zmm29, %[out]\n\t kmovw %%k5, %%eax\n\t mov %%ax, %[mask]\n\t vzeroupper\n\t"
        : [out] "=m"(out), [mask] "=m"(mask)
        : [in] "m"(in), [go] "m"(go)
        : "rax", "cc", "memory");
    expect("zmm29", out, in, 64);
    CHECK(mask == 0x5aa5, "k5 is %#x", mask);
    return argument;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    int count = 0;
    check_start(argc, argv);
    __builtin_cpu_init();
    threads[count++] = check_thread(hold_sse, NULL);
    if (__builtin_cpu_supports("avx"))
        threads[count++] = check_thread(hold_avx, NULL);
    if (__builtin_cpu_supports("avx512f"))
        threads[count++] = check_thread(hold_avx512, NULL);
    check_sleep(20);
    check_move();
    go = 1;
    for (int i = 0; i < count; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
