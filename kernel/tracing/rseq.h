/* Restartable sequences (rseq(2), kernel/tracing/rseq.h): a thread that is stopped within a critical section. */
#ifndef LM_KERNEL_RSEQ_H
#define LM_KERNEL_RSEQ_H

#include <sys/user.h>

/* If the stopped tracee `tid` is within a critical section, abort it, as the kernel does to every thread that
 * was interrupted there: it goes on at the section's abort handler. Both the thread and `registers`, which
 * were read from it, are changed.
 *
 * This has to happen before anything else runs in the thread: the kernel would then see it outside of the section
 * and end the section, and the thread would go on within it unprotected, perhaps on another processor. 0 or
 * -errno. */
int lm_rseq_abort(int tid, struct user_regs_struct *registers);

#endif
