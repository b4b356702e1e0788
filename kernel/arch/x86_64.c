#define _GNU_SOURCE
#include "kernel/arch/x86_64.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>

enum { SYSCALL_LENGTH = 2 };

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)

_Static_assert(SYS_pause == 34 && SYS_nanosleep == 35 && SYS_rt_sigreturn == 15, "numbers used in the stub");

/* .org goes forwards only: a stub that outgrows its place does not assemble. */
__asm__(
    ".pushsection .rodata\n"
    ".balign 64\n"
    "lm_stub:\n"
    /* LM_STUB_RUN: rbx row, r12 ending */
    "1:  mov 4(%rbx), %ebp\n"
    "    test $" TEXT(LM_ROW_STORE) "|" TEXT(LM_ROW_COPY) "|" TEXT(LM_ROW_TRAP) "|" TEXT(
        LM_ROW_HOME) ", %ebp\n"
                     "    jne 3f\n"
                     "    mov (%rbx), %eax\n"
                     "    mov 8(%rbx), %rdi\n"
                     "    mov 16(%rbx), %rsi\n"
                     "    mov 24(%rbx), %rdx\n"
                     "    mov 32(%rbx), %r10\n"
                     "    mov 40(%rbx), %r8\n"
                     "    mov 48(%rbx), %r9\n"
                     "    syscall\n"
                     "    mov %rax, 56(%rbx)\n"
                     "    test $" TEXT(
                         LM_ROW_CHECKED) ", %ebp\n"
                                         "    je 2f\n"
                                         "    cmp $-4095, %rax\n"
                                         "    jb 2f\n"
                                         "    mov %r12, %rbx\n"
                                         "    jmp 1b\n"
                                         "2:  add $" TEXT(
                                             LM_ROW_SIZE) ", %rbx\n"
                                                          "    jmp 1b\n"
                                                          "3:  test $" TEXT(LM_ROW_TRAP) "|" TEXT(
                                                              LM_ROW_HOME) ", %ebp\n"
                                                                           "    jne 5f\n"
                                                                           "    mov 8(%rbx), %rdi\n"
                                                                           "    mov 16(%rbx), %rax\n"
                                                                           "    test $" TEXT(
                                                                               LM_ROW_COPY) ", %ebp\n"
                                                                                            "    je 4f\n"
                                                                                            "    mov (%rax), "
                                                                                            "%rax\n"
                                                                                            "4:  mov %rax, "
                                                                                            "(%rdi)\n"
                                                                                            "    jmp 2b\n"
                                                                                            "5:  test $" TEXT(
                                                                                                LM_ROW_HOME) ", %ebp\n"
                                                                                                             "    jne 8f\n"
                                                                                                             "    int3\n"
                                                                                                             "    jmp 5b\n"
                                                                                                             ".org lm_stub "
                                                                                                             "+ " TEXT(
                                                                                                                 LM_STUB_PARK) "\n"
                                                                                                                               "6:  mov (%r12), %eax\n"
                                                                                                                               "    cmp $2, %eax\n"
                                                                                                                               "    je 8f\n"
                                                                                                                               "    cmp $1, %eax\n"
                                                                                                                               "    jne 7f\n"
                                                                                                                               "    mov $34, %eax\n"
                                                                                                                               "    syscall\n"
                                                                                                                               "    jmp 6b\n"
                                                                                                                               "7:  lea 9f(%rip), %rdi\n"
                                                                                                                               "    xor %esi, %esi\n"
                                                                                                                               "    mov $35, %eax\n"
                                                                                                                               "    syscall\n"
                                                                                                                               "    jmp 6b\n"
                                                                                                                               "8:  mov %r13, %rsp\n"
                                                                                                                               "    mov $15, %eax\n"
                                                                                                                               "    syscall\n"
                                                                                                                               "    jmp 5b\n"
                                                                                                                               ".balign 8\n"
                                                                                                                               "9:  .quad 0, 1000000\n"
                                                                                                                               ".org lm_stub + " TEXT(
                                                                                                                                   LM_STUB_ROOM) "\n"
                                                                                                                                                 ".popsection\n");

extern const char lm_stub[LM_STUB_ROOM];

const char *lm_stub_code(void) {
    return lm_stub;
}

size_t lm_arch_xstate_room(void) {
    /* Asked once: under a hypervisor every CPUID is an exit of tens of microseconds, too long for a frozen
     * process. */
    static _Atomic size_t known;
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;

    if (known != 0)
        return known;
    /* Leaf 0xd: ecx is the size of the area for every component that the processor has (Intel SDM vol.
     * 1, 13.2). */
    if (!__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx) || ecx == 0)
        ecx = sizeof(struct user_fpregs_struct);
    known = ecx;
    return ecx;
}

void lm_arch_run_program(struct user_regs_struct *registers, uint64_t stub, uint64_t table, uint64_t ending,
                         uint64_t frame_pointer) {
    registers->rip = stub + LM_STUB_RUN;
    registers->rbx = table;
    registers->r12 = ending;
    registers->orig_rax = (unsigned long long)-1;
    registers->r13 = frame_pointer;
}

void lm_arch_park(struct user_regs_struct *registers, uint64_t stub, uint64_t word, uint64_t frame_pointer) {
    registers->rip = stub + LM_STUB_PARK;
    registers->r12 = word;
    registers->r13 = frame_pointer;
    registers->orig_rax = (unsigned long long)-1;
}

uint64_t lm_arch_row(const struct user_regs_struct *registers) {
    return registers->rbx;
}

void lm_arch_call(struct user_regs_struct *registers, uint64_t instruction, uint64_t number,
                  const uint64_t *arguments) {
    registers->rip = instruction;
    registers->orig_rax = (unsigned long long)-1;
    registers->rax = number;
    registers->rdi = arguments[0];
    registers->rsi = arguments[1];
    registers->rdx = arguments[2];
    registers->r10 = arguments[3];
    registers->r8 = arguments[4];
    registers->r9 = arguments[5];
}

void lm_arch_pause(struct user_regs_struct *registers, uint64_t instruction) {
    registers->rip = instruction;
    registers->orig_rax = (unsigned long long)-1;
    registers->rax = SYS_pause;
}

int lm_arch_is_paused(const struct user_regs_struct *registers, uint64_t instruction) {
    if (registers->rip == instruction)
        return registers->rax == SYS_pause;
    return registers->rip == instruction + SYSCALL_LENGTH && registers->orig_rax == SYS_pause;
}

int64_t lm_arch_syscall_number(const struct user_regs_struct *registers) {
    return (int64_t)registers->orig_rax;
}

int64_t lm_arch_result(const struct user_regs_struct *registers) {
    return (int64_t)registers->rax;
}

uint64_t lm_arch_instruction_pointer(const struct user_regs_struct *registers) {
    return registers->rip;
}

void lm_arch_rewind(struct user_regs_struct *registers) {
    registers->rax = registers->orig_rax;
    registers->rip -= SYSCALL_LENGTH;
    registers->orig_rax = (unsigned long long)-1;
}

long lm_arch_find_syscall(const void *code, size_t length) {
    static const unsigned char syscall_instruction[] = {0x0f, 0x05};
    const char *found = memmem(code, length, syscall_instruction, sizeof syscall_instruction);

    return found == NULL ? -1 : (long)(found - (const char *)code);
}
