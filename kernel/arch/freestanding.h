/* What the programs without libc need (restorer/husk.c, restorer/init.c), from the architecture's start.S. */
#ifndef LM_KERNEL_ARCH_FREESTANDING_H
#define LM_KERNEL_ARCH_FREESTANDING_H

/* The program: called at its start with the stack as execve(2) has left it, the number of arguments and then
 * they themselves. */
__attribute__((noreturn)) void lm_main(const long *stack);

/* One system call, its result as the kernel returns it: -errno for an error. */
long lm_call(long number, long a, long b, long c, long d, long e);

#endif
