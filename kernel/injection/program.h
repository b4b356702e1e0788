/*
 * Running a program of system calls in a process of ours (kernel/injection/program.py composes it, the stub of
 * kernel/arch/ runs it). For the processes of others see sigreturn_path.
 */
#ifndef LM_KERNEL_PROGRAM_H
#define LM_KERNEL_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* A thread and its program: see Encoded in program.py. `mask` is for lm_program_run itself. */
struct lm_program_place {
    int tid;
    uint64_t table;
    uint64_t ending;
    uint64_t mask;
};

/* Write the `size` bytes at `memory` to `address` in the process of the stopped tracees at `places`, run the programs
 * in them, side by side, with the stub at `stub` until the ending of each reports, and read the bytes back. Signals
 * are held back meanwhile and the masks are put back. 0 or -errno: -ESRCH when the process has gone, -EFAULT when a
 * program stumbled on a signal of its own making. */
int lm_program_run(struct lm_program_place *places, size_t count, uint64_t stub, uint64_t address,
                   void *memory, size_t size);

/* Make of the program in the first `size` bytes of `memory` `count` in a row, each `size` bytes after the one before:
 * the 64-bit words with the numbers `words` are addresses in it. */
void lm_program_repeat(void *memory, size_t size, size_t count, const uint32_t *words, size_t word_count);

/* Make one system call in a stopped tracee, by a syscall instruction near its instruction pointer and two
 * syscall-stops; its registers come back as they were. -ENOENT when there is no such instruction. */
int lm_program_call(int tid, uint64_t number, const uint64_t *arguments, int64_t *result);
/* cffi: end */

#endif
