/*
 * feature: the general registers and flags of a thread that computes
 */
#include "check.h"

static volatile int go;

/* Loads every register with a value of its own, waits for `go` without a system call, and counts what
 * changed. */
static uint64_t hold_registers(void) {
    uint64_t wrong;
    __asm__ volatile("push %%rbp\n\t"
                     "mov $0x1111111111111111, %%rax\n\t"
                     "mov $0x2222222222222222, %%rbx\n\t"
                     "mov $0x3333333333333333, %%rcx\n\t"
                     "mov $0x4444444444444444, %%rdx\n\t"
                     "mov $0x5555555555555555, %%rsi\n\t"
                     "mov $0x6666666666666666, %%rdi\n\t"
                     "mov $0x7777777777777777, %%rbp\n\t"
                     "mov $0x8888888888888888, %%r8\n\t"
                     "mov $0x9999999999999999, %%r9\n\t"
                     "mov $0xaaaaaaaaaaaaaaaa, %%r10\n\t"
                     "mov $0xbbbbbbbbbbbbbbbb, %%r11\n\t"
                     "mov $0xcccccccccccccccc, %%r12\n\t"
                     "mov $0xdddddddddddddddd, %%r13\n\t"
                     "mov $0xeeeeeeeeeeeeeeee, %%r14\n\t"
                     "mov $0x0f0f0f0f0f0f0f0f, %%r15\n\t"
                     "std\n\t" /* the direction flag, which a comparison leaves alone */
                     "1: cmpl $0, %[go]\n\t"
                     "pause\n\t"
                     "je 1b\n\t"
                     "push %%r15\n\t"
                     "pushf\n\t"
                     "push %%rax\n\t"
                     "mov $0x1111111111111111, %%r15\n\t"
                     "xor %%r15, %%rax\n\t"
                     "mov $0x2222222222222222, %%r15\n\t"
                     "xor %%r15, %%rbx\n\t or %%rbx, %%rax\n\t"
                     "mov $0x3333333333333333, %%r15\n\t"
                     "xor %%r15, %%rcx\n\t or %%rcx, %%rax\n\t"
                     "mov $0x4444444444444444, %%r15\n\t"
                     "xor %%r15, %%rdx\n\t or %%rdx, %%rax\n\t"
                     "mov $0x5555555555555555, %%r15\n\t"
                     "xor %%r15, %%rsi\n\t or %%rsi, %%rax\n\t"
                     "mov $0x6666666666666666, %%r15\n\t"
                     "xor %%r15, %%rdi\n\t or %%rdi, %%rax\n\t"
                     "mov $0x7777777777777777, %%r15\n\t"
                     "xor %%r15, %%rbp\n\t or %%rbp, %%rax\n\t"
                     "mov $0x8888888888888888, %%r15\n\t"
                     "xor %%r15, %%r8\n\t or %%r8, %%rax\n\t"
                     "mov $0x9999999999999999, %%r15\n\t"
                     "xor %%r15, %%r9\n\t or %%r9, %%rax\n\t"
                     "mov $0xaaaaaaaaaaaaaaaa, %%r15\n\t"
                     "xor %%r15, %%r10\n\t or %%r10, %%rax\n\t"
                     "mov $0xbbbbbbbbbbbbbbbb, %%r15\n\t"
                     "xor %%r15, %%r11\n\t or %%r11, %%rax\n\t"
                     "mov $0xcccccccccccccccc, %%r15\n\t"
                     "xor %%r15, %%r12\n\t or %%r12, %%rax\n\t"
                     "mov $0xdddddddddddddddd, %%r15\n\t"
                     "xor %%r15, %%r13\n\t or %%r13, %%rax\n\t"
                     "mov $0xeeeeeeeeeeeeeeee, %%r15\n\t"
                     "xor %%r15, %%r14\n\t or %%r14, %%rax\n\t"
                     "add $8, %%rsp\n\t"
                     "pop %%rbx\n\t" /* the flags: the direction flag must be set */
                     "and $0x400, %%rbx\n\t xor $0x400, %%rbx\n\t or %%rbx, %%rax\n\t"
                     "pop %%rbx\n\t"
                     "mov $0x0f0f0f0f0f0f0f0f, %%r15\n\t"
                     "xor %%r15, %%rbx\n\t or %%rbx, %%rax\n\t"
                     "cld\n\t"
                     "pop %%rbp\n\t"
                     : "=&a"(wrong)
                     : [go] "m"(go)
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                       "r15", "cc", "memory");
    return wrong;
}

static void *body(void *argument) {
    *(uint64_t *)argument = hold_registers();
    return NULL;
}

int main(int argc, char **argv) {
    uint64_t wrong = 1;
    check_start(argc, argv);
    pthread_t thread = check_thread(body, &wrong);
    check_sleep(20);
    check_move();
    go = 1;
    PTHREAD(pthread_join(thread, NULL));
    CHECK(wrong == 0, "bits that changed in some register: %#lx", wrong);
    return check_passed();
}
