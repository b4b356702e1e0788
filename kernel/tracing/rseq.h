/* Restartable sequences (rseq(2), kernel/tracing/rseq.h): a thread that is stopped within a critical section. */
#ifndef LM_KERNEL_RSEQ_H
#define LM_KERNEL_RSEQ_H

#include "kernel/tracing/tracee.h"

#include <sys/user.h>

/* What the stopped tracee `tid` has registered; address 0: nothing. 0 or -errno: -EIO and -EINVAL from kernels that do
 * not know the request, which are those without rseq and those before Linux 5.13. */
int lm_rseq_area(int tid, struct lm_rseq_configuration *area);

/* If the stopped tracee `tid`, which has registered `area`, is within a critical section, abort it, as the kernel
 * does to every thread that was interrupted there: it goes on at the section's abort handler. Both the thread and
 * `registers`, which were read from it, are changed.
 *
 * This has to happen before anything else runs in the thread: the kernel would then see it outside of the section
 * and end the section, and the thread would go on within it unprotected, perhaps on another processor. 0 or
 * -errno. */
int lm_rseq_abort(int tid, const struct lm_rseq_configuration *area, struct user_regs_struct *registers);

#endif
