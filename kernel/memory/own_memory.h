/*
 * Our own memory after a fork. Parent and child share every page until one of them writes to it. Then the
 * writer pays for a fault and a copy, some microseconds a page, again and again. A process that has something
 * urgent to do had better pay at once, and before.
 */
#ifndef LM_KERNEL_OWN_MEMORY_H
#define LM_KERNEL_OWN_MEMORY_H

/* cffi: begin */
/* Make every page of private memory that this process has, and may write to, its own, so that no later write
 * faults. Nothing that was not there is added. Returns 0 or -errno; -EINVAL before Linux 5.14, which cannot.
 */
int lm_own_memory_populate(void);
/* cffi: end */

/* For a child that needs only its stack and its code: give up all private anonymous memory but the mappings
 * that hold the `count` addresses of `kept`. The caller may use nothing on the heap afterwards. Calls no
 * function that takes a lock. Returns 0 or -errno. */
int lm_own_memory_drop(const void *const *kept, int count);

#endif
