/*
 * What an architecture provides. Nothing outside of kernel/arch/ names a register or writes an instruction. Another
 * architecture is another folder beside x86_64/, named as `uname -m` names it, with the same files:
 *
 *     stub.S               runs a program of system calls in a process, or waits there: below
 *     start.S              how programs without libc begin, and call the kernel: freestanding.h
 *     registers.c          the functions below
 *     registers.py         the same registers in Python
 *     sigreturn_frame.c    the frame that rt_sigreturn(2) takes: sigreturn_frame.h
 *     sigreturn_frame.py   such frames, found on stacks
 *     instructions.py      instructions as bytes: what is looked for in programs, and written into them
 *     cpu.{c,h,py}         what the processor offers to programs, and what another one lacks
 *
 * What Python uses of it is listed in arch.py, which chooses the folder as build_native.py does for C. Beyond the
 * folder, these know what was only ever seen on x86-64: process/memory/vdso.py (the functions of the vdso),
 * kernel/injection/address_gap.py (the size of the address space), kernel/tracing/call_frames.py (the columns of call
 * frame information), and kernel/kernel.h (the numbers of new system calls).
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

#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

/* The register set (PTRACE_GETREGSET) that holds the whole vector state. */
#define LM_XSTATE_SET NT_X86_XSTATE

/* cffi: begin */
/* LM_STUB_ROOM bytes of position independent code. */
const char *lm_stub_code(void);

/* Bytes of struct user_regs_struct. */
#define LM_REGISTERS_SIZE 216

/* Length of the vector state that PTRACE_GETREGSET can return on this machine, at most. */
size_t lm_arch_xstate_room(void);
/* cffi: end */

/* Below, `registers` are those of a stopped thread, to be set with PTRACE_SETREGS. Registers that are not mentioned
 * stay as they are. A thread that is given another instruction pointer is no longer in a system call that the kernel
 * would restart. */

/* Run the table at `table` with the stub at `stub`; the rows at `ending` follow a checked call that failed.
 * `sigreturn_pointer` is the stack pointer for rt_sigreturn at the end. */
void lm_arch_run_program(struct user_regs_struct *registers, uint64_t stub, uint64_t table, uint64_t ending,
                         uint64_t sigreturn_pointer);

/* The address of the row that the stub is at. */
uint64_t lm_arch_row(const struct user_regs_struct *registers);

/* Wait with the stub at `stub` for the word at `word`; `sigreturn_pointer` as above. */
void lm_arch_park(struct user_regs_struct *registers, uint64_t stub, uint64_t word,
                  uint64_t sigreturn_pointer);

/* Make a system call with the syscall instruction at `instruction`. */
void lm_arch_call(struct user_regs_struct *registers, uint64_t instruction, uint64_t number,
                  const uint64_t *arguments);
/* The same with a stack pointer from which the `ret` behind the instruction takes its address. */
void lm_arch_call_and_return(struct user_regs_struct *registers, uint64_t instruction,
                             uint64_t return_pointer, uint64_t number, const uint64_t *arguments);

/* Leave, by the `leave; ret` at `instruction`, to a stack pointer from which `ret` takes its address. Until then
 * the stack is the thread's own. */
void lm_arch_leave(struct user_regs_struct *registers, uint64_t instruction, uint64_t return_pointer);

/* Wait in pause(2) by the syscall instruction at `instruction`, and whether a thread is about to make that call,
 * or in it. */
void lm_arch_pause(struct user_regs_struct *registers, uint64_t instruction);
int lm_arch_is_paused(const struct user_regs_struct *registers, uint64_t instruction);

/* The system call that a stopped thread is in, or -1; its result. */
int64_t lm_arch_syscall_number(const struct user_regs_struct *registers);
int64_t lm_arch_result(const struct user_regs_struct *registers);
/* Wind the thread back to before its system call, so that resuming makes it again. */
void lm_arch_rewind(struct user_regs_struct *registers);

uint64_t lm_arch_instruction_pointer(const struct user_regs_struct *registers);
/* Go on elsewhere, in the system call as before if the thread is in one. */
void lm_arch_set_instruction_pointer(struct user_regs_struct *registers, uint64_t address);

/* The first syscall instruction in the bytes at `code`, as an offset; -1 if there is none. */
long lm_arch_find_syscall(const void *code, size_t length);

#endif /* __ASSEMBLER__ */

#endif
