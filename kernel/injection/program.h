/*
 * Running a program of system calls in a process of ours (kernel/injection/program.py composes it, the stub of
 * kernel/arch/ runs it). For the processes of others see sigreturn_path.
 */
#ifndef LM_KERNEL_PROGRAM_H
#define LM_KERNEL_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* Write the `size` bytes at `memory` to `table` in the stopped tracee `tid`, run them with the stub at `stub`
 * until the ending reports, and read them back. Signals are held back meanwhile and the mask is put back. 0 or
 * -errno: -ESRCH when the process has gone, -EFAULT when the program stumbled on a signal of its own making.
 */
int lm_program_run(int tid, uint64_t stub, uint64_t table, uint64_t ending, void *memory, size_t size);

/* Its two halves, so that several threads can run at the same time. `mask` is for lm_program_finish. */
int lm_program_start(int tid, uint64_t stub, uint64_t table, uint64_t ending, uint64_t frame_pointer,
                     const void *memory, size_t size, uint64_t *mask);
int lm_program_finish(int tid, uint64_t table, uint64_t ending, uint64_t mask, void *memory, size_t size);

/* Make one system call in a stopped tracee, by a syscall instruction near its instruction pointer and two
 * syscall-stops; its registers come back as they were. -ENOENT when there is no such instruction. */
int lm_program_call(int tid, uint64_t number, const uint64_t *arguments, int64_t *result);
/* cffi: end */

#endif
