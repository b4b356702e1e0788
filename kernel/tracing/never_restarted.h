/*
 * System calls that a mere stop ends with EINTR, although no handler of a signal has run, and that the kernel does
 * not make again: signal(7), "Interruption of system calls and library functions by stop signals".
 */
#ifndef LM_KERNEL_NEVER_RESTARTED_H
#define LM_KERNEL_NEVER_RESTARTED_H

#include <stdint.h>

/* cffi: begin */
/* Whether the call of this number is one of them, by itself or on a socket with a timeout. */
int lm_never_restarted(int64_t number);
/* cffi: end */

#endif
