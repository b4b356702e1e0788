/* Stopping all threads of a process, and letting them go on as if nothing had happened. */
#ifndef LM_KERNEL_FREEZE_H
#define LM_KERNEL_FREEZE_H

#include "kernel/tracing/tracee.h"

/* cffi: begin */
/* Stop every thread of `pid`, including those that start meanwhile, each as lm_trace_stop does. The threads in
 * `seized` are traced already and run; the others are seized with `options`. Fills `threads`, in no order, and
 * `count`. On failure everything goes on as before: -ESRCH when the process is gone, -EPERM when a thread may not
 * be traced, -ETIMEDOUT, -ENOBUFS when there are more threads than `capacity`. A leader that has ended while its
 * threads live is not among the threads. */
int lm_freeze(int pid, const int32_t *seized, size_t seized_count, uint64_t options, int timeout_ms,
              struct lm_frozen *threads, size_t capacity, size_t *count);

/* Let frozen threads go on as they were; with `detach` untraced. Calls that the stop has interrupted with
 * EINTR and the kernel never restarts (kernel/tracing/never_restarted.h) are made again, unless a handler is about to
 * run: the program does not see that it was stopped. */
int lm_thaw(const struct lm_frozen *threads, size_t count, int detach);
/* cffi: end */

#endif
