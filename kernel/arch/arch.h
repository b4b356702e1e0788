/*
 * What an architecture provides. Nothing outside of kernel/arch/ names a register or writes an instruction; a second
 * architecture NAME, as `uname -m` has it, is these files beside those of x86_64:
 *
 *     NAME.S    the stub that runs a program of system calls in a process, or waits there
 *     NAME.c    the functions below
 *     NAME.py   what Python knows of registers
 *
 * A program is a table of rows, one for each system call. Every row's result stays in the row.
 */
#ifndef LM_KERNEL_ARCH_H
#define LM_KERNEL_ARCH_H

/* cffi: begin */
/* The stub with its constants; what follows in the same page may be used for other things. */
#define LM_STUB_ROOM 256

/* A row: the number of the system call (4 bytes), flags (4 bytes), six arguments and the result (8 bytes each). */
#define LM_ROW_SIZE 64
#define LM_ROW_NUMBER 0
#define LM_ROW_FLAGS 4
#define LM_ROW_ARGUMENTS 8
#define LM_ROW_RESULT 56

/* The flags. A checked call: a result in -4095..-1 ends the program. */
#define LM_ROW_CHECKED 1
/* No call: 8 bytes, the second argument, are written to the address that is the first. */
#define LM_ROW_STORE 2
/* The same, but the 8 bytes are read from the address that is the second. */
#define LM_ROW_COPY 4
/* No call: a trap. Only where the tracer's death may take the process along. */
#define LM_ROW_TRAP 8
/* No call but the last: rt_sigreturn from the frame. Until then the stack pointer is the thread's own, so
 * that a handler of a signal, which only a dead tracer lets in, runs where it would have run anyway. */
#define LM_ROW_HOME 16

/* Every program is followed by the rows of its ending; with this one of them it tells its tracer (tgkill). */
#define LM_ENDING_ROWS 6
#define LM_ENDING_TELLS 4

/* The word that a parked thread waits for: to be read again in a millisecond; pause(2) for good; rt_sigreturn
 * from the frame. */
#define LM_PARK_UNDECIDED 0
#define LM_PARK_STAY 1
#define LM_PARK_GO_HOME 2
/* cffi: end */

/* The stub's source needs the numbers above and no more. */
#ifndef __ASSEMBLER__

#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

/* cffi: begin */
/* LM_STUB_ROOM bytes of position independent code. */
const char *lm_stub_code(void);

/* Length of the xsave image that PTRACE_GETREGSET can return on this machine, at most. */
size_t lm_arch_xstate_room(void);
/* cffi: end */

/* Registers that run the table at `table` with the stub at `stub`. `frame_pointer` for rt_sigreturn. */
void lm_arch_run_program(struct user_regs_struct *registers, uint64_t stub, uint64_t table, uint64_t ending,
                         uint64_t frame_pointer);

/* The address of the row that the stub is at. */
uint64_t lm_arch_row(const struct user_regs_struct *registers);

/* Registers that wait with the stub at `stub` for the word at `word`; `frame_pointer` for rt_sigreturn. */
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

#endif /* __ASSEMBLER__ */

#endif
