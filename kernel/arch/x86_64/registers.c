#define _GNU_SOURCE
#include "kernel/arch/arch.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>

enum { SYSCALL_LENGTH = 2 };

_Static_assert(sizeof(struct user_regs_struct) == LM_REGISTERS_SIZE, "LM_REGISTERS_SIZE");

/* stub.S */
extern const char lm_stub[LM_STUB_ROOM] __attribute__((visibility("hidden")));
extern const char lm_stub_park[] __attribute__((visibility("hidden")));

const char *lm_stub_code(void) {
    return lm_stub;
}

size_t lm_arch_xstate_room(void) {
    /* Called once: under a hypervisor every CPUID is an exit of tens of microseconds, too long for a frozen
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

static void go_to(struct user_regs_struct *registers, uint64_t instruction) {
    registers->rip = instruction;
    registers->orig_rax = (unsigned long long)-1;
}

void lm_arch_run_program(struct user_regs_struct *registers, uint64_t stub, uint64_t table, uint64_t ending,
                         uint64_t sigreturn_pointer) {
    go_to(registers, stub);
    registers->rbx = table;
    registers->r12 = ending;
    registers->r13 = sigreturn_pointer;
}

void lm_arch_park(struct user_regs_struct *registers, uint64_t stub, uint64_t word,
                  uint64_t sigreturn_pointer) {
    go_to(registers, stub + (uint64_t)(lm_stub_park - lm_stub));
    registers->r12 = word;
    registers->r13 = sigreturn_pointer;
}

uint64_t lm_arch_row(const struct user_regs_struct *registers) {
    return registers->rbx;
}

void lm_arch_call(struct user_regs_struct *registers, uint64_t instruction, uint64_t number,
                  const uint64_t *arguments) {
    go_to(registers, instruction);
    registers->rax = number;
    registers->rdi = arguments[0];
    registers->rsi = arguments[1];
    registers->rdx = arguments[2];
    registers->r10 = arguments[3];
    registers->r8 = arguments[4];
    registers->r9 = arguments[5];
}

void lm_arch_call_and_return(struct user_regs_struct *registers, uint64_t instruction,
                             uint64_t return_pointer, uint64_t number, const uint64_t *arguments) {
    lm_arch_call(registers, instruction, number, arguments);
    registers->rsp = return_pointer;
}

void lm_arch_leave(struct user_regs_struct *registers, uint64_t instruction, uint64_t return_pointer) {
    go_to(registers, instruction);
    /* leave: rsp = rbp, then pop rbp. */
    registers->rbp = return_pointer - sizeof(uint64_t);
}

void lm_arch_pause(struct user_regs_struct *registers, uint64_t instruction) {
    go_to(registers, instruction);
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

void lm_arch_set_instruction_pointer(struct user_regs_struct *registers, uint64_t address) {
    registers->rip = address;
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
