/*
 * The stopped threads of a source: their state as it was at the freeze, programs of system calls in all of
 * them at once, and the parking at the end.
 *
 * Every step leaves each thread, at every instant, in a state from which it gets home without its tracer:
 * registers are changed in one ptrace call, to something that ends in rt_sigreturn on a frame that is
 * complete by then, and on the way back the signal mask comes before the registers.
 */
#ifndef LM_KERNEL_SOURCE_THREADS_H
#define LM_KERNEL_SOURCE_THREADS_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
struct lm_source_threads;

/* Where one thread's program is: see Encoded in program.py. table 0: this thread runs nothing. */
struct lm_source_program {
    uint64_t table;
    uint64_t ending;
};

/* A thread as it was at the freeze: struct user_regs_struct, the vector state, the signal mask, and what it has
 * registered for rseq, if the kernel tells that: else -errno. */
struct lm_source_state {
    const void *registers;
    const void *xstate;
    size_t xstate_size;
    uint64_t mask;
    const struct lm_rseq_configuration *rseq;
    int rseq_error;
};

/* Read the registers, signal mask, vector state and rseq registration of `count` stopped tracees. 0 or -errno.
 */
int lm_source_threads_init(const int *tids, size_t count, struct lm_source_threads **out);
void lm_source_threads_deinit(struct lm_source_threads *threads);

/* Bytes of one thread's frame, a multiple of 64. */
size_t lm_source_frame_size(const struct lm_source_threads *threads);

/* Compose the frames of all threads, one after the other, to be written to `address` in the process. */
int lm_source_frames(struct lm_source_threads *threads, uint64_t address, void *out, size_t room);

/* What was read, for thread `index`; it is there as long as `threads` are. */
void lm_source_state(const struct lm_source_threads *threads, size_t index, struct lm_source_state *out);

/* Run a program in every thread at once. All frames and tables are in place. A program reports that it is done
 * by `end_signal` to itself, which is swallowed; then the thread is stopped at home. 0, or -errno with those
 * threads at home that still exist. */
int lm_source_run(struct lm_source_threads *threads, const struct lm_source_program *programs, uint64_t stub,
                  int end_signal);

/* The same for the leader alone, with a stop on the way: its program sends itself `end_signal` once before
 * its end. The first call returns at that stop, in which the death of the tracer lets the program go on to
 * its end and home; the second lets it go there. */
int lm_source_run_half(struct lm_source_threads *threads, const struct lm_source_program *program,
                       uint64_t stub, int end_signal);
int lm_source_run_rest(struct lm_source_threads *threads, int end_signal);

/* Set every thread on the stub's waiting loop with all signals blocked, still stopped: see custody. `flag` is
 * the address of the word that it waits for. */
int lm_source_park(struct lm_source_threads *threads, uint64_t stub, uint64_t flag);

/* After COMMIT: from now on every thread's home is the waiting loop. Compose the frames anew before the next
 * program. */
void lm_source_settle(struct lm_source_threads *threads, uint64_t stub, uint64_t flag);

/* Put back every thread's mask and registers, still stopped. */
int lm_source_home(struct lm_source_threads *threads);
/* cffi: end */

#endif
