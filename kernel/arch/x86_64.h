/*
 * x86-64: the stub that runs a program of system calls, and what the tracer must know of the registers.
 *
 * A program is a table of rows. The stub is set going at LM_STUB_RUN with
 *     rbx   the first row
 *     r12   the row to go on with when a checked call fails: the ending
 *     r13   for a program that ends with LM_ROW_HOME: where rt_sigreturn takes the frame of the way home from
 *
 * It touches no other memory than the table and what the rows name, no stack, and no vector registers. It
 * changes rax, rdi, rsi, rdx, r10, r8, r9, rbp, rcx, r11 (the last two by the syscall instruction itself) and
 * the flags.
 *
 * At LM_STUB_PARK begins a loop without a program: it looks at a word and waits, for ever, or until it is
 * told to go home. With
 *     r12   the address of the word: 0 look again in a millisecond, 1 pause for good, 2 go home
 *     r13   the stack pointer with which rt_sigreturn takes the frame of the way home
 */
#ifndef LM_KERNEL_ARCH_X86_64_H
#define LM_KERNEL_ARCH_X86_64_H

#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

/* cffi: begin */
#define LM_STUB_RUN 0
#define LM_STUB_PARK 128
/* The stub with its constants; what follows in the same page may be used for other things. */
#define LM_STUB_ROOM 256

#define LM_ROW_SIZE 64
/* A checked call: a result in -4095..-1 ends the program. */
#define LM_ROW_CHECKED 1
/* No call: 8 bytes, the second argument, are written to the address that is the first. */
#define LM_ROW_STORE 2
/* The same, but the 8 bytes are read from the address that is the second. */
#define LM_ROW_COPY 4
/* No call: a trap (int3). Only where the tracer's death may take the process along. */
#define LM_ROW_TRAP 8
/* No call but the last: rt_sigreturn from the frame. Until then the stack pointer is the thread's own, so
 * that a handler of a signal, which only a dead tracer lets in, runs where it would have run anyway. */
#define LM_ROW_HOME 16

/* Every program is followed by the rows of its ending; with this one of them it tells its tracer (tgkill). */
#define LM_ENDING_ROWS 6
#define LM_ENDING_TELLS 4

/* LM_STUB_ROOM bytes of position independent code. */
const char *lm_stub_code(void);

/* Length of the xsave image that PTRACE_GETREGSET can return on this machine, at most. */
size_t lm_arch_xstate_room(void);
/* cffi: end */

struct lm_row {
    uint32_t number;
    uint32_t flags;
    uint64_t arguments[6];
    int64_t result;
};
_Static_assert(sizeof(struct lm_row) == LM_ROW_SIZE, "struct lm_row");

/* Registers that run the table at `table` with the stub at `stub`. `frame_pointer` for rt_sigreturn. */
void lm_arch_run_program(struct user_regs_struct *registers, uint64_t stub, uint64_t table, uint64_t ending,
                         uint64_t frame_pointer);

/* The address of the row that the stub is at. */
uint64_t lm_arch_row(const struct user_regs_struct *registers);

/* Registers that wait in the loop at LM_STUB_PARK for the word at `word`; `frame_pointer` for rt_sigreturn.
 */
void lm_arch_park(struct user_regs_struct *registers, uint64_t stub, uint64_t word, uint64_t frame_pointer);

/* Registers that make one system call at the address of a syscall instruction. */
void lm_arch_call(struct user_regs_struct *registers, uint64_t instruction, uint64_t number,
                  const uint64_t *arguments);

/* Registers that wait in pause(2) by the syscall instruction at `instruction`, everything else as it is; and
 * whether a thread is about to make that call, or in it. */
void lm_arch_pause(struct user_regs_struct *registers, uint64_t instruction);
int lm_arch_is_paused(const struct user_regs_struct *registers, uint64_t instruction);

/* The system call that a stopped thread is in, or -1; its result. */
int64_t lm_arch_syscall_number(const struct user_regs_struct *registers);
int64_t lm_arch_result(const struct user_regs_struct *registers);
uint64_t lm_arch_instruction_pointer(const struct user_regs_struct *registers);
/* Wind the thread back to before its system call, so that resuming makes it again. */
void lm_arch_rewind(struct user_regs_struct *registers);

/* The first syscall instruction in the bytes at `code`, as an offset; -1 if there is none. */
long lm_arch_find_syscall(const void *code, size_t length);

#endif
